//! Changes of linear layers: what a LoRA does to one of them.
//!
//! Source: arXiv 2106.09685 (LoRA), 2402.09353 (DoRA); huggingface/peft 0.21 `src/peft/tuners/lora/dora.py`,
//! `DoraLinearLayer`; KohakuBlueleaf/LyCORIS 4.1.3 `lycoris/functional/general.py`, `weight_decompose`.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::delta::{Delta, product, swap_halves};
use crate::{Error, Result};

/// A change of some rows of a linear layer: `scale * D` is added to its weight, where the matrix `D` [rows, in] is
/// given in factors, and the rows (or columns) of the sum may be brought to given lengths (DoRA).
///
/// Fused layers (`qkv`) have one for each of their parts, at the rows where the part begins.
///
/// # Example
/// ```
/// use kontext_core::{Device, Kind, Tensor, nn::Change};
/// let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
/// let change = Change::low_rank(ones(&[2, 6]), ones(&[3, 2]), 0.5, 4)?; // 0.5 * up @ down, from row 4
/// assert_eq!((change.rows(), change.input(), change.rank()), (4..7, 6, Some(2)));
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Change {
    delta: Option<Delta>,
    bias: Option<Tensor>,
    magnitude: Option<(Tensor, Norm)>,
    scale: f64,
    strength: f64,
    /// Whether `scale` holds for the bias, too, as for one that stands beside `up`.
    scales_bias: bool,
    rows: Range<i64>,
}

/// How a program that writes DoRA files applies the lengths of rows, and a strength other than 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// `m / |W + s D| * (W + s D)`, where the strength is a part of `s`. Rows only.
    Peft,
    /// `(1 + strength * (m / (|W + D| + eps) - 1)) * (W + D)`: the strength does not reach `D`. Rows, or columns where
    /// `m` is [1, in].
    Lycoris,
}

impl Clone for Change {
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

impl Change {
    fn new(delta: Delta, scale: f64, start: i64) -> Result<Self> {
        let delta = delta.checked()?;
        let rows = start..start + delta.rows();
        Ok(Self { delta: Some(delta), bias: None, magnitude: None, scale, strength: 1.0, scales_bias: false, rows })
    }

    /// `up @ down`: `down` [rank, in], `up` [rows, rank]; the rows `start..start + rows` of the layer change.
    ///
    /// # Errors
    /// [`Error::Shape`] where the two do not fit each other.
    pub fn low_rank(down: Tensor, up: Tensor, scale: f64, start: i64) -> Result<Self> {
        Self::new(Delta::LowRank { down, up }, scale, start)
    }

    /// The Kronecker product `first ⊗ second` (LoKr), each given as a matrix or as two whose product it is. It is
    /// never written out: `x` is multiplied with one factor and then with the other.
    ///
    /// # Errors
    /// [`Error::Shape`] where factors do not fit each other.
    pub fn kronecker(first: Vec<Tensor>, second: Vec<Tensor>, scale: f64, start: i64) -> Result<Self> {
        // The first is small, so its product is made at once.
        let first = product(&first)?;
        Self::new(Delta::Kronecker { first, second }, scale, start)
    }

    /// `(a0 @ b0) * (a1 @ b1)`, element by element (LoHa): `a` [rows, rank], `b` [rank, in].
    ///
    /// # Errors
    /// [`Error::Shape`] where factors do not fit each other.
    pub fn hadamard(a: [Tensor; 2], b: [Tensor; 2], scale: f64, start: i64) -> Result<Self> {
        Self::new(Delta::Hadamard { a, b }, scale, start)
    }

    /// A whole matrix [rows, in].
    ///
    /// # Errors
    /// [`Error::Shape`] where it is none.
    pub fn full(matrix: Tensor, scale: f64, start: i64) -> Result<Self> {
        Self::new(Delta::Full(matrix), scale, start)
    }

