//! What a run tells while it works, and how it is stopped.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kontext_core::{Conditioning, Tensor};
use kontext_text::Cut;

use crate::Plan;

/// What a run tells while it works. Answer [`ControlFlow::Break`] to stop it.
///
/// Tensors are those that the run goes on with, on its device: looking at one waits for the device.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The run begins.
    Planned {
        /// Sizes, tokens and steps.
        plan: &'a Plan,
        /// The seed of the first picture.
        seed: u64,
    },
    /// The end of a prompt did not fit and was left out.
    Cut {
        /// By whom, and what.
        cut: &'a Cut,
    },
    /// A prompt is encoded.
    Encoded {
        /// The encoded prompt.
        conditioning: &'a Conditioning,
        /// Whether it is the negative one.
        negative: bool,
    },
    /// A reference picture is encoded.
    Reference {
        /// Its number, from 0.
        index: usize,
        /// Its latents [1, C, H, W], scaled and shifted.
        latents: &'a Tensor,
    },
    /// The noise is drawn.
    Noise {
        /// The starting latents as tokens [batch, L, 4 C].
        latents: &'a Tensor,
    },
    /// A step is done.
    Step {
        /// Steps that are finished, from 1.
        done: usize,
        /// Steps of the run.
        total: usize,
        /// The noise level that was reached.
        sigma: f32,
        /// The latents at that level as tokens [batch, L, 4 C].
        latents: &'a Tensor,
    },
    /// A picture is decoded.
    Decoded {
        /// Pictures that are finished, from 1.
        done: usize,
        /// Pictures of the run.
        total: usize,
    },
}

/// A switch that stops runs, from any thread.
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
    /// A switch that is not thrown.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Throws the switch.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Break after [`Cancel::cancel`], else Continue.
    pub fn check(&self) -> ControlFlow<()> {
        if self.0.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}
