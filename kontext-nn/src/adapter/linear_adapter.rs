//! Adapters of linear layers: the part of a LoRA that modifies one layer.
//!
//! Source: arXiv 2106.09685 (LoRA), 2402.09353 (DoRA); huggingface/peft 0.21 `src/peft/tuners/lora/dora.py`,
//! `DoraLinearLayer`; KohakuBlueleaf/LyCORIS 4.1.3 `lycoris/functional/general.py`, `weight_decompose`.

use std::ops::Range;

use kontext_core::{Error, Result};
use tch::{Device, Kind, Tensor};

use super::delta::Delta;
use super::device_adapter::{DeviceAdapter, Factor};
use crate::ops::swap_halves;

/// An adapter of some rows of a linear layer. It adds `scaling * D` to the weight; the matrix `D` [rows, in] is
/// given in factors, and the rows (or columns) of the sum may be normalised to given magnitudes (DoRA).
///
/// Fused layers (`qkv`) have one adapter per part, at the rows where the part begins.
///
/// # Example
/// ```
/// use kontext_core::{Device, Kind, Tensor};
/// use kontext_nn::LinearAdapter;
/// let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
/// let adapter = LinearAdapter::low_rank(ones(&[2, 6]), ones(&[3, 2]), 0.5, 4)?; // 0.5 * up @ down, from row 4
/// assert_eq!((adapter.rows(), adapter.input(), adapter.rank()), (4..7, 6, Some(2)));
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug)]
pub struct LinearAdapter {
    delta: Option<Delta>,
    bias: Option<Tensor>,
    magnitude: Option<(Tensor, DoraNorm)>,
    scaling: f64,
    scale: f64,
    /// If set, `scaling` applies to the bias, too, as to one stored next to `up`.
    scales_bias: bool,
    rows: Range<i64>,
}

/// DoRA normalisation. The programs that write DoRA files differ in how they apply the magnitudes, and a LoRA
/// scaling other than 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DoraNorm {
    /// `m / |W + s D| * (W + s D)`, with the LoRA scale included in `s`. Rows only.
    Peft,
    /// `(1 + scale * (m / (|W + D| + eps) - 1)) * (W + D)`: the LoRA scale `scale` does not apply to
    /// `D`. Rows, or columns if `m` is [1, in].
    Lycoris,
}

impl Clone for LinearAdapter {
    fn clone(&self) -> Self {
        Self {
            delta: self.delta.clone(),
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
            magnitude: self.magnitude.as_ref().map(|(m, norm)| (m.shallow_clone(), *norm)),
            rows: self.rows.clone(),
            ..*self
        }
    }
}

impl LinearAdapter {
    fn new(delta: Delta, scaling: f64, start: i64) -> Result<Self> {
        let delta = delta.checked()?;
        let rows = start..start + delta.rows();
        Ok(Self {
            delta: Some(delta),
            bias: None,
            magnitude: None,
            scaling,
            scale: 1.0,
            scales_bias: false,
            rows,
        })
    }

    /// Creates the adapter `up @ down`, from `down` [rank, in] and `up` [rows, rank], for the rows
    /// `start..start + rows` of the layer.
    ///
    /// # Errors
    /// [`Error::Shape`] if the two do not fit each other.
    pub fn low_rank(down: Tensor, up: Tensor, scaling: f64, start: i64) -> Result<Self> {
        Self::new(Delta::LowRank { down, up }, scaling, start)
    }

    /// Creates the Kronecker product `first ⊗ second` (LoKr), each factor given as a matrix or as two to be
    /// multiplied. It is never materialised: `x` is multiplied by one factor and then by the other.
    ///
    /// # Errors
    /// [`Error::Shape`] if factors do not fit each other.
    pub fn kronecker(first: &[Tensor], second: Vec<Tensor>, scaling: f64, start: i64) -> Result<Self> {
        let first = first.iter().map(Tensor::shallow_clone).collect();
        Self::new(Delta::Kronecker { first, second }, scaling, start)
    }

