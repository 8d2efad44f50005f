//! Training curves: a CSV file and a plot of it.

use std::io::Write;
use std::path::{Path, PathBuf};

use kontext_core::{Error, OutputFile, Result};
use plotters::prelude::*;

const HEADER: &str = "step,loss,learning_rate,gradient_norm,validation_loss";
/// Window of the running mean in the plot: losses of single steps are noisy.
const SMOOTH: usize = 50;

/// A line of the file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    pub(crate) step: u64,
    pub(crate) loss: f64,
    pub(crate) rate: f64,
    pub(crate) norm: f64,
    pub(crate) validation: Option<f64>,
}

/// The points of a run so far.
#[derive(Debug)]
pub(crate) struct Curve {
    path: PathBuf,
    points: Vec<Point>,
}

impl Curve {
    /// Reads `curve.csv` from the folder, without the points after `step`.
    pub(crate) fn open(folder: &Path, step: u64) -> Result<Self> {
        let path = folder.join("curve.csv");
        let text = if path.is_file() {
            std::fs::read_to_string(&path).map_err(Error::io(&path))?
        } else {
            String::new()
        };
        let points = text
            .lines()
            .skip(1)
            .filter_map(parse)
            .filter(|p| p.step <= step)
            .collect();
        Ok(Self { path, points })
    }

    pub(crate) fn push(&mut self, point: Point) {
        self.points.push(point);
    }

    /// Records the validation loss of the last step.
    pub(crate) fn validated(&mut self, loss: f64) {
        if let Some(last) = self.points.last_mut() {
            last.validation = Some(loss);
        }
    }

    /// Writes the file, and `curve.svg` next to it.
    pub(crate) fn save(&self) -> Result<()> {
        let mut file = OutputFile::create(&self.path)?;
        let mut text = format!("{HEADER}\n");
        for p in &self.points {
            let validation = p.validation.map(|v| v.to_string()).unwrap_or_default();
            text.push_str(&format!("{},{},{},{},{validation}\n", p.step, p.loss, p.rate, p.norm));
        }
        file.writer()
            .write_all(text.as_bytes())
            .map_err(Error::io(&self.path))?;
        file.publish()?;
        let path = self.path.with_extension("svg");
        let svg = self.plot().map_err(|e| Error::Image {
            path: path.clone(),
            reason: e,
        })?;
        let mut file = OutputFile::create(&path)?;
        file.writer().write_all(svg.as_bytes()).map_err(Error::io(&path))?;
        file.publish()
    }

    fn plot(&self) -> std::result::Result<String, String> {
        let training = self.smoothed();
        let validation: Vec<(f64, f64)> = self
            .points
            .iter()
            .filter_map(|p| Some((p.step as f64, p.validation?)))
            .collect();
        let mut svg = String::new();
        let values = || training.iter().chain(&validation);
        let last = values().map(|(step, _)| *step).fold(1.0, f64::max);
        let (low, high) = values().fold((f64::MAX, f64::MIN), |(low, high), (_, v)| (low.min(*v), high.max(*v)));
        if low > high {
            return Ok("<svg xmlns=\"http://www.w3.org/2000/svg\"/>".to_owned());
        }
        {
            let draw = || -> std::result::Result<(), Box<dyn std::error::Error>> {
                let area = SVGBackend::with_string(&mut svg, (800, 450)).into_drawing_area();
                area.fill(&WHITE)?;
                let mut builder = ChartBuilder::on(&area);
                builder.margin(10).x_label_area_size(35).y_label_area_size(60);
                let mut chart = builder.build_cartesian_2d(0.0..last, (low * 0.95..high * 1.05 + 1e-9).log_scale())?;
                chart.configure_mesh().x_desc("step").y_desc("loss").draw()?;
                chart
                    .draw_series(LineSeries::new(training, &BLUE))?
                    .label("training")
                    .legend(|(x, y)| PathElement::new(vec![(x, y), (x + 20, y)], BLUE));
                chart
                    .draw_series(LineSeries::new(validation, &RED))?
                    .label("validation")
                    .legend(|(x, y)| PathElement::new(vec![(x, y), (x + 20, y)], RED));
                chart
                    .configure_series_labels()
                    .background_style(WHITE)
                    .border_style(BLACK)
                    .draw()?;
                area.present()?;
                Ok(())
            };
            draw().map_err(|e| e.to_string())?;
        }
        Ok(svg)
    }

    /// Returns the running mean of the training losses.
    fn smoothed(&self) -> Vec<(f64, f64)> {
        let window = |end: usize| &self.points[end.saturating_sub(SMOOTH - 1)..=end];
        let mean = |points: &[Point]| points.iter().map(|p| p.loss).sum::<f64>() / points.len() as f64;
        self.points
            .iter()
            .enumerate()
            .map(|(end, p)| (p.step as f64, mean(window(end))))
            .collect()
    }
}

fn parse(line: &str) -> Option<Point> {
    let mut fields = line.split(',');
    let step = fields.next()?.parse().ok()?;
    let mut number = || fields.next()?.parse().ok();
    let (loss, rate, norm) = (number()?, number()?, number()?);
    Some(Point {
        step,
        loss,
        rate,
        norm,
        validation: number(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_goes_on_where_the_state_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        let mut curve = Curve::open(folder.path(), 0).unwrap();
        for step in 1..=4 {
            curve.push(Point {
                step,
                loss: 1.0 / step as f64,
                rate: 1e-3,
                norm: 0.5,
                validation: None,
            });
        }
        curve.validated(0.75);
        curve.save().unwrap();
        let again = Curve::open(folder.path(), 3).unwrap();
        assert_eq!(again.points, curve.points[..3]);
        assert_eq!(Curve::open(folder.path(), 4).unwrap().points[3].validation, Some(0.75));
        let svg = std::fs::read_to_string(folder.path().join("curve.svg")).unwrap();
        assert!(svg.contains("polyline") && svg.contains("validation"));
    }
}
