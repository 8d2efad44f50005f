//! Tensors as a part asks for them: found by name, checked, converted and put in their place.

use tch::{Kind, Tensor};

use super::{Conversion, Recipe, Source, Weights, lock, names, same_but_ones, synthetic};
use crate::ops::swap_halves;
use crate::{CheckpointError, Error, Result};

impl Weights {
    /// The tensor `name` below the cursor.
    ///
    /// Sizes of one may differ between the file and `shape` (a 1x1 convolution read as a linear).
    ///
    /// # Errors
    /// [`Error::Checkpoint`]: missing (with the nearest name), of another shape, or of a dtype
    /// that is no weight.
    pub fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let full = format!("{}{name}", self.prefix);
        if let Source::Synthetic { seed, made } = &self.store.source {
            lock(made).insert(full.clone(), shape.to_vec());
            let value = self.place(&synthetic::tensor(&full, shape, *seed, self.device)?)?;
            return self.fuse(&full, value);
        }
        let recipe = self.map.map_or_else(|| Recipe::Name(full.clone()), |map| map(&full));
        if self.audit {
            return self.audit(&recipe, shape);
        }
        let value = match &recipe {
            Recipe::Name(name) => self.place(&self.read(name)?)?,
            Recipe::Rows(names) => {
                let rows = names
                    .iter()
                    .map(|n| self.place(&self.read(n)?))
                    .collect::<Result<Vec<_>>>()?;
                Tensor::f_cat(&rows, 0)?
            }
            Recipe::SwapHalves(name) => swap_halves(&self.place(&self.read(name)?)?)?,
        };
        let got = value.size();
        if got == shape {
            return self.fuse(&full, value);
        }
        if same_but_ones(&got, shape) {
            return self.fuse(&full, value.f_reshape(shape)?);
        }
        Err(self.wrong_shape(&recipe, shape, &got))
    }

    pub(super) fn wrong_shape(&self, recipe: &Recipe, expected: &[i64], got: &[i64]) -> Error {
        let name = recipe.names().join("` + `");
        self.error(CheckpointError::Shape {
            name,
            expected: expected.to_vec(),
            got: got.to_vec(),
        })
    }

    /// The tensor `name` of the file on the host as it is stored, whatever its shape and dtype; packed ones
    /// and those with factors beside them as the f32 values that they stand for.
    ///
    /// # Errors
    /// [`Error::Checkpoint`]: missing, or of a dtype that is not known.
    pub fn raw(&self, name: &str) -> Result<Tensor> {
        let missing = || {
            let names = self.names();
            let nearest = names::nearest(name, names.iter().map(String::as_str));
            self.error(CheckpointError::Missing {
                name: name.to_owned(),
                nearest,
            })
        };
        let value = match &self.store.source {
            Source::Files { files, entries } => {
                let entry = entries.get(name).ok_or_else(missing)?;
                if entry.is_packed() {
                    self.unpacked(entry, name)?
                } else {
                    files.get(entry.file).ok_or_else(missing)?.read(&entry.name)?
                }
            }
            Source::Memory(tensors) => {
                let value = lock(tensors).get(name).map(Tensor::shallow_clone);
                value.ok_or_else(missing)?
            }
            Source::Synthetic { .. } => return Err(missing()),
        };
        lock(&self.store.used).insert(name.to_owned());
        Ok(value)
    }

    /// A tensor that is a weight: of floating point.
    pub(super) fn read(&self, name: &str) -> Result<Tensor> {
        let value = self.raw(name)?;
        match value.kind() {
            Kind::Double | Kind::Float | Kind::Half | Kind::BFloat16 | Kind::Float8e4m3fn | Kind::Float8e5m2 => {
                Ok(value)
            }
            other => Err(self.error(CheckpointError::Dtype {
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
}
