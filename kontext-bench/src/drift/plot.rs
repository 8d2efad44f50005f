//! SVG plots of curves over turns.

use kontext_core::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::{Column, Drift};
use crate::statistics::Estimate;

/// Okabe and Ito's colour-blind-safe palette.
pub(crate) const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 0, 0),
];
/// Size of one panel in pixels.
const PANEL: (u32, u32) = (520, 340);
/// Height of the legend above the panels, in pixels.
pub(crate) const LEGEND: u32 = 34;

/// One plot among several.
#[derive(Debug, Clone, Copy)]
pub struct Panel<'a> {
    /// The panel's title, above the plot.
    pub title: &'a str,
    /// The walks.
    pub drift: &'a Drift,
    /// The plotted column.
    pub column: Column,
}

pub(crate) type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// Draws panels side by side, two in a row: a curve per method with its interval as a band. The legend at the
/// top names the methods of the first panel.
///
/// # Errors
/// [`Error::InvalidArgument`] if a panel has no values, or plotters fails.
pub fn plot(panels: &[Panel<'_>]) -> Result<String> {
    let curves = panels.iter().map(curves).collect::<Result<Vec<_>>>()?;
    let rows = panels.len().div_ceil(2).max(1);
    let columns = panels.len().clamp(1, 2);
    let mut svg = String::new();
    let draw = |svg: &mut String| -> Drawn {
        let size = (PANEL.0 * columns as u32, LEGEND + PANEL.1 * rows as u32);
        let whole = SVGBackend::with_string(svg, size).into_drawing_area();
        whole.fill(&WHITE)?;
        let (legend, area) = whole.split_vertically(LEGEND);
        let first = curves.first().map(Vec::as_slice).unwrap_or_default();
        draw_legend(
            &legend,
            &first.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        )?;
        for ((part, panel), curves) in area.split_evenly((rows, columns)).iter().zip(panels).zip(&curves) {
            draw_panel(part, panel, curves)?;
        }
        whole.present()?;
        Ok(())
    };
    draw(&mut svg).map_err(|e| Error::invalid("panels", "curves that plotters can draw", e))?;
    Ok(svg)
}

/// A method's name with its estimates by turn.
type Curve = (String, Vec<(f64, Estimate)>);

fn curves(panel: &Panel<'_>) -> Result<Vec<Curve>> {
    let Panel { drift, column, .. } = panel;
    let mut curves = Vec::new();
    for method in drift.methods() {
        let mut points = Vec::new();
        for turn in 0..drift.turns() {
            points.extend(
                drift
                    .estimate(method, column, turn)?
                    .map(|estimate| ((turn + 1) as f64, estimate)),
            );
        }
        curves.push((method.to_owned(), points));
    }
    if curves.iter().all(|(_, points)| points.is_empty()) {
        return Err(Error::invalid(
            "panel",
            "walks with values",
            format!("none of {}", column.name),
        ));
    }
    Ok(curves)
}

fn draw_panel(area: &DrawingArea<SVGBackend<'_>, Shift>, panel: &Panel<'_>, curves: &[Curve]) -> Drawn {
    let estimates = || curves.iter().flat_map(|(_, points)| points);
    let (low, high) = estimates().fold((f64::MAX, f64::MIN), |(low, high), (_, e)| {
        (low.min(e.low), high.max(e.high))
    });
    let last = estimates().map(|(turn, _)| *turn).fold(1.0, f64::max);
    let margin = 0.05 * (high - low).max(1e-6);
    let mut builder = ChartBuilder::on(area);
    builder
        .margin(12)
        .caption(panel.title, ("sans-serif", 16))
        .x_label_area_size(34)
        .y_label_area_size(52);
    let mut chart = builder.build_cartesian_2d(0.8..last + 0.2, low - margin..high + margin)?;
    let whole = |turn: &f64| format!("{turn:.0}");
    chart
        .configure_mesh()
        .x_desc("turn")
        .y_desc(panel.column.name)
        .x_labels(last as usize)
        .x_label_formatter(&whole)
        .light_line_style(WHITE)
        .draw()?;
    for ((_, points), colour) in curves.iter().zip(COLOURS.iter().cycle()) {
        let upper = points.iter().map(|(turn, e)| (*turn, e.high));
        let lower = points.iter().rev().map(|(turn, e)| (*turn, e.low));
        chart.draw_series([Polygon::new(upper.chain(lower).collect::<Vec<_>>(), colour.mix(0.12))])?;
        chart.draw_series(LineSeries::new(
            points.iter().map(|(turn, e)| (*turn, e.value)),
            colour.stroke_width(2),
        ))?;
    }
    Ok(())
}

/// Draws the legend as one row of line samples, each followed by its name. Inside a panel it would cover the
/// curves.
pub(crate) fn draw_legend(area: &DrawingArea<SVGBackend<'_>, Shift>, names: &[&str]) -> Drawn {
    const LINE: i32 = 20;
    const GAP: i32 = 6;
    let width = area.dim_in_pixel().0 as usize / names.len().max(1);
    let (line, text) = (LEGEND as i32 / 2 + 3, LEGEND as i32 / 2 - 4);
    for (index, (name, colour)) in names.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let left = (index * width) as i32 + 2 * GAP;
        area.draw(&PathElement::new(
            vec![(left, line), (left + LINE, line)],
            colour.stroke_width(2),
        ))?;
        area.draw(&Text::new(*name, (left + LINE + GAP, text), ("sans-serif", 14)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};

    use super::*;
    use crate::drift::{Networks, Walk};

    #[test]
    fn each_method_has_a_curve_and_a_band() {
        let plain = |level: u8| RgbImage::from_pixel(16, 16, Rgb([level; 3]));
        let (start, mut drift) = (plain(0), Drift::new());
        for (method, error) in [("fast", 9), ("slow", 3)] {
            let (truths, results) = ([plain(0), plain(0)], [plain(error), plain(2 * error)]);
            drift
                .add(
                    method,
                    Walk {
                        start: &start,
                        truths: &truths,
                        results: &results,
                    },
                    Networks::default(),
                )
                .unwrap();
        }
        let panel = Panel {
            title: "back & forth",
            drift: &drift,
            column: Column::PSNR,
        };
        let svg = plot(&[panel, panel, panel]).unwrap();
        assert!(
            svg.contains("width=\"1040\" height=\"714\"") && svg.contains("back &amp; forth"),
            "{svg:.300}"
        );
        assert_eq!(svg.matches("<polygon").count(), 6);
        assert!(svg.contains("fast") && svg.contains("slow"));
        assert!(
            plot(&[Panel {
                column: Column::DISTANCE,
                ..panel
            }])
            .is_err()
        );
    }
}
