//! Linear layers: `x @ weight^T + bias`.

use std::ops::Range;

use kontext_core::Result;
use tch::{Kind, Tensor};

use super::adapter::ActiveAdapters;
use super::matrix::Matrix;
use crate::{Fp8Rows, Weights, ops};

/// A linear layer, `x @ weight^T + bias` on the last dimension.
///
/// The weight may be stored in another dtype than the input's (bf16 under f32) or packed (GGUF, fp8, four bits): on
/// a CPU it is unpacked piece by piece into a scratch shared by all layers, to the input's f32 or bf16, in which it is
/// multiplied. Packed fp8 weights multiply in fp8 instead, if the layer was built so ([`Weights::fp8_products`]) and no
/// gradient of the input is wanted. Adapters set for the layer ([`Weights::with_slots`]) are added to the output.
#[derive(Debug)]
pub struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
    adapters: ActiveAdapters,
}

impl Linear {
    /// Reads `weight` [out, in] and `bias` `[out]`.
    ///
    /// # Errors
    /// The errors of [`Weights::tensor`].
    pub fn new(w: &Weights, input: i64, output: i64) -> Result<Self> {
        Ok(Self {
            bias: Some(w.tensor("bias", &[output])?),
            ..Self::without_bias(w, input, output)?
        })
    }

    /// Reads `weight` [out, in]; there is no bias.
    ///
    /// # Errors
    /// The errors of [`Weights::tensor`].
    pub fn without_bias(w: &Weights, input: i64, output: i64) -> Result<Self> {
        let weight = w.matrix("weight", [output, input])?;
        Ok(Self {
            adapters: ActiveAdapters::new(w.slot(&weight), input),
            weight,
            bias: None,
        })
    }

