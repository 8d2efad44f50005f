//! The table of few-step models: quality of a model and its students by number of steps and sampler.

use std::fmt;

use kontext_core::{Error, Result};
use serde::Serialize;

use crate::cell;
use crate::edit::Quality;
use crate::statistics::{Bootstrap, Estimate};

/// A model's results at one number of steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Name of the model.
    pub model: String,
    /// Name of the sampler; empty for images that no sampler made.
    pub sampler: String,
    /// Number of steps; `None` for images that no sampler made.
    pub steps: Option<usize>,
    /// Means over the edits.
    pub quality: Quality,
    /// Mean distance of the results of two seeds, in levels ([`diversity`](crate::metrics::diversity)); `None` if
    /// not measured.
    pub diversity: Option<f64>,
    /// Mean time of a run in seconds; `None` if not measured.
    pub seconds: Option<f64>,
}

/// Rows in their order, with the name of the distance.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    /// Name of the distance ([`Kid::name`](crate::metrics::Kid::name)); `None` without a network.
    pub kid: Option<String>,
    /// The rows.
    pub rows: Vec<Row>,
    /// Index of the row with whose KID those of all are compared; `None` compares none.
    pub baseline: Option<usize>,
}

/// A row as one record of numbers.
#[derive(Serialize)]
struct Record<'a> {
    model: &'a str,
    sampler: &'a str,
    steps: Option<usize>,
    edits: usize,
    psnr: f64,
    psnr_standard_error: f64,
    sharpness: f64,
    sharpness_standard_error: f64,
    nearest: f64,
    nearest_standard_error: f64,
    kid: Option<f64>,
    kid_low: Option<f64>,
    kid_high: Option<f64>,
    kid_above_baseline: Option<f64>,
    kid_above_baseline_low: Option<f64>,
    kid_above_baseline_high: Option<f64>,
    diversity: Option<f64>,
    seconds: Option<f64>,
}

impl<'a> Record<'a> {
    fn new(table: &Table, row: &'a Row) -> Result<Self> {
        let Quality {
            psnr,
            sharpness,
            nearest,
            kid,
        } = &row.quality;
        let kid = kid.as_ref().map(Bootstrap::estimate);
        let above = table.above_baseline(row)?;
        Ok(Self {
            model: &row.model,
            sampler: &row.sampler,
            steps: row.steps,
            edits: psnr.count,
            psnr: psnr.mean,
            psnr_standard_error: psnr.standard_error,
            sharpness: sharpness.mean,
            sharpness_standard_error: sharpness.standard_error,
            nearest: nearest.mean,
            nearest_standard_error: nearest.standard_error,
            kid: kid.map(|kid| kid.value),
            kid_low: kid.map(|kid| kid.low),
            kid_high: kid.map(|kid| kid.high),
            kid_above_baseline: above.map(|above| above.value),
            kid_above_baseline_low: above.map(|above| above.low),
            kid_above_baseline_high: above.map(|above| above.high),
            diversity: row.diversity,
            seconds: row.seconds,
        })
    }
}

impl Table {
    /// Returns how far a row's KID is above that of the baseline, as a paired comparison ([`Bootstrap::minus`]); `None`
    /// for the baseline, without KID or without a baseline.
    ///
    /// # Errors
    /// Those of [`Bootstrap::minus`].
    pub fn above_baseline(&self, row: &Row) -> Result<Option<Estimate>> {
        let baseline = self.baseline.and_then(|index| self.rows.get(index));
        let Some(baseline) = baseline.filter(|baseline| !std::ptr::eq(*baseline, row)) else {
            return Ok(None);
        };
        let pair = row.quality.kid.as_ref().zip(baseline.quality.kid.as_ref());
        let difference = pair.map(|(kid, other)| kid.minus(other)).transpose()?;
        Ok(difference.map(|difference| difference.estimate()))
    }

    /// Formats the rows as CSV, at full precision. Names that a spreadsheet would take for a formula are quoted
    /// ([`cell::csv`]).
    ///
    /// # Errors
    /// [`Error::Bug`] if a row cannot be written.
    pub fn csv(&self) -> Result<String> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        for row in &self.rows {
            let (model, sampler) = (cell::csv(&row.model), cell::csv(&row.sampler));
            let record = Record {
                model: &model,
                sampler: &sampler,
                ..Record::new(self, row)?
            };
            writer.serialize(record).map_err(not_written)?;
        }
        String::from_utf8(writer.into_inner().map_err(not_written)?).map_err(not_written)
    }

    /// Formats the table as JSON, at full precision: the name of the distance, and the rows. Undefined numbers
    /// are null.
    ///
    /// # Errors
    /// [`Error::Bug`] if it cannot be written.
    pub fn json(&self) -> Result<String> {
        #[derive(Serialize)]
        struct Whole<'a> {
            kid: Option<&'a str>,
            rows: Vec<Record<'a>>,
        }
        let whole = Whole {
            kid: self.kid.as_deref(),
            rows: self
                .rows
                .iter()
                .map(|row| Record::new(self, row))
                .collect::<Result<_>>()?,
        };
        let text = serde_json::to_string_pretty(&whole).map_err(not_written)?;
        Ok(format!("{text}\n"))
    }
}

fn not_written(error: impl fmt::Display) -> Error {
    Error::bug(format!("a row of the table of few steps cannot be written: {error}"))
}

