//! A judge's scores of one edit.

use kontext_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// Scores of one edit by a judge, such as a vision-language model, each from 0 to 10.
///
/// Source: GEdit-Bench (stepfun-ai/Step1X-Edit `GEdit-Bench`), whose G_SC, G_PQ and G_O are means of these; the scores
/// themselves are those of VIEScore.
///
/// # Example
/// ```
/// use kontext_bench::kontextbench::JudgeScore;
/// let score = JudgeScore::new(9.0, 4.0)?;
/// assert_eq!(score.overall(), 6.0);
/// let error = JudgeScore::new(9.0, 11.0).unwrap_err().to_string();
/// assert_eq!(error, "invalid perceptual_quality: expected a score from 0 to 10, got 11");
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct JudgeScore {
    /// Semantic consistency (SC): the instruction is carried out, and no more than it.
    pub semantic_consistency: f64,
    /// Perceptual quality (PQ): the image looks natural and has no artefacts.
    pub perceptual_quality: f64,
}

impl JudgeScore {
    /// Creates the scores of an edit.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if one is not from 0 to 10.
    pub fn new(semantic_consistency: f64, perceptual_quality: f64) -> Result<Self> {
        let score = Self {
            semantic_consistency,
            perceptual_quality,
        };
        score.check()?;
        Ok(score)
    }

    pub(super) fn check(&self) -> Result<()> {
        for (name, score) in [
            ("semantic_consistency", self.semantic_consistency),
            ("perceptual_quality", self.perceptual_quality),
        ] {
            if !(0.0..=10.0).contains(&score) {
                return Err(Error::invalid(name, "a score from 0 to 10", score));
            }
        }
        Ok(())
    }

    /// Returns the overall score (O): the geometric mean, `sqrt(SC * PQ)`.
    #[must_use]
    pub fn overall(&self) -> f64 {
        (self.semantic_consistency * self.perceptual_quality).sqrt()
    }
}