    /// Creates `(a0 @ b0) * (a1 @ b1)`, element-wise (LoHa): `a` [rows, rank], `b` [rank, in].
    ///
    /// # Errors
    /// [`Error::Shape`] if factors do not fit each other.
    pub fn hadamard(a: [Tensor; 2], b: [Tensor; 2], scaling: f64, start: i64) -> Result<Self> {
        Self::new(Delta::Hadamard { a, b }, scaling, start)
    }

    /// Creates an adapter from a full matrix [rows, in].
    ///
    /// # Errors
    /// [`Error::Shape`] if it is not a matrix.
    pub fn full(matrix: Tensor, scaling: f64, start: i64) -> Result<Self> {
        Self::new(Delta::Full(matrix), scaling, start)
    }

    /// Creates an adapter of the bias `[rows]` only.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is not a vector.
    pub fn of_bias(bias: Tensor, start: i64) -> Result<Self> {
        let rows = start..start + bias.size().first().copied().unwrap_or_default();
        let blank = Self {
            delta: None,
            bias: None,
            magnitude: None,
            scaling: 1.0,
            scale: 1.0,
            scales_bias: false,
            rows,
        };
        blank.with_bias(bias, false)
    }

    /// Adds a bias `[rows]`. The scaling applies to it if `scaled` (a bias next to `up`), otherwise not (a
    /// difference of biases).
    ///
    /// # Errors
    /// [`Error::Shape`] for a bias of another length.
    pub fn with_bias(self, bias: Tensor, scaled: bool) -> Result<Self> {
        if bias.size() != [self.rows.end - self.rows.start] {
            return Err(Error::Shape {
                tensor: "bias of an adapter",
                expected: "[rows]",
                got: bias.size(),
            });
        }
        Ok(Self {
            bias: Some(bias),
            scales_bias: scaled,
            ..self
        })
    }

    /// Adds DoRA magnitudes for the adapted rows, `[rows]` or [rows, 1], or for the columns, [1, in].
    ///
    /// # Errors
    /// [`Error::Shape`] for another shape.
    pub fn with_magnitude(self, magnitude: &Tensor, norm: DoraNorm) -> Result<Self> {
        let (rows, input) = (self.rows.end - self.rows.start, self.input());
        let shape = match (magnitude.size().as_slice(), norm) {
            ([n] | [n, 1], _) if *n == rows => [rows, 1],
            ([1, n], DoraNorm::Lycoris) if *n == input => [1, input],
            _ => {
                let expected = "[rows], [rows, 1] or [1, in]";
                return Err(Error::Shape {
                    tensor: "magnitude of an adapter",
                    expected,
                    got: magnitude.size(),
                });
            }
        };
        let magnitude = magnitude.f_to_kind(Kind::Float)?.f_reshape(shape)?;
        Ok(Self {
            magnitude: Some((magnitude, norm)),
            ..self
        })
    }

    /// Moves the adapter to the rows that begin at `start`.
    #[must_use]
    pub fn starting_at(self, start: i64) -> Self {
        Self {
            rows: start..start + self.rows.end - self.rows.start,
            ..self
        }
    }

    /// Sets the LoRA scale; 1 is the scale of training.
    #[must_use]
    pub fn with_scale(self, scale: f64) -> Self {
        Self { scale, ..self }
    }

    /// Swaps the halves of the rows, for a layer with them in the other order.
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails.
    pub fn swapped(self) -> Result<Self> {
        let magnitude = match &self.magnitude {
            Some((m, norm)) if m.size().first() != Some(&1) => Some((swap_halves(m)?, *norm)),
            other => other.as_ref().map(|(m, norm)| (m.shallow_clone(), *norm)),
        };
        let delta = self.delta.as_ref().map(Delta::swapped).transpose()?;
        let bias = self.bias.as_ref().map(swap_halves).transpose()?;
        Ok(Self {
            delta,
            bias,
            magnitude,
            ..self
        })
    }

    /// Returns the LoRA scale.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Returns the width of the layer's input; 0 for an adapter of the bias only.
    #[must_use]
    pub fn input(&self) -> i64 {
        self.delta.as_ref().map_or(0, Delta::input)
    }

    /// Returns the modified rows of the layer.
    #[must_use]
    pub fn rows(&self) -> Range<i64> {
        self.rows.clone()
    }

