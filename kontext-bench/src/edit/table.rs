//! Means over many edits, by category.

use std::collections::BTreeMap;
use std::fmt;

use crate::cell::markdown;
use crate::edit::EditScore;
use crate::statistics::PSNR_CAP;

/// Scores by category, in alphabetical order.
#[derive(Debug, Clone, Default)]
pub struct Table {
    rows: BTreeMap<String, Vec<EditScore>>,
}

/// Means over a category's edits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mean {
    /// Number of edits.
    pub count: usize,
    /// Share of results nearest to the truth.
    pub right: f64,
    /// Share of results nearest to the source.
    pub copied: f64,
    /// PSNR of the results against the truth, in dB.
    pub psnr: f64,
    /// PSNR gain over copying the source, in dB, over the edits whose source and truth differ.
    pub gain: Option<f64>,
    /// PSNR deficit to the autoencoder's reconstruction of the truth, in dB.
    pub behind_reconstruction: f64,
    /// PSNR of the results against the sources over the pixels that should stay the same, in dB.
    pub untouched: Option<f64>,
}

impl Table {
    /// Creates an empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an edit.
    pub fn add(&mut self, category: impl Into<String>, score: EditScore) {
        self.rows.entry(category.into()).or_default().push(score);
    }

    /// Returns the categories.
    pub fn categories(&self) -> impl Iterator<Item = &str> {
        self.rows.keys().map(String::as_str)
    }

    /// Averages all edits whose category begins with `prefix`; `None` if there are none.
    #[must_use]
    pub fn mean(&self, prefix: &str) -> Option<Mean> {
        let named = self.rows.iter().filter(|(name, _)| name.starts_with(prefix));
        let scores: Vec<EditScore> = named.flat_map(|(_, scores)| scores.iter().copied()).collect();
        let share = |holds: fn(&EditScore) -> bool| average(scores.iter().map(|s| f64::from(u8::from(holds(s)))));
        Some(Mean {
            count: scores.len(),
            right: share(|s| s.right)?,
            copied: share(|s| s.copied)?,
            psnr: average(scores.iter().map(|s| s.psnr.min(PSNR_CAP)))?,
            gain: average(
                scores
                    .iter()
                    .filter_map(|s| Some(s.psnr.min(PSNR_CAP) - s.copy_psnr?.min(PSNR_CAP))),
            ),
            behind_reconstruction: average(
                scores
                    .iter()
                    .map(|s| s.reconstruction_psnr.min(PSNR_CAP) - s.psnr.min(PSNR_CAP)),
            )?,
            untouched: average(scores.iter().filter_map(|s| Some(s.untouched_psnr?.min(PSNR_CAP)))),
        })
    }
}

fn average(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0_usize, 0.0), |(count, sum), value| (count + 1, sum + value));
    (count > 0).then(|| sum / count as f64)
}

/// Formats the table as Markdown: a row for each category, and before each group of categories a row for
/// their common prefix up to the slash.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| edits | n | right | copied | PSNR | over copying | behind the autoencoder | untouched |"
        )?;
        writeln!(f, "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")?;
        let mut group = "";
        for category in self.categories() {
            let prefix = category.split_once('/').map_or(category, |(prefix, _)| prefix);
            if prefix != group && prefix != category {
                line(
                    f,
                    &format!("**{}**", markdown(prefix)),
                    self.mean(&format!("{prefix}/")),
                )?;
            }
            group = prefix;
            line(f, &markdown(category), self.mean(category))?;
        }
        line(f, "**all**", self.mean(""))
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, mean: Option<Mean>) -> fmt::Result {
    let Some(mean) = mean else { return Ok(()) };
    let decibels = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.1}"));
    writeln!(
        f,
        "| {name} | {} | {:.0} % | {:.0} % | {:.1} | {} | {:.1} | {} |",
        mean.count,
        100.0 * mean.right,
        100.0 * mean.copied,
        mean.psnr,
        decibels(mean.gain),
        mean.behind_reconstruction,
        decibels(mean.untouched)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(right: bool, psnr: f64) -> EditScore {
        EditScore {
            right,
            copied: !right,
            mistaken_for: None,
            psnr,
            copy_psnr: Some(10.0),
            reconstruction_psnr: 30.0,
            untouched_psnr: (!right).then_some(f64::INFINITY),
        }
    }

    #[test]
    fn means_go_by_the_beginning_of_the_category() {
        let mut table = Table::new();
        table.add("local/hair", score(true, 20.0));
        table.add("local/tone", score(false, 24.0));
        table.add("text/sign", score(true, 26.0));
        let mean = table.mean("local/").unwrap();
        assert_eq!((mean.count, mean.right, mean.copied, mean.psnr), (2, 0.5, 0.5, 22.0));
        assert_eq!(
            (mean.gain, mean.behind_reconstruction, mean.untouched),
            (Some(12.0), 8.0, Some(60.0))
        );
        assert_eq!(table.mean("style"), None);
        let text = table.to_string();
        assert!(
            text.contains("| **local** | 2 | 50 % | 50 % | 22.0 | 12.0 | 8.0 | 60.0 |"),
            "{text}"
        );
        assert!(
            text.ends_with("| **all** | 3 | 67 % | 33 % | 23.3 | 13.3 | 6.7 | 60.0 |\n"),
            "{text}"
        );
    }
}
