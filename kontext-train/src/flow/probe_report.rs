//! Shares of pairs that a critic's heads rank right, and the law of noise levels that follows from them.

use std::fmt;

use crate::objective::Density;

/// Share of held-out pairs ranked right from which heads see at a level.
const SEEN: f64 = 0.6;
/// Quantile of the standard normal distribution with four fifths below it.
const FOUR_FIFTHS: f64 = 0.8416;

/// A level of a [`ProbeReport`].
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeRow {
    /// The noise level.
    pub level: f64,
    /// The critic's loss in its last step.
    pub loss: f64,
    /// Share of held-out pairs that all heads together rank right: 0.5 is chance.
    pub accuracy: f64,
    /// The share of each head, in the order of [`ProbeReport::blocks`].
    pub by_block: Vec<f64>,
    /// Number of held-out pairs.
    pub pairs: usize,
}

/// Shares of held-out pairs that heads rank right, by noise level. It prints as a table.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeReport {
    /// The blocks with a head.
    pub blocks: Vec<usize>,
    /// The levels.
    pub rows: Vec<ProbeRow>,
}

impl ProbeReport {
    /// Returns the highest law for [`AdversarialObjective::critic_density`](crate::AdversarialObjective::critic_density): logit-normal of deviation 1, four
    /// fifths of it below the highest level at which 60 % of the pairs are ranked right, its mean rounded to
    /// a tenth. Higher laws mostly draw levels at which the critic is blind; lower ones draw more of the levels
    /// of fine detail, and can suit a student better that is near the data. `None` if there is no such level.
    ///
    /// ```
    /// use kontext_train::{Density, ProbeReport, ProbeRow};
    ///
    /// let row = |level, accuracy| ProbeRow { level, loss: 0.5, accuracy, by_block: vec![accuracy], pairs: 160 };
    /// let rows = vec![row(0.02, 0.92), row(0.25, 0.66), row(0.5, 0.47)];
    /// let report = ProbeReport { blocks: vec![0], rows };
    /// assert_eq!(report.density(), Some(Density::LogitNormal { mean: -1.9, std: 1.0 }));
    /// ```
    #[must_use]
    pub fn density(&self) -> Option<Density> {
        let seen = self.rows.iter().filter(|row| row.accuracy >= SEEN);
        let highest = seen.map(|row| row.level).max_by(f64::total_cmp)?;
        let mean = (highest / (1.0 - highest)).ln() - FOUR_FIFTHS;
        Some(Density::LogitNormal {
            mean: (10.0 * mean).round() / 10.0,
            std: 1.0,
        })
    }
}

impl fmt::Display for ProbeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "level  pairs ranked right  by block")?;
        for block in &self.blocks {
            write!(f, " {block:>4}")?;
        }
        for row in &self.rows {
            let error = (row.accuracy * (1.0 - row.accuracy) / row.pairs.max(1) as f64).sqrt();
            write!(
                f,
                "\n{:<5.3}  {:.3} ± {error:.3}               ",
                row.level, row.accuracy
            )?;
            for share in &row.by_block {
                write!(f, " {share:.2}")?;
            }
        }
        match self.density() {
            Some(Density::LogitNormal { mean, std }) => write!(
                f,
                "\nhighest law for the recipe: critic_density = {{ kind = \"logit-normal\", mean = {mean:.1}, std = {std:.1} }}"
            ),
            _ => write!(
                f,
                "\nat no level are {:.0} % of the pairs ranked right: a critic would learn nothing from these images",
                100.0 * SEEN
            ),
        }
    }
}
