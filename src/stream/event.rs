//! Owned events of a run.

use image::RgbImage;
use kontext_core::Tensor;
use kontext_text::{Truncation, Unknown};

use crate::{Event, Output, Plan, Warning};

/// Progress of a run in a [`RunStream`](crate::RunStream), and its output.
#[derive(Debug)]
#[non_exhaustive]
#[allow(
    clippy::large_enum_variant,
    reason = "at most a few wait in a channel, and one is moved for each step"
)]
pub enum StreamEvent {
    /// The run begins.
    Planned {
        /// Sizes, tokens and steps.
        plan: Plan,
        /// The seed of the first image.
        seed: u64,
    },
    /// A setting has no effect, or the result may not be the expected one.
    Warning {
        /// The warning; it prints as a sentence with a remedy.
        warning: Warning,
    },
    /// A prompt was truncated.
    PromptTruncated {
        /// The encoder that truncated it, and the dropped text.
        truncation: Truncation,
    },
    /// A prompt has words that an encoder's vocabulary lacks.
    UnknownWords {
        /// The encoder, and the unknown texts.
        unknown: Unknown,
    },
    /// Transformer and autoencoder compute without the kernels that the pipeline wants.
    NoKernels {
        /// The reason, with a remedy.
        reason: String,
    },
    /// A step is done.
    Step {
        /// Number of finished steps, from 1.
        done: usize,
        /// Total number of steps.
        total: usize,
        /// The noise level reached.
        sigma: f32,
        /// The latents at that level as tokens [batch, L, 4 C], on the run's device and without a copy: reading
        /// them waits for the device.
        latents: Tensor,
    },
    /// A preview of the first image.
    Preview {
        /// Number of finished steps at this prediction, from 1.
        done: usize,
        /// Total number of steps.
        total: usize,
        /// The image that the step predicts.
        image: RgbImage,
    },
    /// An image is decoded.
    Decoded {
        /// Number of finished images, from 1.
        done: usize,
        /// Total number of images.
        total: usize,
    },
    /// The run is finished. Always the last event.
    Done(Output),
}

impl StreamEvent {
    /// Returns the owned form of an event; `None` if streams do not carry it.
    pub(super) fn of(event: &Event<'_>) -> Option<Self> {
        Some(match *event {
            Event::Planned { plan, seed } => Self::Planned {
                plan: plan.clone(),
                seed,
            },
            Event::Warning { warning } => Self::Warning { warning: *warning },
            Event::PromptTruncated { truncation } => Self::PromptTruncated {
                truncation: truncation.clone(),
            },
            Event::UnknownWords { unknown } => Self::UnknownWords {
                unknown: unknown.clone(),
            },
            Event::NoKernels { reason } => Self::NoKernels {
                reason: reason.to_owned(),
            },
            Event::Step {
                done,
                total,
                sigma,
                latents,
            } => Self::Step {
                done,
                total,
                sigma,
                latents: latents.shallow_clone(),
            },
            Event::Preview { done, total, image } => Self::Preview {
                done,
                total,
                image: image.clone(),
            },
            Event::Decoded { done, total } => Self::Decoded { done, total },
            Event::Encoded { .. } | Event::Reference { .. } | Event::Noise { .. } => return None,
        })
    }
}
