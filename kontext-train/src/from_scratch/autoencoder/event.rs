//! Events of an autoencoder's training.

use std::path::PathBuf;

/// An event of an autoencoder's training.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum AutoencoderEvent {
    /// A step is finished.
    Step(AutoencoderReport),
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
}

/// Report of a training step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AutoencoderReport {
    /// Finished steps.
    pub step: u64,
    /// Steps of the run.
    pub total: u64,
    /// Total loss.
    pub loss: f64,
    /// PSNR of the batch's reconstruction, in decibels.
    pub psnr: f64,
    /// Root mean square of the latents' means.
    pub latent_rms: f64,
    /// Throughput since this part of the run began, in crops per second.
    pub items_per_second: f64,
}
