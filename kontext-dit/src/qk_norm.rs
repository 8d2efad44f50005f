//! Norm and rotation of queries and keys.
//!
//! Source: black-forest-labs/flux@802fb47 `src/flux/modules/layers.py`, `QKNorm` and `RMSNorm`; diffusers 0.38
//! `transformer_flux.py`, `FluxAttnProcessor`.

use kontext_core::{Kind, Result, Tensor};
use kontext_nn::{Weights, ops};

use crate::Arithmetic;
use crate::step::Step;

/// Epsilon of the query and key norms.
pub(crate) const EPS: f64 = 1e-6;

/// Weights of the RMS norms of queries and keys over the width of a head.
#[derive(Debug)]
pub(crate) struct QkNorm {
    query: Tensor,
    key: Tensor,
    /// Both in f32, [2, 1, D/H]; `None` if they are trained.
    both: Option<Tensor>,
}

impl QkNorm {
    pub(crate) fn new(w: &Weights, head_dim: i64) -> Result<Self> {
        let read = |name: &str| w.at(name).tensor("scale", &[head_dim]);
        let (query, key) = (read("query_norm")?, read("key_norm")?);
        let trained = query.requires_grad() || key.requires_grad();
        let both = (!trained).then(|| stack(&query, &key)).transpose()?;
        Ok(Self { query, key, both })
    }

    /// Returns the weights of queries and keys in f32, [2, 1, D/H].
    pub(crate) fn weights(&self) -> Result<Tensor> {
        match &self.both {
            Some(both) => Ok(both.shallow_clone()),
            None => stack(&self.query, &self.key),
        }
    }

    /// Returns `true` if a weight requires a gradient.
    pub(crate) fn is_trained(&self) -> bool {
        self.both.is_none()
    }

    /// Returns the weights of queries and of keys in f32, each `[D/H]`.
    pub(crate) fn vectors(&self) -> Result<[Tensor; 2]> {
        let both = self.weights()?.f_squeeze_dim(1)?;
        Ok([both.f_select(0, 0)?, both.f_select(0, 1)?])
    }
}

fn stack(query: &Tensor, key: &Tensor) -> Result<Tensor> {
    Ok(Tensor::f_stack(&[query, key], 0)?
        .f_to_kind(Kind::Float)?
        .f_unsqueeze(1)?)
}

/// Norms and rotates queries, keys or both.
///
/// Shapes: `x` [B, L, N, H, D/H], where N counts queries and keys, `weight` in f32 broadcastable to
/// [L, N, 1, D/H]; the rotations of `step` are those of the L tokens. Returns the shape and dtype of `x`.
pub(crate) fn norm_and_rotate(x: &Tensor, weight: &Tensor, step: Step<'_>) -> Result<Tensor> {
    if step.arithmetic == Arithmetic::Fewest
        && let Some(turned) = ops::norm_and_rotate(x, weight, step.rope.pairs(), EPS)?
    {
        return Ok(turned);
    }
    let kind = x.kind();
    let width = x.size().last().copied().unwrap_or_default();
    // In f32: in bf16 a sum of 128 squares keeps 8 bits, in f16 it overflows at activations above 256.
    let normed = x.f_to_kind(Kind::Float)?.f_rms_norm([width], None::<&Tensor>, EPS)?;
    let scaled = match step.arithmetic {
        Arithmetic::Bfl if kind != Kind::Float => normed.f_to_kind(kind)?.f_mul(&weight.f_to_kind(kind)?)?,
        Arithmetic::Diffusers => scale(normed, weight)?.f_to_kind(kind)?,
        Arithmetic::Bfl | Arithmetic::Fewest => scale(normed, weight)?,
    };
    Ok(step.rope.rotate(scaled.f_to_kind(Kind::Float)?)?.f_to_kind(kind)?)
}

/// Computes `x * weight`, in place if no gradient is wanted.
fn scale(mut x: Tensor, weight: &Tensor) -> Result<Tensor> {
    Ok(if x.requires_grad() || weight.requires_grad() {
        x.f_mul(weight)?
    } else {
        x.f_mul_(weight)?
    })
}