    /// A change of the bias `[rows]` alone.
    ///
    /// # Errors
    /// [`Error::Shape`] where it is no vector.
    pub fn of_bias(bias: Tensor, start: i64) -> Result<Self> {
        let rows = start..start + bias.size().first().copied().unwrap_or_default();
        let blank =
            Self { delta: None, bias: None, magnitude: None, scale: 1.0, strength: 1.0, scales_bias: false, rows };
        blank.with_bias(bias, false)
    }

    /// The same with a change of the bias `[rows]`, to which the scale applies (a bias beside `up`) or not (a
    /// difference of biases).
    ///
    /// # Errors
    /// [`Error::Shape`] for a bias of another length.
    pub fn with_bias(self, bias: Tensor, scaled: bool) -> Result<Self> {
        if bias.size() != [self.rows.end - self.rows.start] {
            return Err(Error::Shape { tensor: "bias of a change", expected: "[rows]", got: bias.size() });
        }
        Ok(Self { bias: Some(bias), scales_bias: scaled, ..self })
    }

    /// The same with lengths for the changed rows, `[rows]` or [rows, 1], or for its columns, [1, in] (DoRA).
    ///
    /// # Errors
    /// [`Error::Shape`] for another shape.
    pub fn with_magnitude(self, magnitude: Tensor, norm: Norm) -> Result<Self> {
        let (rows, input) = (self.rows.end - self.rows.start, self.input());
        let shape = match (magnitude.size().as_slice(), norm) {
            ([n] | [n, 1], _) if *n == rows => [rows, 1],
            ([1, n], Norm::Lycoris) if *n == input => [1, input],
            _ => {
                let expected = "[rows], [rows, 1] or [1, in]";
                return Err(Error::Shape { tensor: "magnitude of a change", expected, got: magnitude.size() });
            }
        };
        let magnitude = magnitude.f_to_kind(Kind::Float)?.f_reshape(shape)?;
        Ok(Self { magnitude: Some((magnitude, norm)), ..self })
    }

    /// The same for rows that begin at `start`.
    #[must_use]
    pub fn starting_at(self, start: i64) -> Self {
        Self { rows: start..start + self.rows.end - self.rows.start, ..self }
    }

    /// The same at another strength; 1 is as it was trained.
    #[must_use]
    pub fn at_strength(self, strength: f64) -> Self {
        Self { strength, ..self }
    }

    /// The same for a layer with the halves of its rows in the other order.
    ///
    /// # Errors
    /// [`Error::Torch`] where libtorch fails.
    pub fn swapped(self) -> Result<Self> {
        let magnitude = match &self.magnitude {
            Some((m, norm)) if m.size().first() != Some(&1) => Some((swap_halves(m)?, *norm)),
            other => other.as_ref().map(|(m, norm)| (m.shallow_clone(), *norm)),
        };
        let delta = self.delta.as_ref().map(Delta::swapped).transpose()?;
        let bias = self.bias.as_ref().map(swap_halves).transpose()?;
        Ok(Self { delta, bias, magnitude, ..self })
    }

    /// The strength that was set.
    #[must_use]
    pub fn strength(&self) -> f64 {
        self.strength
    }

    /// Width of the layer's input; 0 for a change of the bias alone.
    #[must_use]
    pub fn input(&self) -> i64 {
        self.delta.as_ref().map_or(0, Delta::input)
    }

    /// The rows of the layer that it changes.
    #[must_use]
    pub fn rows(&self) -> Range<i64> {
        self.rows.clone()
    }

    /// The rank of its products; none for full matrices.
    #[must_use]
    pub fn rank(&self) -> Option<i64> {
        self.delta.as_ref().and_then(Delta::rank)
    }

    /// Whether the layer would stay as it is: a factor is zero, or the strength.
    ///
    /// # Errors
    /// [`Error::Torch`] where libtorch fails.
    pub fn is_nothing(&self) -> Result<bool> {
        let zero = |t: &Tensor| -> Result<bool> { Ok(t.f_count_nonzero(None)?.f_int64_value(&[])? == 0) };
        let delta = self.delta.as_ref().map_or(Ok(true), Delta::is_zero)?;
        let bias = self.bias.as_ref().map_or(Ok(true), zero)?;
        let silent = (delta || self.scale == 0.0) && (bias || (self.scales_bias && self.scale == 0.0));
        Ok(self.strength == 0.0 || (silent && self.magnitude.is_none()))
    }

