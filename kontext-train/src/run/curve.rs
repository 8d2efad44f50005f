//! Training curves: a CSV file and a plot of it.

use std::path::{Path, PathBuf};

use kontext_core::{Error, Result, Tensor, write_file};
use plotters::prelude::*;

use super::{CriticReport, Snapshot};

const HEADER: &str = "step,loss,learning_rate,gradient_norm,validation_loss";
/// Further columns of a run against a critic.
const CRITIC_HEADER: &str = ",student_term,critic_loss,paired_accuracy,critic_gradient_norm";
/// Name of the critic's part of the points, [steps, 4] in f64.
const CRITIC_RECORD: &str = "curve.critic";
const CRITIC_FIELDS: i64 = 4;
/// Name of the points in the state, [steps, FIELDS] in f64: step, loss, rate, norm, validation loss or [`NONE`].
const RECORD: &str = "curve";
const FIELDS: i64 = 5;
/// No validation loss: a loss is not negative.
const NONE: f64 = -1.0;
/// Window of the running mean in the plot: losses of single steps are noisy.
const SMOOTH: usize = 50;

/// A line of the file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    pub(crate) step: u64,
    pub(crate) loss: f64,
    pub(crate) rate: f64,
    pub(crate) norm: f64,
    /// The critic's part of a step against one.
    pub(crate) critic: Option<CriticReport>,
    pub(crate) validation: Option<f64>,
}

/// The points of a run so far.
#[derive(Debug)]
pub(crate) struct Curve {
    path: PathBuf,
    points: Vec<Point>,
}

impl Curve {
    /// Takes the points up to the state's last step: out of the state, or of `curve.csv` if the state is of a
    /// version that had none in it.
    pub(crate) fn open(folder: &Path, state: Option<&Snapshot>) -> Result<Self> {
        let path = folder.join("curve.csv");
        let Some(state) = state else {
            return Ok(Self {
                path,
                points: Vec::new(),
            });
        };
        let mut points = match state.record(RECORD)? {
            Some(record) => from_record(&record).ok_or_else(|| {
                let reason = format!("its `{RECORD}` has shape {:?}, expected [steps, 5]", record.size());
                Error::config(state.path(), reason)
            })?,
            None if path.is_file() => {
                let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
                text.lines().skip(1).filter_map(parse).collect()
            }
            None => Vec::new(),
        };
        if let Some(record) = state.record(CRITIC_RECORD)? {
            attach(&mut points, &record).ok_or_else(|| {
                let reason = format!(
                    "its `{CRITIC_RECORD}` has shape {:?}, expected [steps, 4]",
                    record.size()
                );
                Error::config(state.path(), reason)
            })?;
        }
        points.retain(|point| point.step <= state.step);
        Ok(Self { path, points })
    }

    /// Returns the points so far.
    pub(crate) fn points(&self) -> &[Point] {
        &self.points
    }

    /// Returns the points as tensors for the state.
    pub(crate) fn records(&self) -> Result<Vec<(String, Tensor)>> {
        let mut records = vec![self.record()?];
        let critic: Vec<f64> = self.points.iter().filter_map(|p| p.critic).flat_map(fields).collect();
        if !critic.is_empty() {
            let critic = Tensor::f_from_slice(&critic)?.f_reshape([-1, CRITIC_FIELDS])?;
            records.push((CRITIC_RECORD.to_owned(), critic));
        }
        Ok(records)
    }

