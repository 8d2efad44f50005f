//! Tensors as a part asks for them: found by name, checked, converted and moved to their device.

use kontext_core::{CheckpointError, Error, Result, lock};
use kontext_formats::TensorMap;
use tch::{Kind, Tensor};

use super::{Conversion, Weights, same_but_ones};
use crate::ops::swap_halves;

impl Weights {
    /// The tensor `name` below the cursor.
    ///
    /// Sizes of one may differ between the file and `shape` (a 1x1 convolution read as a linear layer).
    ///
    /// # Errors
    /// [`Error::Checkpoint`]: missing (with the nearest name), of another shape, or of a dtype that is not one of a
    /// weight.
    pub fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let full = self.full(name);
        if let Some(drawn) = self.store.draw(&full, shape, self.device)? {
            return self.fuse(&full, self.place(&drawn)?);
        }
        let map = self.map(&full);
        if let Some(problems) = &self.audit {
            return self.check(&map, shape, problems);
        }
        let value = match &map {
            TensorMap::Name(name) => self.place(&self.read(name)?)?,
            TensorMap::Rows(names) => {
                let rows = names.iter().map(|name| self.place(&self.read(name)?));
                Tensor::f_cat(&rows.collect::<Result<Vec<_>>>()?, 0)?
            }
            TensorMap::SwapHalves(name) => swap_halves(&self.place(&self.read(name)?)?)?,
        };
        let got = value.size();
        if got == shape {
            return self.fuse(&full, value);
        }
        if same_but_ones(&got, shape) {
            return self.fuse(&full, value.f_reshape(shape)?);
        }
        Err(self.wrong_shape(&map, shape, &got))
    }

    pub(super) fn wrong_shape(&self, map: &TensorMap, expected: &[i64], got: &[i64]) -> Error {
        self.store.error(CheckpointError::Shape {
            name: map.names().join("` + `"),
            expected: expected.to_vec(),
            got: got.to_vec(),
        })
    }

    /// Reads a tensor of floating point.
    pub(super) fn read(&self, name: &str) -> Result<Tensor> {
        let value = self.store.raw(name)?;
        match value.kind() {
            Kind::Double | Kind::Float | Kind::Half | Kind::BFloat16 | Kind::Float8e4m3fn | Kind::Float8e5m2 => {
                Ok(value)
            }
            other => Err(self.store.error(CheckpointError::Dtype {
                name: name.to_owned(),
                dtype: format!("{other:?}"),
            })),
        }
    }

    /// Moves a tensor to the cursor's device and kind, in the order that copies fewer bytes.
    fn place(&self, value: &Tensor) -> Result<Tensor> {
        let value = value.f_to_device(self.device)?;
        let kind = match self.kind {
            Conversion::Keep => value.kind(),
            Conversion::To(kind) => kind,
            Conversion::AtMost(kind) if value.kind().elt_size_in_bytes() < kind.elt_size_in_bytes() => value.kind(),
            Conversion::AtMost(kind) => kind,
        };
        Ok(value.f_to_kind(kind)?)
    }

    /// Returns `true` if there are adapters to fuse with this tensor.
    pub(super) fn fuses(&self, full: &str) -> bool {
        let Some(adapters) = self.linear.fused.as_deref().map(lock) else {
            return false;
        };
        full.strip_suffix(".weight")
            .is_some_and(|layer| !adapters.of(layer).is_empty())
    }

    /// Adds the adapters that are to be fused with a tensor.
    fn fuse(&self, full: &str, value: Tensor) -> Result<Tensor> {
        let Some(adapters) = self.linear.fused.as_deref().map(lock) else {
            return Ok(value);
        };
        let Some((layer, leaf)) = full.rsplit_once('.') else {
            return Ok(value);
        };
        let adapters = adapters.of(layer);
        if adapters.is_empty() || !(leaf == "weight" || leaf == "bias") {
            return Ok(value);
        }
        // Narrow weights of a model that computes in a wide kind are widened: rounding would lose the adapters.
        let kind = match self.kind {
            Conversion::Keep => value.kind(),
            Conversion::To(kind) | Conversion::AtMost(kind) => kind,
        };
        let wide = value.f_to_kind(Kind::Float)?;
        // A copy, never the file's or another model's values.
        let sum = wide.f_to_dtype(Kind::Float, false, true)?;
        for adapter in adapters {
            if leaf == "weight" {
                adapter.fits(&value.size())?;
                adapter
                    .place(self.device, || Ok(wide.shallow_clone()))?
                    .fuse_into(&sum, &wide)?;
            } else if let Some((bias, rows)) = adapter.bias_to(self.device)? {
                let _ = sum.f_narrow(0, rows.start, rows.end - rows.start)?.f_add_(&bias)?;
            }
        }
        Ok(sum.f_to_kind(kind)?)
    }
}
