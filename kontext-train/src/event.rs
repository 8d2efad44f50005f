//! What a training run tells its caller.

use std::ops::ControlFlow;
use std::path::PathBuf;

use crate::dataset::{Fill, Skipped};

/// Hears of events, and may break off.
pub(crate) type Observer<'a> = &'a mut dyn FnMut(TrainEvent<'_>) -> ControlFlow<()>;

/// What happens during a run.
#[derive(Debug)]
#[non_exhaustive]
pub enum TrainEvent<'a> {
    /// Pictures or prompts are being encoded.
    Encoding(Fill),
    /// Something of the dataset cannot be used.
    Skipped(&'a Skipped),
    /// The data is ready: items to train on, and held-out ones.
    Ready {
        /// Items that are trained on.
        training: usize,
        /// Items that are validated.
        validation: usize,
        /// Values that are trained.
        values: i64,
        /// Steps that an earlier part of the run has done.
        resumed: u64,
    },
    /// A step is done.
    Step(StepReport),
    /// The held-out loss, by the moving average of the weights.
    Validated {
        /// Steps done.
        step: u64,
        /// The loss.
        loss: f64,
    },
    /// The state was saved.
    Saved {
        /// Steps done.
        step: u64,
        /// The file.
        path: PathBuf,
    },
    /// A grid of pictures was written: reference pictures, result, truth.
    Sampled {
        /// Steps done.
        step: u64,
        /// The file.
        path: PathBuf,
    },
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Steps done.
    pub step: u64,
    /// Steps of the run.
    pub total: u64,
    /// The loss.
    pub loss: f64,
    /// The learning rate.
    pub rate: f64,
    /// The gradient's norm before it was shortened.
    pub norm: f64,
    /// Items a second since this part of the run began.
    pub items_per_second: f64,
}