    /// Applies the layer: [.., in] to [.., out], in the input's dtype.
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] if libtorch fails.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let kind = x.kind();
        let bias = self.bias.as_ref().map(|b| b.f_to_kind(kind)).transpose()?;
        let y = self.weight.apply(x, bias.as_ref())?;
        self.changed(y, x, 0, false)
    }

    /// Computes `sum + x @ weight^T + bias`, with the addition fused into the matrix multiplication.
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] if libtorch fails.
    pub fn forward_add(&self, x: &Tensor, sum: &Tensor) -> Result<Tensor> {
        let product = self.weight.apply_add(x, sum)?;
        let y = match &self.bias {
            Some(bias) => product.f_add(&bias.f_to_kind(x.kind())?)?,
            None => product,
        };
        self.changed(y, x, 0, true)
    }

    /// Computes [`Linear::forward_add`] in the memory of `sum` if no gradient is wanted; nothing else may use
    /// that memory.
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] if libtorch fails.
    pub fn accumulate(&self, x: &Tensor, mut sum: Tensor) -> Result<Tensor> {
        if self.wants_gradient(x) || sum.requires_grad() || sum.kind() != x.kind() || !sum.is_contiguous() {
            return self.forward_add(x, &sum);
        }
        self.weight.apply_add_in_place(x, &mut sum)?;
        if let Some(bias) = &self.bias {
            let _ = sum.f_add_(&bias.f_to_kind(x.kind())?)?;
        }
        self.changed(sum, x, 0, true)
    }

    /// Writes the output features `features` for `x` [B, L, in] to `out` [B, L, features], which may be a part
    /// of a larger tensor: the projections of two sequences to one need no concatenation.
    ///
    /// No gradient may be wanted ([`Linear::wants_gradient`]).
    ///
    /// # Example
    /// ```
    /// use kontext_core::{Device, Kind, Tensor};
    /// use kontext_nn::{Linear, Weights};
    /// let layer = Linear::new(&Weights::synthetic(1).at("qkv"), 6, 8)?;
    /// let (x, joint) = (Tensor::ones([1, 3, 6], (Kind::Float, Device::Cpu)), Tensor::zeros([1, 5, 8], (Kind::Float, Device::Cpu)));
    /// layer.forward_to(&x, 0..8, &joint.narrow(1, 2, 3))?;
    /// assert_eq!(joint.narrow(1, 2, 3), layer.forward(&x)?);
    /// assert_eq!(joint.narrow(1, 0, 2).abs().max().double_value(&[]), 0.0);
    /// # Ok::<(), kontext_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] if libtorch fails, as it does for an `out` of another shape or dtype and
    /// where a gradient is wanted.
    pub fn forward_to(&self, x: &Tensor, features: Range<i64>, out: &Tensor) -> Result<()> {
        let (start, count) = (features.start, features.end - features.start);
        let weight = self.weight.rows(start, count)?;
        let bias = self.bias_rows(start, count, x.kind())?;
        let batch = x.size().first().copied().unwrap_or_default();
        // An item's rows are one matrix even where those of the batch are apart.
        for item in 0..batch {
            weight.apply_to(&x.f_select(0, item)?, bias.as_ref(), &out.f_select(0, item)?)?;
        }
        let _ = self.changed(out.shallow_clone(), x, start, false)?;
        Ok(())
    }

    /// Computes GELU, in its tanh approximation, of the output features `features`: [.., in] to
    /// [.., features].
    ///
    /// On a CUDA device the multiplication applies it to its sums before it rounds them, unless the weight has
    /// to be unpacked, an adapter is active, or a gradient is wanted.
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] if libtorch fails.
    pub fn forward_gelu(&self, x: &Tensor, features: Range<i64>) -> Result<Tensor> {
        let (start, count) = (features.start, features.end - features.start);
        if x.device().is_cuda()
            && self.weight.is_of(x.kind())
            && self.adapters.is_empty()
            && !self.wants_gradient(x)
            && let Some(bias) = self.bias_rows(start, count, x.kind())?
        {
            // On a CPU the same operation is the exact GELU.
            let weight = self.weight.rows(start, count)?.dense(x.kind())?.f_transpose(0, 1)?;
            let y = bias.f_internal_addmm_activation(&x.f_flatten(0, -2)?, &weight, true)?;
            let mut shape = x.size();
            if let Some(last) = shape.last_mut() {
                *last = count;
            }
            return Ok(y.f_reshape(shape)?);
        }
        ops::gelu_tanh(self.forward_rows(x, start, count)?)
    }

    /// Returns `true` if the layer's output for `x` has a gradient outside [`tch::no_grad`]: `x`, the weights or
    /// an active adapter requires one.
    #[must_use]
    pub fn wants_gradient(&self, x: &Tensor) -> bool {
        x.requires_grad() || self.is_trained()
    }

    /// Returns `true` if the weights or an active adapter requires a gradient.
    #[must_use]
    pub fn is_trained(&self) -> bool {
        self.weight.requires_grad()
            || self.bias.as_ref().is_some_and(Tensor::requires_grad)
            || self.adapters.requires_grad()
    }

    /// Returns `true` if the output features `features` for activations of this kind are computed in fp8:
    /// [`Linear::forward_fp8`] then saves their rounding, and otherwise widens its input.
    #[must_use]
    pub fn multiplies_in_fp8(&self, features: Range<i64>, kind: Kind) -> bool {
        if self.weight.is_plain() {
            return false;
        }
        let part = self.weight.rows(features.start, features.end - features.start);
        part.is_ok_and(|part| part.in_fp8(kind).is_some())
    }

    /// Returns `true` if [`Linear::forward_fp8`] computes from rounded rows what the layer computes from the rows
    /// themselves: the product is in fp8, and this thread uses no adapter of the layer, whose input is not rounded.
    #[must_use]
    pub fn takes_fp8(&self, features: Range<i64>, kind: Kind) -> bool {
        self.multiplies_in_fp8(features, kind) && self.adapters.is_empty()
    }

    /// Computes the output features `features` for an input that is rounded to fp8 already: [.., in] to
    /// [.., features], in this kind. Adapters get the rounded input. There is no gradient.
    ///
    /// # Example
    /// ```
    /// use kontext_core::{Device, Kind, Tensor};
    /// use kontext_formats::Quantize;
    /// use kontext_nn::{Fp8Rows, Linear, Weights};
    /// let weight = Tensor::eye(32, (Kind::Float, Device::Cpu));
    /// let weights = Weights::from_tensors([("weight".to_owned(), weight)]);
    /// let layer = Linear::without_bias(&weights.quantized(Some(Quantize::Fp8)).fp8_products(true), 32, 32)?;
    /// assert!(layer.multiplies_in_fp8(0..16, Kind::Float));
    /// let x = Tensor::linspace(-1.0, 1.0, 32, (Kind::Float, Device::Cpu)).unsqueeze(0);
    /// let rounded = Fp8Rows::quantise(&x)?;
    /// let y = layer.forward_fp8(&rounded, 0..16, Kind::Float)?;
    /// assert_eq!(y, layer.forward(&x)?.narrow(-1, 0, 16));
    /// assert!(y.allclose(&x.narrow(-1, 0, 16), 1.0 / 16.0, 0.0, false));
    /// # Ok::<(), kontext_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`kontext_core::Error::InvalidArgument`] for features out of range, [`kontext_core::Error::Torch`] if libtorch
    /// fails.
    pub fn forward_fp8(&self, x: &Fp8Rows, features: Range<i64>, kind: Kind) -> Result<Tensor> {
        let (start, count) = (features.start, features.end - features.start);
        let weight = self.weight.rows(start, count)?;
        let Some(packed) = weight.in_fp8(kind) else {
            return self.forward_rows(&x.dense(kind)?, start, count);
        };
        let bias = self.bias_rows(start, count, kind)?;
        let y = packed.fp8_product(x, bias.as_ref(), kind)?;
        self.changed_fp8(y, x, start)
    }

    /// Writes [`Linear::forward_fp8`] for `x` [B, L, in] to `out` [B, L, features], as [`Linear::forward_to`] does.
    ///
    /// # Errors
    /// Those of [`Linear::forward_fp8`] and [`Linear::forward_to`].
    pub fn forward_fp8_to(&self, x: &Fp8Rows, features: Range<i64>, out: &Tensor) -> Result<()> {
        let (start, count, kind) = (features.start, features.end - features.start, out.kind());
        let weight = self.weight.rows(start, count)?;
        let Some(packed) = weight.in_fp8(kind) else {
            return self.forward_to(&x.dense(kind)?, features, out);
        };
        let bias = self.bias_rows(start, count, kind)?;
        for item in 0..x.codes().size().first().copied().unwrap_or_default() {
            let rows = Fp8Rows::new(x.codes().f_select(0, item)?, x.factors().f_select(0, item)?)?;
            packed.fp8_product_to(&rows, bias.as_ref(), &out.f_select(0, item)?)?;
        }
        self.changed_fp8(out.shallow_clone(), x, start).map(drop)
    }

    /// Adds all adapters to `y`, the output features from `start` on for the rounded input `x`.
    fn changed_fp8(&self, y: Tensor, x: &Fp8Rows, start: i64) -> Result<Tensor> {
        if self.adapters.is_empty() {
            return Ok(y);
        }
        let x = x.dense(y.kind())?;
        self.changed(y, &x, start, false)
    }

    /// Splits the input features in two: `self(cat(a, b)) = first(a) + second(b)`.
    ///
    /// The bias stays with the first. This saves the concatenation of large activations. The parts share the memory
    /// of the whole, which may be used next to them.
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] if `at` is not within the input.
    pub fn split_input(&self, at: i64) -> Result<(Self, Self)> {
        let [_, input] = self.weight.size();
        let part = |start: i64, count: i64, bias: Option<Tensor>| -> Result<Self> {
            let adapters = self.adapters.of_columns(start, count, start == 0);
            Ok(Self {
                weight: self.weight.columns(start, count)?,
                bias,
                adapters,
            })
        };
        Ok((
            part(0, at, self.bias.as_ref().map(Tensor::shallow_clone))?,
            part(at, input - at, None)?,
        ))
    }

    /// Computes only the output features `start..start + count`: [.., in] to [.., count].
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] if the range is not within the output.
    pub fn forward_rows(&self, x: &Tensor, start: i64, count: i64) -> Result<Tensor> {
        let bias = self.bias_rows(start, count, x.kind())?;
        let y = self.weight.rows(start, count)?.apply(x, bias.as_ref())?;
        self.changed(y, x, start, false)
    }

    /// Returns the bias of the output features `start..start + count` in this kind.
    fn bias_rows(&self, start: i64, count: i64, kind: Kind) -> Result<Option<Tensor>> {
        let rows = |bias: &Tensor| -> Result<Tensor> { Ok(bias.f_narrow(0, start, count)?.f_to_kind(kind)?) };
        self.bias.as_ref().map(rows).transpose()
    }

    /// Adds all adapters to `y`, the output features from `start` on for the input `x`. If `y` was `summed`
    /// with another tensor, the product of weight and input cannot be recovered from it.
    fn changed(&self, y: Tensor, x: &Tensor, start: i64, summed: bool) -> Result<Tensor> {
        let (kind, count) = (x.kind(), y.size().last().copied().unwrap_or_default());
        let rows = |t: &Tensor| -> Result<Tensor> { Ok(t.f_narrow(0, start, count)?.f_to_kind(kind)?) };
        let product = |x: &Tensor| self.weight.rows(start, count)?.apply(x, None);
        let plain = || match &self.bias {
            _ if summed => Ok(None),
            Some(bias) => Ok(Some(y.f_sub(&rows(bias)?)?)),
            None => Ok(Some(y.f_to_dtype(kind, false, true)?)),
        };
        self.adapters.add_to(&y, x, start, &product, plain)?;
        Ok(y)
    }
}