    /// Checks that it fits a layer with a weight of this shape.
    pub(crate) fn fits(&self, weight: &[i64]) -> Result<()> {
        match weight {
            [rows, input] if (self.delta.is_none() || *input == self.input()) && self.rows.end <= *rows => Ok(()),
            _ => {
                let got = vec![self.rows.end, self.input()];
                Err(Error::Shape { tensor: "change", expected: "[at most out, in] of its linear layer", got })
            }
        }
    }

    /// What is added to the bias, in f32, and where.
    pub(crate) fn bias_to(&self, device: Device) -> Result<Option<(Tensor, Range<i64>)>> {
        let Some(bias) = &self.bias else { return Ok(None) };
        let scale = if self.scales_bias { self.scale * self.strength } else { self.strength };
        let bias = bias.f_to_device(device)?.f_to_kind(Kind::Float)?.f_mul_scalar(scale)?;
        Ok(Some((bias, self.rows.clone())))
    }

    /// What is to be computed on a device, with the lengths of the weight's rows found. `weight` gives the layer's
    /// weight [out, in] in f32, and is asked for it only where lengths are needed.
    pub(crate) fn place(&self, device: Device, weight: impl FnOnce() -> Result<Tensor>) -> Result<Placed> {
        let (scale, factor) = match (&self.magnitude, &self.delta) {
            (Some((magnitude, norm)), Some(delta)) => {
                let scale = if *norm == Norm::Peft { self.scale * self.strength } else { self.scale };
                let delta = delta.to_device(device)?.matrix()?.f_mul_scalar(scale)?;
                let weight = weight()?.f_narrow(0, self.rows.start, self.rows.end - self.rows.start)?;
                let sum = weight.f_add(&delta)?;
                let along_rows = magnitude.size().first() != Some(&1) || magnitude.size() == [1, 1];
                let length = sum.f_norm_scalaropt_dim(2.0, if along_rows { [1_i64] } else { [0] }, true)?;
                let factor = match norm {
                    Norm::Peft => magnitude.f_to_device(device)?.f_div(&length)?,
                    Norm::Lycoris => {
                        let length = length.f_add_scalar(f64::from(f32::EPSILON))?;
                        let full = magnitude.f_to_device(device)?.f_div(&length)?;
                        full.f_sub_scalar(1.0)?.f_mul_scalar(self.strength)?.f_add_scalar(1.0)?
                    }
                };
                let factor = factor.f_flatten(0, -1)?;
                (scale, if along_rows { Factor::Rows(factor) } else { Factor::Columns(factor) })
            }
            _ => (self.scale * self.strength, Factor::None),
        };
        let bias = self.bias_to(device)?.map(|(bias, _)| bias);
        let delta = self.delta.as_ref().map(|d| d.to_device(device)).transpose()?;
        Ok(Placed { delta, bias, factor, scale, rows: self.rows.clone() })
    }
}

/// A change on its layer's device.
#[derive(Debug)]
pub(crate) struct Placed {
    delta: Option<Delta>,
    bias: Option<Tensor>,
    factor: Factor,
    scale: f64,
    rows: Range<i64>,
}

/// What the rows or the columns of weight and change are multiplied with, in f32.
#[derive(Debug)]
enum Factor {
    None,
    Rows(Tensor),
    Columns(Tensor),
}

/// The stretch of a layer that an output holds.
pub(crate) struct Window<'a> {
    /// Output features.
    pub(crate) rows: Range<i64>,
    /// Input features.
    pub(crate) columns: Range<i64>,
    /// Whether the bias is a part of it.
    pub(crate) bias: bool,
    /// Those rows and columns of the weight, times a tensor of those input features.
    pub(crate) product: &'a dyn Fn(&Tensor) -> Result<Tensor>,
}

