//! Low-rank changes of linear layers.
//!
//! Source: arXiv 2106.09685 (LoRA), section 4.1; huggingface/peft `src/peft/tuners/lora/layer.py`, `Linear`.

use tch::{Kind, Tensor};

use crate::{Error, Result};

/// A change `scale * up @ down` of some rows of a linear layer's weight.
///
/// Fused layers (`qkv`) have one for each of their parts, at the rows where the part begins.
#[derive(Debug)]
pub struct LowRank {
    down: Tensor,
    up: Tensor,
    scale: f64,
    start: i64,
}

impl LowRank {
    /// Shapes: `down` [rank, in], `up` [rows, rank]; the rows `start..start + rows` of the layer change.
    ///
    /// # Errors
    /// [`Error::Shape`] where the two do not fit each other.
    pub fn new(down: Tensor, up: Tensor, scale: f64, start: i64) -> Result<Self> {
        match (down.size().as_slice(), up.size().as_slice()) {
            ([rank, _], [_, same]) if rank == same && *rank > 0 => Ok(Self { down, up, scale, start }),
            _ => Err(Error::Shape { tensor: "low-rank `up`", expected: "[rows, rank of `down`]", got: up.size() }),
        }
    }

    /// Width of the layer's input.
    #[must_use]
    pub fn input(&self) -> i64 {
        self.down.size().get(1).copied().unwrap_or_default()
    }

    /// The rows of the layer that it changes.
    #[must_use]
    pub fn rows(&self) -> std::ops::Range<i64> {
        self.start..self.start + self.up.size().first().copied().unwrap_or_default()
    }

    pub(crate) fn to_device(&self, device: tch::Device) -> Result<Self> {
        Ok(Self { down: self.down.f_to_device(device)?, up: self.up.f_to_device(device)?, ..*self })
    }

    /// The part that meets the input features `start..start + count`.
    pub(crate) fn columns(&self, start: i64, count: i64) -> Result<Self> {
        Ok(Self { down: self.down.f_narrow(1, start, count)?, up: self.up.shallow_clone(), ..*self })
    }

    /// Adds the change to `y` [.., count], which holds the output features `start..start + count` of the
    /// layer for `x` [.., in].
    pub(crate) fn add_to(&self, y: &Tensor, x: &Tensor, start: i64, count: i64) -> Result<()> {
        let rows = self.rows();
        let (from, to) = (rows.start.max(start), rows.end.min(start + count));
        if from >= to {
            return Ok(());
        }
        let kind = x.kind();
        let up = self.up.f_narrow(0, from - rows.start, to - from)?.f_to_kind(kind)?;
        let low = x.f_linear(&self.down.f_to_kind(kind)?, None::<&Tensor>)?.f_mul_scalar(self.scale)?;
        // A view: what is added arrives in `y`, and gradients pass through both.
        let mut part = y.f_narrow(-1, from - start, to - from)?;
        let _ = part.f_add_(&low.f_linear(&up, None::<&Tensor>)?)?;
        Ok(())
    }

    /// Adds the change to the layer's weight [out, in], which must be in f32.
    pub(crate) fn fuse_into(&self, weight: &Tensor) -> Result<()> {
        let rows = self.rows();
        let product = self.up.f_to_kind(Kind::Float)?.f_matmul(&self.down.f_to_kind(Kind::Float)?)?;
        let mut part = weight.f_narrow(0, rows.start, rows.end - rows.start)?;
        let _ = part.f_add_(&product.f_mul_scalar(self.scale)?)?;
        Ok(())
    }
}
