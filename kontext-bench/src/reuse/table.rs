//! The table of modes of reuse.

use std::fmt;

use kontext_core::{Error, Result};
use serde::Serialize;

use super::Fidelity;
use crate::cell;
use crate::statistics::Summary;

/// The runs of a mode.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The mode with its parameters.
    pub mode: String,
    /// Name of the mode without parameters: a curve of the plot.
    pub family: String,
    /// Mean number of steps of which some blocks are computed.
    pub computed: f64,
    /// Operations of the transformer, as a share of the exact run's.
    pub flops: f64,
    /// Likeness to the results of the exact run.
    pub fidelity: Fidelity,
    /// PSNR against the truths, in dB.
    pub psnr: Summary,
    /// Share of the results nearest to the truth ([`Quality::nearest`](crate::edit::Quality::nearest)).
    pub nearest: Summary,
}

/// Rows in their order, after the exact run.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Number of steps of all runs.
    pub steps: usize,
    /// PSNR of the exact run against the truths, in dB.
    pub psnr: Summary,
    /// The share of the exact run's results nearest to the truth.
    pub nearest: Summary,
    /// Name of the distance ([`Perceptual::name`](crate::metrics::Perceptual::name)); `None` without a network.
    pub pdist: Option<String>,
    /// The rows.
    pub rows: Vec<Row>,
}

impl Table {
    /// Formats the rows as CSV, at full precision. The exact run is the first.
    ///
    /// # Errors
    /// [`Error::Bug`] if a row cannot be written.
    pub fn csv(&self) -> Result<String> {
        #[derive(Serialize)]
        struct Record<'a> {
            mode: &'a str,
            steps: usize,
            computed: f64,
            flops: f64,
            exact_psnr: Option<f64>,
            exact_psnr_standard_error: Option<f64>,
            exact_ssim: Option<f64>,
            exact_pdist: Option<f64>,
            psnr: f64,
            nearest: f64,
        }
        let mut writer = csv::Writer::from_writer(Vec::new());
        let exact = Record {
            mode: "exact",
            steps: self.steps,
            computed: self.steps as f64,
            flops: 1.0,
            exact_psnr: None,
            exact_psnr_standard_error: None,
            exact_ssim: None,
            exact_pdist: None,
            psnr: self.psnr.mean,
            nearest: self.nearest.mean,
        };
        writer.serialize(exact).map_err(not_written)?;
        for row in &self.rows {
            let Fidelity { psnr, ssim, pdist } = row.fidelity;
            let record = Record {
                mode: &cell::csv(&row.mode),
                steps: self.steps,
                computed: row.computed,
                flops: row.flops,
                exact_psnr: Some(psnr.mean),
                exact_psnr_standard_error: Some(psnr.standard_error),
                exact_ssim: Some(ssim.mean),
                exact_pdist: pdist.map(|pdist| pdist.mean),
                psnr: row.psnr.mean,
                nearest: row.nearest.mean,
            };
            writer.serialize(record).map_err(not_written)?;
        }
        String::from_utf8(writer.into_inner().map_err(not_written)?).map_err(not_written)
    }
}

fn not_written(error: impl fmt::Display) -> Error {
    Error::bug(format!("a row of the table of reuse cannot be written: {error}"))
}

/// Formats the table as Markdown.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| mode | steps computed | operations | fewer by | PSNR to exact | SSIM | PDist | PSNR to truth | nearest |"
        )?;
        writeln!(f, "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")?;
        let truth = |psnr: &Summary, nearest: &Summary| {
            format!("{:.2} | {:.3} ± {:.3}", psnr.mean, nearest.mean, nearest.standard_error)
        };
        let (steps, ends) = (self.steps, truth(&self.psnr, &self.nearest));
        writeln!(f, "| exact | {steps} | 100 % | 1.00 | - | - | - | {ends} |")?;
        for row in &self.rows {
            let Fidelity { psnr, ssim, pdist } = row.fidelity;
            writeln!(
                f,
                "| `{}` | {:.1} | {:.0} % | {:.2} | {:.1} ± {:.1} | {:.4} | {} | {} |",
                row.mode.replace(['`', '|'], " "),
                row.computed,
                100.0 * row.flops,
                1.0 / row.flops,
                psnr.mean,
                psnr.standard_error,
                ssim.mean,
                pdist.map_or("-".to_owned(), |pdist| format!("{:.4}", pdist.mean)),
                truth(&row.psnr, &row.nearest)
            )?;
        }
        let network = self.pdist.as_deref();
        let network = network.map_or(
            "PDist is empty, because there is no feature network".to_owned(),
            |name| format!("PDist is {name}"),
        );
        writeln!(f, "\n{} edits of {steps} steps; {network}.", self.psnr.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let of = |values: &[f64]| Summary::of(values).unwrap();
        Table {
            steps: 28,
            psnr: of(&[25.0, 26.0]),
            nearest: of(&[1.0, 1.0]),
            pdist: None,
            rows: vec![Row {
                mode: "magcache:threshold=0.1".to_owned(),
                family: "magcache".to_owned(),
                computed: 14.0,
                flops: 0.5,
                fidelity: Fidelity {
                    psnr: of(&[40.0, 42.0]),
                    ssim: of(&[0.99, 0.98]),
                    pdist: None,
                },
                psnr: of(&[25.0, 25.5]),
                nearest: of(&[1.0, 0.0]),
            }],
        }
    }

    #[test]
    fn rows_are_markdown_after_the_exact_run() {
        let text = table().to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[2],
            "| exact | 28 | 100 % | 1.00 | - | - | - | 25.50 | 1.000 ± 0.000 |"
        );
        let expected =
            "| `magcache:threshold=0.1` | 14.0 | 50 % | 2.00 | 41.0 ± 1.0 | 0.9850 | - | 25.25 | 0.500 ± 0.500 |";
        assert_eq!(lines[3], expected);
        assert!(
            text.ends_with("\n2 edits of 28 steps; PDist is empty, because there is no feature network.\n"),
            "{text}"
        );
    }

    #[test]
    fn csv_begins_with_the_exact_run() {
        let csv = table().csv().unwrap();
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines[1], "exact,28,28.0,1.0,,,,,25.5,1.0");
        assert!(
            lines[2].starts_with("magcache:threshold=0.1,28,14.0,0.5,41.0,"),
            "{csv}"
        );
    }
}
