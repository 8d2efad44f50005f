//! Markdown tables of walks.

use std::fmt::Write;

use kontext_core::Result;

use super::{Drift, Score};
use crate::cell::markdown;
use crate::statistics::Estimate;

/// A number from the scores, and its format.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// Decimal places.
    pub digits: usize,
    pub(super) of: fn(&Score) -> Option<f64>,
}

impl Column {
    /// PSNR to the truth of the turn, in dB.
    pub const PSNR: Self = Self {
        name: "PSNR",
        digits: 1,
        of: |score| score.truth.psnr,
    };
    /// SSIM to the truth of the turn.
    pub const SSIM: Self = Self {
        name: "SSIM",
        digits: 3,
        of: |score| Some(score.truth.ssim),
    };
    /// PDist to the truth of the turn.
    pub const DISTANCE: Self = Self {
        name: "PDist",
        digits: 3,
        of: |score| score.truth.distance,
    };
    /// Identity with the truth of the turn.
    pub const IDENTITY: Self = Self {
        name: "identity",
        digits: 3,
        of: |score| score.truth.identity,
    };
    /// PSNR to the first image where the truth agrees with it, in dB.
    pub const UNTOUCHED: Self = Self {
        name: "untouched, PSNR",
        digits: 1,
        of: |score| score.start.psnr,
    };
    /// SSIM to the first image.
    pub const START_SSIM: Self = Self {
        name: "turn 0, SSIM",
        digits: 3,
        of: |score| Some(score.start.ssim),
    };
    /// PDist to the first image.
    pub const START_DISTANCE: Self = Self {
        name: "turn 0, PDist",
        digits: 3,
        of: |score| score.start.distance,
    };
    /// Identity with the first image.
    pub const START_IDENTITY: Self = Self {
        name: "turn 0, identity",
        digits: 3,
        of: |score| score.start.identity,
    };
    /// All columns.
    pub const ALL: [Self; 8] = [
        Self::PSNR,
        Self::SSIM,
        Self::DISTANCE,
        Self::IDENTITY,
        Self::UNTOUCHED,
        Self::START_SSIM,
        Self::START_DISTANCE,
        Self::START_IDENTITY,
    ];

    /// Formats a cell, such as `23.4 [22.9, 23.9]`; a dash for `None`.
    fn cell(&self, estimate: Option<Estimate>, sign: bool) -> String {
        let digits = self.digits;
        let number = |value: f64| {
            if sign {
                format!("{value:+.digits$}")
            } else {
                format!("{value:.digits$}")
            }
        };
        match estimate {
            Some(Estimate { value, low, high }) => format!("{} [{}, {}]", number(value), number(low), number(high)),
            None => "-".to_owned(),
        }
    }
}

impl Drift {
    /// Formats a table with a row for each turn and a column for each method.
    ///
    /// # Errors
    /// Same as [`Drift::curve`].
    pub fn turn_table(&self, column: &Column) -> Result<String> {
        let methods: Vec<&str> = self.methods().collect();
        let mut rows = Vec::new();
        for turn in 0..self.turns() {
            let cell = |method: &&str| Ok(column.cell(self.estimate(method, column, turn)?, false));
            rows.push((
                format!("{}", turn + 1),
                methods.iter().map(cell).collect::<Result<_>>()?,
            ));
        }
        Ok(table("turn", &methods, &rows))
    }

    /// Formats the last turn: a row for each method, and a column for each [`Column`] with values.
    ///
    /// # Errors
    /// Same as [`Drift::curve`].
    pub fn last_table(&self) -> Result<String> {
        let last = self.turns().saturating_sub(1);
        self.rows(|method, column| Ok(column.cell(self.estimate(method, column, last)?, false)))
    }

    /// Formats the differences of each method from `than` in the last turn of the same walks.
    ///
    /// # Errors
    /// Same as [`Drift::curve`].
    pub fn difference_table(&self, than: &str) -> Result<String> {
        let last = self.turns().saturating_sub(1);
        self.rows(|method, column| {
            let difference = if method == than {
                None
            } else {
                self.difference(method, than, column, last)?
            };
            Ok(column.cell(difference, true))
        })
    }

    fn rows(&self, cell: impl Fn(&str, &Column) -> Result<String>) -> Result<String> {
        let mut columns = Vec::new();
        for column in Column::ALL {
            let cells = self
                .methods()
                .map(|method| cell(method, &column))
                .collect::<Result<Vec<_>>>()?;
            if cells.iter().any(|cell| cell != "-") {
                columns.push((column.name, cells));
            }
        }
        let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
        let row = |(index, method): (usize, &str)| {
            (
                method.to_owned(),
                columns
                    .iter()
                    .filter_map(|(_, cells)| cells.get(index).cloned())
                    .collect(),
            )
        };
        let rows: Vec<(String, Vec<String>)> = self.methods().enumerate().map(row).collect();
        Ok(table("method", &names, &rows))
    }
}

