//! Modulation: shift, scale and gate of a block, for all steps of a run at once.
//!
//! The modulation layers hold 27 % of the weights, and their input, one vector per step, does not depend on
//! the sample. They are therefore applied once, before the loop, to the vectors of all steps.
//!
//! Source: black-forest-labs/flux@802fb47 `src/flux/modules/layers.py`, `Modulation`, `LastLayer`.

use kontext_core::{Error, Result, Tensor};
use kontext_nn::{Linear, Weights, ops};

/// Epsilon of the modulated layer norms.
const EPS: f64 = 1e-6;

/// A linear layer from one vector to `parts` vectors. It is applied once per run, so its weights may be
/// offloaded (left in their file).
#[derive(Debug)]
pub(crate) struct ModulationLayer {
    linear: Linear,
    parts: i64,
}

impl ModulationLayer {
    pub(crate) fn new(w: &Weights, width: i64, parts: i64) -> Result<Self> {
        Ok(Self {
            linear: Linear::new(&w.clone().used_once(), width, parts * width)?,
            parts,
        })
    }

    /// Computes the table from `vectors` [S, B, D], with SiLU already applied.
    pub(crate) fn table(&self, vectors: &Tensor) -> Result<Table> {
        let parts = self.linear.forward(vectors)?.f_unflatten(-1, [self.parts, -1])?; // [S, B, P, D]
        Ok(Table {
            parts: parts.f_permute([0, 2, 1, 3])?.f_contiguous()?,
        })
    }
}

/// Modulation of a block for every step: [S, P, B, D].
#[derive(Debug)]
pub(crate) struct Table {
    parts: Tensor,
}

impl Table {
    /// Builds a table from the values of [`Table::values`], or from replacements for them.
    pub(crate) fn of(values: &Tensor) -> Self {
        Self {
            parts: values.shallow_clone(),
        }
    }

    /// Returns the values [S, P, B, D].
    pub(crate) fn values(&self) -> Tensor {
        self.parts.shallow_clone()
    }

    /// Returns the modulation of one step: triples of (shift, scale, gate).
    pub(crate) fn step<const N: usize>(&self, step: i64) -> Result<[Modulation; N]> {
        let parts = self.parts.f_select(0, step)?; // [P, B, D]
        let triple = |index: usize| -> Result<Modulation> {
            let part =
                |offset: i64| -> Result<Tensor> { Ok(parts.f_select(0, 3 * index as i64 + offset)?.f_unsqueeze(1)?) };
            Ok(Modulation {
                shift: part(0)?,
                scale: part(1)?.f_add_scalar(1.0)?,
                gate: part(2)?,
            })
        };
        let triples = (0..N).map(triple).collect::<Result<Vec<_>>>()?;
        triples
            .try_into()
            .map_err(|_| Error::bug(format!("modulation that is not of {N} triples")))
    }

    /// Returns shift and `1 + scale` of the last layer at one step, each [B, 1, D].
    pub(crate) fn last(&self, step: i64) -> Result<(Tensor, Tensor)> {
        let parts = self.parts.f_select(0, step)?;
        Ok((
            parts.f_select(0, 0)?.f_unsqueeze(1)?,
            parts.f_select(0, 1)?.f_unsqueeze(1)?.f_add_scalar(1.0)?,
        ))
    }
}

/// Shift and `1 + scale` of one layer norm, and the gate of the branch after it, each [B, 1, D].
#[derive(Debug)]
pub(crate) struct Modulation {
    shift: Tensor,
    scale: Tensor,
    gate: Tensor,
}

impl Modulation {
    /// Computes `norm(x) * (1 + scale) + shift`.
    pub(crate) fn modulate(&self, x: &Tensor) -> Result<Tensor> {
        modulate(x, &self.shift, &self.scale)
    }

    /// Computes `x + gate * y`.
    pub(crate) fn add_gated(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        Ok(x.f_addcmul(&self.gate, y)?)
    }
}

/// Computes `norm(x) * scale + shift`; `scale` already includes the one.
///
/// With one vector for the whole batch, the layer norm applies it as its weight and bias: one pass over
/// memory instead of three.
pub(crate) fn modulate(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
    if scale.size().first() == Some(&1) {
        let (weight, bias) = (scale.f_flatten(0, -1)?, shift.f_flatten(0, -1)?);
        return Ok(x.f_layer_norm(weight.size(), Some(&weight), Some(&bias), EPS, true)?);
    }
    Ok(shift.f_addcmul(&ops::plain_layer_norm(x, EPS)?, scale)?)
}
