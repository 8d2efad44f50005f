//! Activations between the pieces of a step.

use kontext_core::{Error, Result, Tensor};

/// Activations between two pieces of a step: the output of one and the input of the next.
///
/// A step goes through the variants in their order; it skips those that its blocks do not return. Shapes are
/// in terms of N samples, T text tokens, L target tokens, R reference tokens and the model's width D; the
/// dtype is that of the run.
///
/// # Example
/// Detached copies, as activation checkpointing keeps them:
/// ```
/// use kontext_core::{Device, Kind, Tensor};
/// use kontext_dit::State;
///
/// let ones = |length: i64| Tensor::ones([1, length, 8], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let state = State::Streams { txt: ones(3), img: ones(4) };
/// let kept = state.try_map(|tensor| Ok(tensor.f_detach()?))?;
/// assert!(matches!(&kept, State::Streams { txt, .. } if txt.size() == [1, 3, 8]));
/// assert!(kept.tensors().iter().all(|tensor| !tensor.requires_grad()));
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug)]
pub enum State {
    /// Separate streams: the input of the first piece, and the output of double blocks.
    Streams {
        /// Text tokens [N, T, D].
        txt: Tensor,
        /// Target tokens, then reference tokens [N, L + R, D].
        img: Tensor,
    },
    /// Text, target and reference tokens in one sequence [N, T + L + R, D]: the output of single blocks.
    Joined(Tensor),
    /// Target tokens [N, L, D]: the output of the last single block.
    Target(Tensor),
    /// Velocity of the target [N, L, out_channels]: the output of the last piece.
    Velocity(Tensor),
}

impl State {
    /// Returns the tensors; those of the streams as text, then image.
    #[must_use]
    pub fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Self::Streams { txt, img } => vec![txt, img],
            Self::Joined(tensor) | Self::Target(tensor) | Self::Velocity(tensor) => vec![tensor],
        }
    }

    /// Returns a state of the same variant with the result of `change` for each tensor, in the order of
    /// [`State::tensors`].
    ///
    /// # Errors
    /// The first error of `change`.
    pub fn try_map(&self, mut change: impl FnMut(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(match self {
            Self::Streams { txt, img } => Self::Streams {
                txt: change(txt)?,
                img: change(img)?,
            },
            Self::Joined(tensor) => Self::Joined(change(tensor)?),
            Self::Target(tensor) => Self::Target(change(tensor)?),
            Self::Velocity(tensor) => Self::Velocity(change(tensor)?),
        })
    }

    /// Returns the velocity [N, L, out_channels] in the state returned by the last piece.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a state within a step.
    pub fn velocity(&self) -> Result<&Tensor> {
        match self {
            Self::Velocity(velocity) => Ok(velocity),
            other => Err(other.unexpected("the velocity")),
        }
    }

    /// Returns the error for a state other than `expected`.
    pub(crate) fn unexpected(&self, expected: &str) -> Error {
        let got = match self {
            Self::Streams { .. } => "separate streams",
            Self::Joined(_) => "a joined sequence",
            Self::Target(_) => "the target's tokens",
            Self::Velocity(_) => "the velocity",
        };
        Error::invalid("state of a step", expected, got)
    }
}