/// Formats the table as Markdown. KID is shown in thousandths.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| model | sampler | steps | PSNR | sharpness | nearest | KID·10³ (95 %) | above baseline | diversity | seconds |"
        )?;
        writeln!(
            f,
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
        )?;
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        for row in &self.rows {
            let Quality {
                psnr,
                sharpness,
                nearest,
                kid,
            } = &row.quality;
            let kid = kid.as_ref().map(|kid| thousandths(kid.estimate(), false));
            // Distances of different numbers of draws have no difference.
            let above = self.above_baseline(row).unwrap_or_default();
            writeln!(
                f,
                "| {} | {} | {} | {:.2} | {:.3} | {:.2} ± {:.2} | {} | {} | {} | {} |",
                cell::markdown(&row.model),
                if row.sampler.is_empty() {
                    "-".to_owned()
                } else {
                    cell::markdown(&row.sampler)
                },
                or_dash(row.steps.map(|steps| steps.to_string())),
                psnr.mean,
                sharpness.mean,
                nearest.mean,
                nearest.standard_error,
                or_dash(kid),
                or_dash(above.map(|above| thousandths(above, true))),
                or_dash(row.diversity.map(|levels| format!("{levels:.1}"))),
                or_dash(row.seconds.map(|seconds| format!("{seconds:.3}"))),
            )?;
        }
        let edits = self.rows.first().map_or(0, |row| row.quality.psnr.count);
        match &self.kid {
            Some(name) => write!(f, "\n{edits} edits; KID is {name}"),
            None => write!(f, "\n{edits} edits; KID is empty, because there is no feature network"),
        }?;
        let baseline = self.baseline.and_then(|index| self.rows.get(index));
        if let Some(row) = baseline.filter(|row| row.quality.kid.is_some()) {
            write!(f, "; the baseline is {}", cell::markdown(&row.model))?;
            if let Some(steps) = row.steps {
                write!(f, " at {steps} steps")?;
            }
        }
        writeln!(f, ".")
    }
}

/// Formats an estimate in thousandths, with its interval.
fn thousandths(estimate: Estimate, signed: bool) -> String {
    let text = |value: f64| {
        let value = 1e3 * value;
        if signed {
            format!("{value:+.1}")
        } else {
            format!("{value:.1}")
        }
    };
    let [value, low, high] = [estimate.value, estimate.low, estimate.high].map(text);
    format!("{value} ({low} to {high})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::Summary;

    fn table() -> Table {
        let quality = Quality {
            psnr: Summary::of(&[25.0, 26.0]).unwrap(),
            sharpness: Summary::of(&[0.98, 1.0]).unwrap(),
            nearest: Summary::of(&[1.0, 0.0, 1.0, 1.0]).unwrap(),
            kid: Some(Bootstrap::new(0.0021, vec![0.0015, 0.0027]).unwrap()),
        };
        let student = Row {
            model: "a|b".to_owned(),
            sampler: "euler".to_owned(),
            steps: Some(2),
            quality: quality.clone(),
            diversity: Some(3.25),
            seconds: Some(0.0321),
        };
        let two = Row {
            model: "b".to_owned(),
            quality: Quality {
                kid: Some(Bootstrap::new(0.0011, vec![0.0005, 0.0017]).unwrap()),
                ..quality.clone()
            },
            ..student.clone()
        };
        let reconstruction = Row {
            model: "=autoencoder".to_owned(),
            sampler: String::new(),
            steps: None,
            quality: Quality { kid: None, ..quality },
            diversity: None,
            seconds: None,
        };
        Table {
            kid: Some("kid-squeezenet1.1".to_owned()),
            rows: vec![reconstruction, student, two],
            baseline: Some(1),
        }
    }

    #[test]
    fn rows_are_markdown() {
        let text = table().to_string();
        assert!(
            text.contains("| a\\|b | euler | 2 | 25.50 | 0.990 | 0.75 ± 0.25 | 2.1 (1.5 to 2.7) | - | 3.2 | 0.032 |\n"),
            "{text}"
        );
        assert!(
            text.contains(
                "| b | euler | 2 | 25.50 | 0.990 | 0.75 ± 0.25 | 1.1 (0.5 to 1.7) | -1.0 (-1.0 to -1.0) | 3.2 |"
            ),
            "{text}"
        );
        assert!(
            text.contains("| =autoencoder | - | - | 25.50 | 0.990 | 0.75 ± 0.25 | - | - | - | - |\n"),
            "{text}"
        );
        assert!(
            text.ends_with("\n2 edits; KID is kid-squeezenet1.1; the baseline is a\\|b at 2 steps.\n"),
            "{text}"
        );
        let without = Table {
            kid: None,
            baseline: None,
            ..table()
        };
        let without = without.to_string();
        assert!(
            without.ends_with("KID is empty, because there is no feature network.\n"),
            "{without}"
        );
    }

    #[test]
    fn csv_and_json_hold_the_same_numbers() {
        let csv = table().csv().unwrap();
        let lines: Vec<&str> = csv.lines().collect();
        assert!(
            lines[0].starts_with("model,sampler,steps,edits,psnr,") && lines.len() == 4,
            "{csv}"
        );
        assert!(
            lines[1].starts_with("'=autoencoder,,,2,25.5,") && lines[1].ends_with(",,,,,,,,"),
            "{csv}"
        );
        assert!(
            lines[2].contains(",0.0021,0.00153") && lines[2].ends_with(",,,,3.25,0.0321"),
            "{csv}"
        );
        assert!(lines[3].contains(",0.0011,0.00053"), "{csv}");
        let json: serde_json::Value = serde_json::from_str(&table().json().unwrap()).unwrap();
        assert_eq!(json["kid"], "kid-squeezenet1.1");
        assert_eq!(json["rows"][0]["steps"], serde_json::Value::Null);
        assert_eq!(json["rows"][1]["kid"], 0.0021);
        let above = json["rows"][2]["kid_above_baseline"].as_f64().unwrap();
        assert!((above + 0.001).abs() < 1e-12, "{json}");
    }
}
