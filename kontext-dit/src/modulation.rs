//! Modulation: shift, scale and gate of a block, for all steps of a run at once.
//!
//! The modulation layers hold 27 % of the weights, and their input, one vector per step, does not depend on
//! the sample. They are therefore applied once, before the loop, to the vectors of all steps.
//!
//! Source: black-forest-labs/flux@802fb47 `src/flux/modules/layers.py`, `Modulation`, `LastLayer`.

use kontext_core::{Error, Result, Tensor};
use kontext_nn::{Linear, Weights, ops};

/// Epsilon of the modulated layer norms.
pub(crate) const EPS: f64 = 1e-6;
/// Vectors of a norm: shift, scale and gate.
const TRIPLE: i64 = 3;

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
    pub(crate) fn table(&self, vectors: &Tensor, scales: Scales) -> Result<Table> {
        let parts = self.linear.forward(vectors)?.f_unflatten(-1, [self.parts, -1])?; // [S, B, P, D]
        let parts = parts.f_permute([0, 2, 1, 3])?.f_contiguous()?;
        if scales == Scales::WithOne {
            let _ = parts.f_slice(1, 1, None, TRIPLE)?.f_add_scalar_(1.0)?;
        }
        Ok(Table { parts, scales })
    }
}

/// Form in which a table holds its scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scales {
    /// As the layer returns them: a kernel adds the one in f32.
    Plain,
    /// `1 + scale`, added once a run instead of in every block of every step.
    WithOne,
}

/// Modulation of a block for every step: [S, P, B, D], where P counts shift, scale and gate of each norm.
#[derive(Debug)]
pub(crate) struct Table {
    parts: Tensor,
    scales: Scales,
}

impl Table {
    /// Builds a table of the same form from replacements for [`Table::values`].
    pub(crate) fn with(&self, values: &Tensor) -> Self {
        Self {
            parts: values.shallow_clone(),
            scales: self.scales,
        }
    }

    /// Returns the values [S, P, B, D].
    pub(crate) fn values(&self) -> Tensor {
        self.parts.shallow_clone()
    }

    /// Returns the modulation of one step: triples of (shift, scale, gate).
    pub(crate) fn step<const N: usize>(&self, step: i64) -> Result<[Modulation; N]> {
        let triple = |index: usize| -> Result<Modulation> {
            let first = TRIPLE * index as i64;
            Ok(Modulation {
                shift: self.part(step, first)?,
                scale: self.scale(step, first + 1)?,
                gate: self.part(step, first + 2)?,
            })
        };
        let triples = (0..N).map(triple).collect::<Result<Vec<_>>>()?;
        triples
            .try_into()
            .map_err(|_| Error::bug(format!("modulation that is not of {N} triples")))
    }

    /// Returns shift and `1 + scale` of the last layer at one step, each [B, 1, D].
    pub(crate) fn last(&self, step: i64) -> Result<(Tensor, Tensor)> {
        Ok((self.part(step, 0)?, self.scale(step, 1)?))
    }

    /// Returns the form of the scales.
    pub(crate) fn scales(&self) -> Scales {
        self.scales
    }

    /// Returns the modulation of the norm `index` of a step as a kernel reads it. The table must hold
    /// [`Scales::Plain`].
    pub(crate) fn norm(&self, step: i64, index: i64) -> Result<PlainNorm> {
        Ok(PlainNorm {
            shift: self.part(step, TRIPLE * index)?,
            scale: self.part(step, TRIPLE * index + 1)?,
        })
    }

    /// Returns the gate of the branch after the norm `index` of a step, [B, 1, D].
    pub(crate) fn gate(&self, step: i64, index: i64) -> Result<Tensor> {
        self.part(step, TRIPLE * index + 2)
    }

    /// Returns one vector of a step, [B, 1, D].
    fn part(&self, step: i64, index: i64) -> Result<Tensor> {
        Ok(self.parts.f_select(0, step)?.f_select(0, index)?.f_unsqueeze(1)?)
    }

    /// Returns `1 + scale` of a step, [B, 1, D].
    fn scale(&self, step: i64, index: i64) -> Result<Tensor> {
        let scale = self.part(step, index)?;
        Ok(match self.scales {
            Scales::Plain => scale.f_add_scalar(1.0)?,
            Scales::WithOne => scale,
        })
    }
}

/// Shift and plain scale of one layer norm, each [B, 1, D].
#[derive(Debug)]
pub(crate) struct PlainNorm {
    pub(crate) shift: Tensor,
    pub(crate) scale: Tensor,
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