#[cfg(test)]
mod tests {
    use kontext_core::{Device, noise};

    use super::*;

    #[test]
    fn a_split_layer_computes_what_the_whole_computes() {
        let whole = || Linear::new(&Weights::synthetic(1), 12, 8).unwrap();
        let x = noise::randn(&[2, 5, 12], 0, Kind::Float, Device::Cpu).unwrap();
        let expected = whole().forward(&x).unwrap();

        let (first, second) = whole().split_input(4).unwrap();
        let sum = first.forward(&x.narrow(-1, 0, 4)).unwrap();
        let sum = second.forward_add(&x.narrow(-1, 4, 8), &sum).unwrap();
        assert!(expected.allclose(&sum, 1e-5, 1e-6, false));

        let rows = whole().forward_rows(&x, 3, 5).unwrap();
        assert!(expected.narrow(-1, 3, 5).allclose(&rows, 1e-5, 1e-6, false));
    }

    #[test]
    fn a_weight_stored_in_bf16_multiplies_in_f32() {
        let linear = Linear::new(&Weights::synthetic(1).kind(Kind::BFloat16), 4, 3).unwrap();
        let y = linear
            .forward(&Tensor::ones([1, 4], (Kind::Float, Device::Cpu)))
            .unwrap();
        assert_eq!(y.kind(), Kind::Float);
    }
}
