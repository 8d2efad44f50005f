//! Adapters on their layer's device: added to its output, or to its weight.

use std::ops::Range;

use kontext_core::Result;
use tch::Tensor;

use super::delta::Delta;

/// An adapter on its layer's device.
#[derive(Debug)]
pub(crate) struct DeviceAdapter {
    pub(super) delta: Option<Delta>,
    pub(super) bias: Option<Tensor>,
    pub(super) factor: Factor,
    pub(super) scaling: f64,
    pub(super) rows: Range<i64>,
}

/// DoRA multipliers for the rows or the columns of weight and adapter, in f32.
#[derive(Debug)]
pub(super) enum Factor {
    None,
    Rows(Tensor),
    Columns(Tensor),
}

/// The part of a layer that an output covers.
pub(crate) struct Window<'a> {
    /// Output features.
    pub(crate) rows: Range<i64>,
    /// Input features.
    pub(crate) columns: Range<i64>,
    /// If set, the bias is included.
    pub(crate) bias: bool,
    /// The product of those rows and columns of the weight with a tensor of those input features.
    pub(crate) product: &'a dyn Fn(&Tensor) -> Result<Tensor>,
}

impl DeviceAdapter {
    pub(crate) fn shallow_clone(&self) -> Self {
        let factor = match &self.factor {
            Factor::None => Factor::None,
            Factor::Rows(f) => Factor::Rows(f.shallow_clone()),
            Factor::Columns(f) => Factor::Columns(f.shallow_clone()),
        };
        let bias = self.bias.as_ref().map(Tensor::shallow_clone);
        Self {
            delta: self.delta.clone(),
            bias,
            factor,
            scaling: self.scaling,
            rows: self.rows.clone(),
        }
    }

    /// Returns `true` if [`DeviceAdapter::add_to`] uses the plain product of the weight.
    pub(crate) fn scales_rows(&self) -> bool {
        matches!(self.factor, Factor::Rows(_))
    }

    /// Returns `true` if a backward pass has to reach the adapter.
    pub(super) fn requires_grad(&self) -> bool {
        let factor = match &self.factor {
            Factor::None => false,
            Factor::Rows(factor) | Factor::Columns(factor) => factor.requires_grad(),
        };
        factor
            || self.delta.as_ref().is_some_and(Delta::requires_grad)
            || self.bias.as_ref().is_some_and(Tensor::requires_grad)
    }

    /// Adds the adapter to `y` [.., rows of the window], the layer's output for `x` [.., columns of the
    /// window]. `plain` is the product of weight and `x` without adapters.
    pub(crate) fn add_to(&self, y: &Tensor, x: &Tensor, window: &Window<'_>, plain: Option<&Tensor>) -> Result<()> {
        let (from, to) = (
            self.rows.start.max(window.rows.start),
            self.rows.end.min(window.rows.end),
        );
        if from >= to {
            return Ok(());
        }
        let kind = x.kind();
        let window_rows = |t: &Tensor| t.f_narrow(-1, from - window.rows.start, to - from);
        let own = from - self.rows.start..to - self.rows.start;
        // A view: the sum is written to `y`, and gradients pass through both.
        let mut part = window_rows(y)?;
        let scaled = |x: &Tensor| -> Result<Option<Tensor>> {
            self.delta
                .as_ref()
                .map(|delta| delta.apply(x, self.scaling, &own, &window.columns))
                .transpose()
        };
        let added = match &self.factor {
            Factor::None => scaled(x)?,
            Factor::Rows(factor) => {
                let plain = match plain {
                    Some(plain) => plain.shallow_clone(),
                    None => (window.product)(x)?,
                };
                let factor = factor.f_narrow(0, own.start, to - from)?;
                let rest = window_rows(&plain)?.f_mul(&factor.f_sub_scalar(1.0)?.f_to_kind(kind)?)?;
                scaled(x)?
                    .map(|delta| rest.f_add(&delta.f_mul(&factor.f_to_kind(kind)?)?))
                    .transpose()?
            }
            Factor::Columns(factor) => {
                let factor = factor.f_narrow(0, window.columns.start, window.columns.end - window.columns.start)?;
                let rest = (window.product)(&x.f_mul(&factor.f_sub_scalar(1.0)?.f_to_kind(kind)?)?)?;
                let delta = scaled(&x.f_mul(&factor.f_to_kind(kind)?)?)?;
                delta.map(|delta| window_rows(&rest)?.f_add(&delta)).transpose()?
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

    /// Adds the adapter to `sum`, which begins as the layer's weight [out, in] in f32; `weight` is the weight
    /// itself.
    pub(crate) fn fuse_into(&self, sum: &Tensor, weight: &Tensor) -> Result<()> {
        let Some(delta) = &self.delta else { return Ok(()) };
        let count = self.rows.end - self.rows.start;
        let delta = delta.matrix()?.f_mul_scalar(self.scaling)?;
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