impl Placed {
    pub(crate) fn shallow_clone(&self) -> Self {
        let factor = match &self.factor {
            Factor::None => Factor::None,
            Factor::Rows(f) => Factor::Rows(f.shallow_clone()),
            Factor::Columns(f) => Factor::Columns(f.shallow_clone()),
        };
        let bias = self.bias.as_ref().map(Tensor::shallow_clone);
        Self { delta: self.delta.clone(), bias, factor, scale: self.scale, rows: self.rows.clone() }
    }

    /// The same for a layer whose input is multiplied with `factor` beforehand.
    pub(crate) fn divided(self, factor: f64) -> Self {
        Self { scale: self.scale / factor, ..self }
    }

    /// Whether [`Placed::add_to`] takes the plain product of the weight.
    pub(crate) fn scales_rows(&self) -> bool {
        matches!(self.factor, Factor::Rows(_))
    }

    /// Adds the change to `y` [.., rows of the window], the layer's output for `x` [.., columns of the window].
    /// `plain` is the product of weight and `x` alone.
    pub(crate) fn add_to(&self, y: &Tensor, x: &Tensor, window: &Window<'_>, plain: Option<&Tensor>) -> Result<()> {
        let (from, to) = (self.rows.start.max(window.rows.start), self.rows.end.min(window.rows.end));
        if from >= to {
            return Ok(());
        }
        let kind = x.kind();
        let of_window = |t: &Tensor| t.f_narrow(-1, from - window.rows.start, to - from);
        let own = from - self.rows.start..to - self.rows.start;
        // A view: what is added arrives in `y`, and gradients pass through both.
        let mut part = of_window(y)?;
        let scaled = |x: &Tensor| -> Result<Option<Tensor>> {
            self.delta.as_ref().map(|delta| delta.apply(x, self.scale, &own, &window.columns)).transpose()
        };
        let added = match &self.factor {
            Factor::None => scaled(x)?,
            Factor::Rows(factor) => {
                let plain = match plain {
                    Some(plain) => plain.shallow_clone(),
                    None => (window.product)(x)?,
                };
                let factor = factor.f_narrow(0, own.start, to - from)?;
                let rest = of_window(&plain)?.f_mul(&factor.f_sub_scalar(1.0)?.f_to_kind(kind)?)?;
                scaled(x)?.map(|delta| rest.f_add(&delta.f_mul(&factor.f_to_kind(kind)?)?)).transpose()?
            }
            Factor::Columns(factor) => {
                let factor = factor.f_narrow(0, window.columns.start, window.columns.end - window.columns.start)?;
                let rest = (window.product)(&x.f_mul(&factor.f_sub_scalar(1.0)?.f_to_kind(kind)?)?)?;
                let delta = scaled(&x.f_mul(&factor.f_to_kind(kind)?)?)?;
                delta.map(|delta| of_window(&rest)?.f_add(&delta)).transpose()?
            }
        };
        if let Some(added) = added {
            let _ = part.f_add_(&added)?;
        }
        if let Some(bias) = self.bias.as_ref().filter(|_| window.bias) {
            let _ = part.f_add_(&bias.f_narrow(0, own.start, to - from)?.f_to_kind(kind)?)?;
        }
        Ok(())
    }

    /// Adds the change to `sum`, which begins as the layer's weight [out, in] in f32; `weight` is the weight itself.
    pub(crate) fn fuse_into(&self, sum: &Tensor, weight: &Tensor) -> Result<()> {
        let Some(delta) = &self.delta else { return Ok(()) };
        let count = self.rows.end - self.rows.start;
        let delta = delta.matrix()?.f_mul_scalar(self.scale)?;
        let own = weight.f_narrow(0, self.rows.start, count)?;
        let added = match &self.factor {
            Factor::None => delta,
            Factor::Rows(factor) => own.f_add(&delta)?.f_mul(&factor.f_unsqueeze(1)?)?.f_sub(&own)?,
            Factor::Columns(factor) => own.f_add(&delta)?.f_mul(factor)?.f_sub(&own)?,
        };
        let _ = sum.f_narrow(0, self.rows.start, count)?.f_add_(&added)?;
        Ok(())
    }
}
