//! Rotary position embedding over three axes: (t, y, x).
//!
//! Source: black-forest-labs/flux@802fb47 `src/flux/math.py`, `rope` and `apply_rope`;
//! frequencies in f64 as in diffusers 0.38 `embeddings.py`, `get_1d_rotary_pos_embed`.

use kontext_core::{Kind, Result, Tensor};

/// Base of the frequencies.
const THETA: f64 = 10_000.0;

/// Rotations of a sequence: cosine and sine of an angle per token and pair of features.
#[derive(Debug)]
pub(crate) struct Rope {
    /// [L, D/H] in f32: cosine and sine of each pair in turns.
    pairs: Tensor,
}

impl Rope {
    /// Computes the rotations of `ids` [L, 3] in f32. Angles are computed in f64: at position 1000 the angle
    /// is off by 6e-5 rad in f32 and by full turns in bf16.
    pub(crate) fn new(ids: &Tensor, axes_dim: &[i64; 3]) -> Result<Self> {
        let ids = ids.f_to_kind(Kind::Double)?;
        let mut angles = Vec::with_capacity(axes_dim.len());
        for (axis, &width) in axes_dim.iter().enumerate() {
            let exponents =
                Tensor::f_arange_start_step(0, width, 2, (Kind::Double, ids.device()))?.f_div_scalar(width)?;
            let frequencies = exponents.f_mul_scalar(-THETA.ln())?.f_exp()?;
            angles.push(ids.f_select(1, axis as i64)?.f_outer(&frequencies)?);
        }
        let angles = Tensor::f_cat(&angles, 1)?; // [L, D/H/2]
        let pairs = Tensor::f_stack(&[angles.f_cos()?, angles.f_sin()?], -1)?;
        Ok(Self {
            pairs: pairs.f_to_kind(Kind::Float)?.f_flatten(1, 2)?,
        })
    }

    /// Returns cosine and sine of each token's pairs in turns, [L, D/H] in f32.
    pub(crate) fn pairs(&self) -> &Tensor {
        &self.pairs
    }

    /// Rotates adjacent pairs of features: contiguous [B, L, N, H, D/H] in f32 to the same shape, in the memory
    /// of `x` if no gradient is required.
    pub(crate) fn rotate(&self, x: Tensor) -> Result<Tensor> {
        let table = as_complex(&self.pairs)?.f_unsqueeze(1)?.f_unsqueeze(1)?; // [L, 1, 1, D/H/2]
        let mut pairs = as_complex(&x)?;
        if !x.requires_grad() {
            let _ = pairs.f_mul_(&table)?;
            return Ok(x);
        }
        Ok(pairs.f_mul(&table)?.f_view_as_real()?.f_flatten(-2, -1)?)
    }

    /// Returns the rotations of some tokens, by their places in the sequence.
    pub(crate) fn select(&self, tokens: &Tensor) -> Result<Self> {
        Ok(Self {
            pairs: self.pairs.f_index_select(0, tokens)?,
        })
    }

    /// Returns the rotations of the tokens `start..start + count`.
    pub(crate) fn range(&self, start: i64, count: i64) -> Result<Self> {
        Ok(Self {
            pairs: self.pairs.f_narrow(0, start, count)?,
        })
    }
}

/// Views adjacent pairs of the last dimension as complex numbers.
fn as_complex(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_unflatten(-1, [-1_i64, 2])?.f_view_as_complex()?)
}

#[cfg(test)]
mod tests {
    use kontext_core::{Device, noise};

    use super::*;

    fn norms(x: &Tensor) -> Tensor {
        x.unflatten(-1, [-1_i64, 2])
            .square()
            .sum_dim_intlist(-1_i64, false, Kind::Float)
    }

    #[test]
    fn rotation_keeps_the_norm_of_every_pair() {
        let ids = Tensor::from_slice(&[0.0_f32, 0.0, 0.0, 1.0, 37.0, 1000.0]).reshape([2, 3]);
        let x = noise::randn(&[1, 2, 1, 3, 18], 0, Kind::Float, Device::Cpu).unwrap();
        let turned = Rope::new(&ids, &[4, 6, 8]).unwrap().rotate(x.copy()).unwrap();
        assert!(norms(&turned).allclose(&norms(&x), 1e-5, 1e-6, false));
        // Position zero does not rotate.
        assert!(turned.narrow(1, 0, 1).equal(&x.narrow(1, 0, 1)));
    }

    #[test]
    fn a_dot_product_depends_on_the_distance_alone() {
        let q = noise::randn(&[1, 1, 1, 1, 18], 0, Kind::Float, Device::Cpu).unwrap();
        let k = noise::randn(&[1, 1, 1, 1, 18], 1, Kind::Float, Device::Cpu).unwrap();
        let score = |a: [f32; 3], b: [f32; 3]| {
            let turn = |x: &Tensor, id: [f32; 3]| {
                Rope::new(&Tensor::from_slice(&id).reshape([1, 3]), &[4, 6, 8])
                    .unwrap()
                    .rotate(x.copy())
                    .unwrap()
            };
            (turn(&q, a) * turn(&k, b)).sum(Kind::Float).double_value(&[])
        };
        assert!((score([0.0, 3.0, 5.0], [0.0, 1.0, 9.0]) - score([0.0, 13.0, 25.0], [0.0, 11.0, 29.0])).abs() < 1e-4);
    }
}