    fn record(&self) -> Result<(String, Tensor)> {
        let row = |p: &Point| [p.step as f64, p.loss, p.rate, p.norm, p.validation.unwrap_or(NONE)];
        let values: Vec<f64> = self.points.iter().flat_map(row).collect();
        Ok((
            RECORD.to_owned(),
            Tensor::f_from_slice(&values)?.f_reshape([-1, FIELDS])?,
        ))
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

    /// Brings the files to these points if they are of others, as after a run that was killed while it saved.
    pub(crate) fn restore(&self) -> Result<()> {
        let text = std::fs::read_to_string(&self.path);
        if text.is_ok_and(|text| text == self.text()) && self.path.with_extension("svg").is_file() {
            return Ok(());
        }
        self.save()
    }

    fn text(&self) -> String {
        let has_critic = self.points.iter().any(|p| p.critic.is_some());
        let mut text = format!("{HEADER}{}\n", if has_critic { CRITIC_HEADER } else { "" });
        for p in &self.points {
            let validation = p.validation.map(|v| v.to_string()).unwrap_or_default();
            text.push_str(&format!("{},{},{},{},{validation}", p.step, p.loss, p.rate, p.norm));
            for value in p.critic.map(fields).into_iter().flatten() {
                text.push_str(&format!(",{value}"));
            }
            text.push('\n');
        }
        text
    }

    /// Writes the file, after `curve.svg` next to it.
    pub(crate) fn save(&self) -> Result<()> {
        let path = self.path.with_extension("svg");
        let svg = self.plot().map_err(|e| Error::Image {
            path: path.clone(),
            reason: e,
        })?;
        write_file(&path, svg.as_bytes())?;
        write_file(&self.path, self.text().as_bytes())
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

fn fields(critic: CriticReport) -> [f64; CRITIC_FIELDS as usize] {
    [
        critic.student_loss,
        critic.critic_loss,
        critic.accuracy,
        critic.critic_norm,
    ]
}

/// Adds the critic's part, of which there is one for each point.
fn attach(points: &mut [Point], record: &Tensor) -> Option<()> {
    let &[rows, CRITIC_FIELDS] = record.size().as_slice() else {
        return None;
    };
    let values = Vec::<f64>::try_from(record.f_reshape([-1]).ok()?).ok()?;
    if rows != points.len() as i64 {
        return None;
    }
    for (point, row) in points.iter_mut().zip(values.chunks(CRITIC_FIELDS as usize)) {
        let &[student_loss, critic_loss, accuracy, critic_norm] = row else {
            return None;
        };
        point.critic = Some(CriticReport {
            student_loss,
            critic_loss,
            accuracy,
            critic_norm,
        });
    }
    Some(())
}

fn from_record(record: &Tensor) -> Option<Vec<Point>> {
    let &[_, FIELDS] = record.size().as_slice() else {
        return None;
    };
    let values = Vec::<f64>::try_from(record.f_reshape([-1]).ok()?).ok()?;
    let point = |row: &[f64]| {
        let &[step, loss, rate, norm, validation] = row else {
            return None;
        };
        Some(Point {
            step: step as u64,
            loss,
            rate,
            norm,
            critic: None,
            validation: (validation != NONE).then_some(validation),
        })
    };
    values.chunks(FIELDS as usize).map(point).collect()
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
        critic: None,
        validation: number(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A curve of these points in the folder, the last one with a validation.
    fn curve(folder: &Path, steps: u64) -> Curve {
        let mut curve = Curve::open(folder, None).unwrap();
        for step in 1..=steps {
            curve.push(Point {
                step,
                loss: 1.0 / step as f64,
                rate: 1e-3,
                norm: 0.5,
                critic: None,
                validation: None,
            });
        }
        curve.validated(0.75);
        curve
    }

    fn state(folder: &Path, records: Vec<(String, Tensor)>, step: u64) -> Snapshot {
        let path = folder.join("state.safetensors");
        Snapshot::save_learners(&path, &[], records, step, &BTreeMap::new()).unwrap();
        Snapshot::open(&path).unwrap()
    }

    #[test]
    fn the_files_are_those_of_the_state_whatever_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let csv = folder.path().join("curve.csv");
        let saved = curve(folder.path(), 4);
        let state = state(folder.path(), vec![saved.record().unwrap()], 4);
        // A run that was killed between the curve and its state leaves more steps; others may be lost.
        for steps in [None, Some(2), Some(6)] {
            let _ = std::fs::remove_file(&csv);
            if let Some(steps) = steps {
                curve(folder.path(), steps).save().unwrap();
            }
            let again = Curve::open(folder.path(), Some(&state)).unwrap();
            assert_eq!(again.points, saved.points);
            again.restore().unwrap();
            let text = std::fs::read_to_string(&csv).unwrap();
            assert_eq!((text.lines().count(), text), (5, saved.text()));
            let svg = std::fs::read_to_string(folder.path().join("curve.svg")).unwrap();
            assert!(svg.contains("polyline") && svg.contains("validation"));
        }
    }

    #[test]
    fn a_state_without_a_curve_takes_the_files_up_to_its_step() {
        let folder = tempfile::tempdir().unwrap();
        let saved = curve(folder.path(), 4);
        saved.save().unwrap();
        let state = state(folder.path(), Vec::new(), 3);
        let again = Curve::open(folder.path(), Some(&state)).unwrap();
        assert_eq!(again.points, saved.points[..3]);
        let (folder, state) = (tempfile::tempdir().unwrap(), state);
        assert!(Curve::open(folder.path(), Some(&state)).unwrap().points.is_empty());
    }
}
