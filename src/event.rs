//! Progress events of a run, and its cancellation.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use image::RgbImage;
use kontext_core::{Conditioning, Tensor};
use kontext_text::{Truncation, Unknown};

use crate::{Plan, Warning};

/// Progress of a run. Return [`ControlFlow::Break`] to stop it.
///
/// Tensors are the run's own, on its device: reading one waits for the device.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The run begins.
    Planned {
        /// Sizes, tokens and steps.
        plan: &'a Plan,
        /// The seed of the first image.
        seed: u64,
    },
    /// A setting has no effect, or the result may not be the expected one: each of [`Plan::warnings`], before
    /// any work.
    Warning {
        /// The warning; it prints as a sentence with a remedy.
        warning: &'a Warning,
    },
    /// A prompt was truncated.
    PromptTruncated {
        /// The encoder that truncated it, and the dropped text.
        truncation: &'a Truncation,
    },
    /// A prompt has text that an encoder's vocabulary lacks.
    UnknownWords {
        /// The encoder that does not know it, and the text.
        unknown: &'a Unknown,
    },
    /// A prompt is encoded.
    Encoded {
        /// The encoded prompt.
        conditioning: &'a Conditioning,
        /// `true` for the negative prompt.
        negative: bool,
        /// `true` if an earlier run of the pipeline encoded it
        /// ([`encoding_cache`](crate::PipelineBuilder::encoding_cache)).
        cached: bool,
    },
    /// A reference image is encoded.
    Reference {
        /// Its number, from 0.
        index: usize,
        /// Its latents [1, C, H, W], scaled and shifted.
        latents: &'a Tensor,
        /// `true` if an earlier run of the pipeline encoded it
        /// ([`encoding_cache`](crate::PipelineBuilder::encoding_cache)).
        cached: bool,
    },
    /// Transformer and autoencoder compute by libtorch's operations, although the pipeline wants kernels
    /// ([`PipelineBuilder::kernels`](crate::PipelineBuilder::kernels)) and this run could use them: results differ within
    /// the roundings of bf16, and steps take longer. Once a run, before its first step.
    NoKernels {
        /// The reason, with a remedy.
        reason: &'a str,
    },
    /// The noise is drawn.
    Noise {
        /// The starting latents as tokens [batch, L, 4 C].
        latents: &'a Tensor,
    },
    /// A step is done.
    Step {
        /// Number of finished steps, from 1.
        done: usize,
        /// Total number of steps.
        total: usize,
        /// The noise level reached.
        sigma: f32,
        /// The latents at that level as tokens [batch, L, 4 C].
        latents: &'a Tensor,
    },
    /// A preview of the first image ([`Request::preview`](crate::Request::preview)), after the step that predicts it: on a
    /// CPU directly, on a GPU after the step during which it has arrived, without waiting for it.
    Preview {
        /// Number of finished steps at this prediction, from 1.
        done: usize,
        /// Total number of steps.
        total: usize,
        /// The image that the step predicts, without its noise: of the target's proportions, which differ a little from
        /// the result's where that is stretched to the input's size; with a mask, the part that the model sees. Its size
        /// is that of [`PreviewMethod`](crate::PreviewMethod).
        image: &'a RgbImage,
    },
    /// An image is decoded.
    Decoded {
        /// Number of finished images, from 1.
        done: usize,
        /// Total number of images.
        total: usize,
    },
}

/// A cancellation switch for runs, usable from any thread.
///
/// A run stops at its next event: after an encoded prompt or image, a denoising step or a decoded image. The
/// one that is being computed is finished first.
///
/// # Example
/// ```
/// use kontext::Cancel;
/// let cancel = Cancel::new();
/// let remote = cancel.clone();                  // kept by a Ctrl-C handler, say
/// assert!(cancel.check().is_continue());
/// remote.cancel();
/// assert!(cancel.check().is_break());           // return this from the callback of `run_with`
/// ```
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Creates a switch in the off state.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels the runs that check this switch.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns `Break` after [`Cancel::cancel`], else `Continue`.
    pub fn check(&self) -> ControlFlow<()> {
        if self.0.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}