fn table(first: &str, columns: &[&str], rows: &[(String, Vec<String>)]) -> String {
    let mut text = format!(
        "| {first} | {} |\n| --- |{}\n",
        columns
            .iter()
            .map(|column| markdown(column))
            .collect::<Vec<_>>()
            .join(" | "),
        " ---: |".repeat(columns.len())
    );
    for (name, cells) in rows {
        // Writing to a string does not fail.
        let _ = writeln!(text, "| {} | {} |", markdown(name), cells.join(" | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};

    use super::*;
    use crate::drift::{Networks, Walk};
    use crate::metrics::Embedder;

    fn plain(level: u8) -> RgbImage {
        RgbImage::from_pixel(16, 16, Rgb([level; 3]))
    }

    /// Creates two walks of two turns, back to the start; one method errs by 10 levels per turn, the other by
    /// none.
    fn drift() -> Drift {
        let mut drift = Drift::new();
        for start in [50, 60] {
            let truths = [plain(start + 100), plain(start)];
            for (method, error) in [("off", 10), ("exact", 0)] {
                let results = [plain(start + 100 + error), plain(start + 2 * error)];
                drift
                    .add(
                        method,
                        Walk {
                            start: &plain(start),
                            truths: &truths,
                            results: &results,
                        },
                        Networks::default(),
                    )
                    .unwrap();
            }
        }
        drift
    }

    #[test]
    fn tables_have_a_row_for_each_turn_and_for_each_method() {
        let drift = drift();
        assert_eq!((drift.walks("off"), drift.turns()), (2, 2));
        assert_eq!(
            drift.turn_table(&Column::PSNR).unwrap(),
            "| turn | off | exact |\n| --- | ---: | ---: |\n\
             | 1 | 28.1 [28.1, 28.1] | 60.0 [60.0, 60.0] |\n\
             | 2 | 22.1 [22.1, 22.1] | 60.0 [60.0, 60.0] |\n"
        );
        // If the truth nowhere agrees with the first image, there is nothing untouched.
        let untouched = drift.turn_table(&Column::UNTOUCHED).unwrap();
        assert!(
            untouched.contains("| 1 | - | - |\n| 2 | 22.1 [22.1, 22.1] | 60.0"),
            "{untouched}"
        );
        // Without a network, its columns are left out.
        let last = drift.last_table().unwrap();
        assert!(
            last.starts_with("| method | PSNR | SSIM | untouched, PSNR | turn 0, SSIM |\n"),
            "{last}"
        );
    }

    #[test]
    fn differences_are_those_of_the_same_walks() {
        let table = drift().difference_table("exact").unwrap();
        assert!(table.contains("| off | -37.9 [-37.9, -37.9] | "), "{table}");
        assert!(table.contains("| exact | - | "), "{table}");
    }

    /// A network to which an image is the direction of its brightness; black has no subject.
    struct Brightness;

    impl Embedder for Brightness {
        fn name(&self) -> &str {
            "brightness"
        }

        fn embed(&self, images: &[&RgbImage]) -> Result<Vec<Vec<f32>>> {
            let level = |image: &&RgbImage| f32::from(image.get_pixel(0, 0)[0]) / 100.0;
            let vector = |level: f32| {
                if level > 0.0 {
                    vec![level.cos(), level.sin()]
                } else {
                    Vec::new()
                }
            };
            Ok(images.iter().map(level).map(vector).collect())
        }
    }

    #[test]
    fn identity_with_the_first_image_is_told_turn_by_turn() {
        let mut drift = Drift::new();
        let networks = Networks {
            embedder: Some(&Brightness),
            ..Networks::default()
        };
        let walk = Walk {
            start: &plain(100),
            truths: &[plain(100), plain(100), plain(100)],
            results: &[plain(100), plain(200), plain(0)],
        };
        drift.add("a", walk, networks).unwrap();
        // cos(1 rad) = 0.540; without a subject there is no value.
        let table = drift.turn_table(&Column::START_IDENTITY).unwrap();
        assert!(
            table.ends_with("| 1 | 1.000 [1.000, 1.000] |\n| 2 | 0.540 [0.540, 0.540] |\n| 3 | - |\n"),
            "{table}"
        );
    }

    #[test]
    fn a_walk_needs_a_result_for_each_turn() {
        let start = plain(1);
        let walk = Walk {
            start: &start,
            truths: &[plain(2)],
            results: &[],
        };
        let error = Drift::new()
            .add("none", walk, Networks::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("got 0 results and 1 truths"), "{error}");
        assert!(Drift::new().curve("none", &Column::PSNR).unwrap().is_empty());
        assert!(drift().curve("none", &Column::PSNR).is_err());
    }
}