    /// Returns the rank of its products; `None` for full matrices.
    #[must_use]
    pub fn rank(&self) -> Option<i64> {
        self.delta.as_ref().and_then(Delta::rank)
    }

    /// Returns `true` if the layer would stay unchanged: a factor or the LoRA scale is zero.
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails.
    pub fn is_nothing(&self) -> Result<bool> {
        let zero = |t: &Tensor| -> Result<bool> { Ok(t.f_count_nonzero(None)?.f_int64_value(&[])? == 0) };
        let delta = self.delta.as_ref().map_or(Ok(true), Delta::is_zero)?;
        let bias = self.bias.as_ref().map_or(Ok(true), zero)?;
        let silent = (delta || self.scaling == 0.0) && (bias || (self.scales_bias && self.scaling == 0.0));
        Ok(self.scale == 0.0 || (silent && self.magnitude.is_none()))
    }

    /// Checks that the adapter fits a layer with a weight of this shape.
    pub(crate) fn fits(&self, weight: &[i64]) -> Result<()> {
        match weight {
            [rows, input] if (self.delta.is_none() || *input == self.input()) && self.rows.end <= *rows => Ok(()),
            _ => {
                let got = vec![self.rows.end, self.input()];
                Err(Error::Shape {
                    tensor: "adapter",
                    expected: "[at most out, in] of its linear layer",
                    got,
                })
            }
        }
    }

    /// Returns the term added to the bias, in f32, and its rows.
    pub(crate) fn bias_to(&self, device: Device) -> Result<Option<(Tensor, Range<i64>)>> {
        let Some(bias) = &self.bias else { return Ok(None) };
        let scaling = if self.scales_bias {
            self.scaling * self.scale
        } else {
            self.scale
        };
        let bias = bias
            .f_to_device(device)?
            .f_to_kind(Kind::Float)?
            .f_mul_scalar(scaling)?;
        Ok(Some((bias, self.rows.clone())))
    }

    /// Moves the adapter to `device` and computes the norms that DoRA needs. `weight` returns the layer's
    /// weight [out, in] in f32; it is called only if norms are needed.
    pub(crate) fn place(&self, device: Device, weight: impl FnOnce() -> Result<Tensor>) -> Result<DeviceAdapter> {
        let (scaling, factor) = match (&self.magnitude, &self.delta) {
            (Some((magnitude, norm)), Some(delta)) => {
                let scaling = if *norm == DoraNorm::Peft {
                    self.scaling * self.scale
                } else {
                    self.scaling
                };
                let delta = delta.to_device(device)?.matrix()?.f_mul_scalar(scaling)?;
                let weight = weight()?.f_narrow(0, self.rows.start, self.rows.end - self.rows.start)?;
                let sum = weight.f_add(&delta)?;
                let along_rows = magnitude.size().first() != Some(&1) || magnitude.size() == [1, 1];
                let length = sum.f_norm_scalaropt_dim(2.0, if along_rows { [1_i64] } else { [0] }, true)?;
                let factor = match norm {
                    // No gradient flows through the norm (arXiv 2402.09353, section 4.3).
                    DoraNorm::Peft => magnitude.f_to_device(device)?.f_div(&length.f_detach()?)?,
                    DoraNorm::Lycoris => {
                        let length = length.f_add_scalar(f64::from(f32::EPSILON))?;
                        let full = magnitude.f_to_device(device)?.f_div(&length)?;
                        full.f_sub_scalar(1.0)?.f_mul_scalar(self.scale)?.f_add_scalar(1.0)?
                    }
                };
                let factor = factor.f_flatten(0, -1)?;
                (
                    scaling,
                    if along_rows {
                        Factor::Rows(factor)
                    } else {
                        Factor::Columns(factor)
                    },
                )
            }
            _ => (self.scaling * self.scale, Factor::None),
        };
        let bias = self.bias_to(device)?.map(|(bias, _)| bias);
        let delta = self.delta.as_ref().map(|d| d.to_device(device)).transpose()?;
        Ok(DeviceAdapter {
            delta,
            bias,
            factor,
            scaling,
            rows: self.rows.clone(),
        })
    }
}
