//! Guidance distillation: a student with a guidance embedding learns the velocity that its teacher has under
//! classifier-free guidance.
//!
//! Source: arXiv 2210.03142 section 3.1 (a student of the guided model, by a value drawn from a range), as
//! FLUX.1 [dev] is described in arXiv 2506.15742 section 3.

use kontext_core::range::within;
use kontext_core::{Error, Result};
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::flow::{Density, FlowObjective, Weighting};
use crate::run::random::uniform;

/// The objective of guidance distillation: one pass of the student instead of two of the teacher.
///
/// The teacher is the base model under true classifier-free guidance, away from the empty prompt with the
/// same reference images. A base model without a guidance embedding gets one, which changes nothing at first;
/// that takes `method.kind = "full"`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuidedObjective {
    /// Lowest guidance, from 0 to 100. Each batch has a value drawn evenly from the range. Default 1.
    pub lowest: f64,
    /// Highest guidance, from the lowest to 100. Default 5.
    pub highest: f64,
    /// Embedded guidance of a teacher that has an embedding, from 0 to 100. Default 1.
    pub teacher_guidance: f64,
    /// Density of the noise levels. Default: logit-normal, mean 0 and deviation 1.
    pub density: Density,
    /// If set, shifts levels towards noise as the model's schedule does for the target's size. Default: set.
    pub resolution_shift: bool,
    /// If set, spreads the levels of a batch evenly over the density. Default: set.
    pub stratified: bool,
    /// Weight of each level. Default: the same for all.
    pub weighting: Weighting,
}

impl Default for GuidedObjective {
    fn default() -> Self {
        let FlowObjective {
            density,
            resolution_shift,
            stratified,
            weighting,
            ..
        } = FlowObjective::default();
        Self {
            lowest: 1.0,
            highest: 5.0,
            teacher_guidance: 1.0,
            density,
            resolution_shift,
            stratified,
            weighting,
        }
    }
}

impl GuidedObjective {
    /// Checks the values.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], naming the field.
    pub fn validate(&self) -> Result<()> {
        within("objective.lowest", self.lowest, 0.0..=100.0)?;
        within("objective.highest", self.highest, 0.0..=100.0)?;
        if self.highest < self.lowest {
            let expected = format!("at least objective.lowest, {}", self.lowest);
            return Err(Error::invalid("objective.highest", expected, self.highest));
        }
        within("objective.teacher_guidance", self.teacher_guidance, 0.0..=100.0)?;
        self.flow().validate()
    }

    /// Returns the middle of the range.
    pub(super) fn middle(&self) -> f64 {
        0.5 * (self.lowest + self.highest)
    }

    /// Returns the flow objective with these noise levels.
    pub(super) fn flow(&self) -> FlowObjective {
        FlowObjective {
            density: self.density,
            resolution_shift: self.resolution_shift,
            stratified: self.stratified,
            weighting: self.weighting,
            ..FlowObjective::default()
        }
    }

    /// Draws the guidance of a batch.
    pub(super) fn draw_guidance(&self, rng: &mut impl Rng) -> f64 {
        self.lowest + (self.highest - self.lowest) * uniform(rng)
    }
}
