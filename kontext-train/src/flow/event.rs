//! Events of a training run.

use std::path::PathBuf;

use crate::adversarial::{Quality, Sign};
use crate::dataset::{EncodeProgress, Skipped, UnseenPrompts};
use crate::run::CriticReport;
use crate::warning::RecipeWarning;

/// An event of a training run.
#[derive(Debug)]
#[non_exhaustive]
pub enum TrainEvent<'a> {
    /// A setting of the recipe has no effect. These come first.
    Warning(&'a RecipeWarning),
    /// Progress of encoding images or prompts.
    Encoding(EncodeProgress),
    /// A line or file of the dataset was skipped.
    Skipped(&'a Skipped),
    /// Some prompts of the dataset are not seen whole by an encoder: at most two events of each encoder.
    Unseen(&'a UnseenPrompts),
    /// The data is ready.
    Ready {
        /// Training items.
        training: usize,
        /// Validation items.
        validation: usize,
        /// Number of trained values.
        values: i64,
        /// Steps finished before this run resumed.
        resumed: u64,
    },
    /// A step is finished.
    Step(StepReport),
    /// The held-out loss was measured, by the moving average of the weights.
    Validated {
        /// Finished steps.
        step: u64,
        /// The loss.
        loss: f64,
    },
    /// The quality of held-out results was measured, under [`crate::Objective::Adversarial`].
    Compared(Quality),
    /// A sign that the training against the critic fails.
    Failing {
        /// Finished steps.
        step: u64,
        /// The sign.
        sign: Sign,
    },
    /// The state was saved.
    Saved {
        /// Finished steps.
        step: u64,
        /// The file.
        path: PathBuf,
    },
    /// A due save was left out, because the loss is far above the usual one: the run may be diverging. The state
    /// before is kept.
    NotSaved {
        /// Finished steps.
        step: u64,
        /// The usual loss.
        usual: f64,
    },
    /// A sample grid was written: reference images, result, target.
    Sampled {
        /// Finished steps.
        step: u64,
        /// The file.
        path: PathBuf,
    },
}

/// Report of a training step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Finished steps.
    pub step: u64,
    /// Steps of the run.
    pub total: u64,
    /// The loss. Under [`crate::Objective::Adversarial`] the mean squared error of the images that the
    /// student predicts in one step, next to which [`CriticReport::student_loss`] is the other term.
    pub loss: f64,
    /// The learning rate.
    pub rate: f64,
    /// Norm of the gradient before clipping; 0 at a step that only updates the critic.
    pub norm: f64,
    /// The critic's part, under [`crate::Objective::Adversarial`].
    pub critic: Option<CriticReport>,
    /// Throughput since this part of the run began, in items per second.
    pub items_per_second: f64,
}
