//! SVG plot of quality by computed operations.

use kontext_core::{Error, Result};
use plotters::prelude::*;

use super::Table;
use crate::drift::plot::{COLOURS, Drawn, LEGEND, draw_legend};

/// Size of the plot without its legend, in pixels.
const SIZE: (u32, u32) = (760, 420);

/// Draws PSNR to the exact run by the share of its operations: a curve for each family of modes, in the order of the
/// table, through its rows from the fewest operations to the most.
///
/// # Errors
/// [`Error::InvalidArgument`] if the table has no rows, or plotters fails.
pub fn plot(table: &Table) -> Result<String> {
    let curves = curves(table);
    if curves.is_empty() {
        return Err(Error::invalid("table", "rows", "none"));
    }
    let mut svg = String::new();
    draw(&mut svg, &curves).map_err(|e| Error::invalid("table", "curves that plotters can draw", e))?;
    Ok(svg)
}

/// A family's name, with shares in percent and decibels.
type Curve<'a> = (&'a str, Vec<(f64, f64)>);

fn curves(table: &Table) -> Vec<Curve<'_>> {
    let mut curves: Vec<Curve<'_>> = Vec::new();
    for row in &table.rows {
        let point = (100.0 * row.flops, row.fidelity.psnr.mean);
        match curves.iter_mut().find(|(family, _)| *family == row.family) {
            Some((_, points)) => points.push(point),
            None => curves.push((&row.family, vec![point])),
        }
    }
    for (_, points) in &mut curves {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    curves
}

fn draw(svg: &mut String, curves: &[Curve<'_>]) -> Drawn {
    let whole = SVGBackend::with_string(svg, (SIZE.0, LEGEND + SIZE.1)).into_drawing_area();
    whole.fill(&WHITE)?;
    let (legend, area) = whole.split_vertically(LEGEND);
    let names: Vec<&str> = curves.iter().map(|(name, _)| *name).collect();
    draw_legend(&legend, &names)?;
    let points = || curves.iter().flat_map(|(_, points)| points);
    let decibels = || points().map(|(_, decibels)| *decibels);
    let (low, high) = (decibels().fold(f64::MAX, f64::min), decibels().fold(f64::MIN, f64::max));
    let margin = 0.05 * (high - low).max(1.0);
    let most = points().map(|(share, _)| *share).fold(100.0, f64::max);
    let mut builder = ChartBuilder::on(&area);
    builder.margin(12).x_label_area_size(38).y_label_area_size(52);
    let mut chart = builder.build_cartesian_2d(0.0..most, low - margin..high + margin)?;
    chart
        .configure_mesh()
        .x_desc("operations, % of the exact run's")
        .y_desc("PSNR to the exact run, dB")
        .light_line_style(WHITE)
        .draw()?;
    for ((_, points), colour) in curves.iter().zip(COLOURS.iter().cycle()) {
        chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
        let circle = |point: &(f64, f64)| Circle::new(*point, 3, colour.filled());
        chart.draw_series(points.iter().map(circle))?;
    }
    whole.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reuse::{Fidelity, Row};
    use crate::statistics::Summary;

    fn row(family: &str, flops: f64, decibels: f64) -> Row {
        let of = |value: f64| Summary::of(&[value, value]).unwrap();
        Row {
            mode: format!("{family}:{flops}"),
            family: family.to_owned(),
            computed: 28.0 * flops,
            flops,
            fidelity: Fidelity {
                psnr: of(decibels),
                ssim: of(0.9),
                pdist: None,
            },
            psnr: of(25.0),
            nearest: of(1.0),
        }
    }

    #[test]
    fn each_family_is_a_curve_and_a_name() {
        let one = Summary::of(&[1.0]).unwrap();
        let mut table = Table {
            steps: 28,
            psnr: one,
            nearest: one,
            pdist: None,
            rows: vec![
                row("magcache", 0.6, 40.0),
                row("taylor", 0.3, 30.0),
                row("magcache", 0.5, 38.0),
            ],
        };
        assert_eq!(
            curves(&table),
            [
                ("magcache", vec![(50.0, 38.0), (60.0, 40.0)]),
                ("taylor", vec![(30.0, 30.0)])
            ]
        );
        let svg = plot(&table).unwrap();
        assert_eq!(svg.matches("<circle").count(), 3, "{svg}");
        assert!(svg.contains("magcache") && svg.contains("taylor") && svg.contains("dB"));
        table.rows.clear();
        assert!(plot(&table).unwrap_err().to_string().contains("rows"));
    }
}
