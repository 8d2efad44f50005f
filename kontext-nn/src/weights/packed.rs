//! Matrices of linear layers: packed, left in the file, or plain.

use kontext_core::Result;
use kontext_formats::quant::Format;
use kontext_formats::{Quantize, TensorMap};

use super::{Offload, Weights, same_but_ones};
use crate::adapter::AdapterSlot;
use crate::matrix::{Matrix, PackedRows};

impl Weights {
    /// The weight [out, in] of the linear layer at the cursor: packed if it is stored so, or left in its file.
    pub(crate) fn matrix(&self, name: &str, shape: [i64; 2]) -> Result<Matrix> {
        if self.audit.is_some() {
            return Ok(Matrix::Plain(self.tensor(name, &shape)?));
        }
        let full = self.full(name);
        let map = self.map(&full);
        // An adapter can only be fused with a weight in full width.
        let fused = self.fuses(&full);
        if !fused && let Some(rows) = self.packed_rows(&map, shape)? {
            return self.packed(rows);
        }
        let quantize = self
            .linear
            .quantize
            .filter(|to| to.fits(shape[1]) && !self.is_synthetic());
        match quantize {
            Some(to) if fused => {
                let matrix = to.matrix(&self.tensor(name, &shape)?)?;
                self.packed(PackedRows::new(vec![matrix], self.device)?)
            }
            Some(to) => self.packed(self.quantized_rows(to, &map, shape)?),
            None => Ok(Matrix::Plain(self.tensor(name, &shape)?)),
        }
    }

    /// Packed rows with the cursor's way to multiply.
    fn packed(&self, rows: PackedRows) -> Result<Matrix> {
        rows.multiplied_in_fp8(self.linear.fp8).map(Matrix::Packed)
    }

    /// Returns `true` if [`Weights::quantized`] applies to at least one matrix of a file among the tensors
    /// that `of` selects by their names in the file: those quantised in the file, or left in it, stay as they are. Fused
    /// adapters ([`Weights::fused`]), whose matrices are quantised in any case, are not considered.
    #[must_use]
    pub fn quantizes_any(&self, of: impl Fn(&str) -> bool) -> bool {
        let Some(to) = self.linear.quantize else { return false };
        let in_file = self.linear.offload == Offload::All;
        let applies = |name: &String| {
            let entry = self.store.entry(name);
            entry.is_some_and(|entry| {
                let columns = entry.shape().get(1).filter(|_| entry.shape().len() == 2);
                let stays = entry.is_packed() || in_file && entry.format().is_some();
                !stays && columns.is_some_and(|columns| to.fits(*columns))
            })
        };
        let mut names = self.store.names().into_iter();
        names.any(|name| of(&name) && applies(&name))
    }

    /// Returns `true` if a matrix of a file among the tensors that `of` selects by their names in the file is in e4m3.
    #[must_use]
    pub fn has_fp8(&self, of: impl Fn(&str) -> bool) -> bool {
        let in_e4m3 = |name: &String| {
            let entry = self.store.entry(name);
            entry.is_some_and(|entry| entry.shape().len() == 2 && entry.format() == Some(Format::F8E4M3))
        };
        self.store.names().iter().any(|name| of(name) && in_e4m3(name))
    }

    /// The adapter slot of the layer at the cursor with this weight.
    pub(crate) fn slot(&self, weight: &Matrix) -> Option<AdapterSlot> {
        let slots = self.linear.slots.as_ref()?;
        Some(slots.register(self.prefix.trim_end_matches('.'), weight))
    }

    /// The rows that a map names, if one of its tensors is to stay packed and all can.
    fn packed_rows(&self, map: &TensorMap, shape: [i64; 2]) -> Result<Option<PackedRows>> {
        let names = map.names();
        let Some(found) = names
            .iter()
            .map(|name| self.store.entry(name))
            .collect::<Option<Vec<_>>>()
        else {
            return Ok(None);
        };
        let in_file = self.linear.offload == Offload::All;
        let can = found.iter().all(|entry| entry.format().is_some());
        // Codes without a scale are also plain numbers.
        let fp8 = self.linear.fp8 && found.iter().all(|entry| entry.format() == Some(Format::F8E4M3));
        if !can || !(in_file || fp8 || found.iter().any(|entry| entry.is_packed())) {
            return Ok(None);
        }
        let mut matrices = Vec::with_capacity(found.len());
        for (name, entry) in names.iter().zip(&found) {
            let mut matrix = if in_file {
                self.store.map_matrix(name)?
            } else {
                self.store.read_matrix(name)?
            };
            // Sizes of one may differ, as for plain tensors.
            if found.len() == 1 && same_but_ones(entry.shape(), &shape) {
                matrix = matrix.reshaped(shape.map(|side| side as usize));
            }
            if matrix.size()[1] as i64 != shape[1] {
                return Err(self.wrong_shape(&TensorMap::Name(name.clone()), &shape, entry.shape()));
            }
            matrices.push(matrix);
        }
        self.store.mark_used(names);
        let prefetch = self.linear.prefetch.clone().filter(|_| in_file);
        let rows = PackedRows::new(matrices, self.device)?.prefetched(prefetch);
        self.in_order(rows, map, shape).map(Some)
    }

    /// The rows that a map names, quantised.
    fn quantized_rows(&self, to: Quantize, map: &TensorMap, shape: [i64; 2]) -> Result<PackedRows> {
        let quantize = |name: &String| to.matrix(&self.read(name)?);
        let matrices = map.names().iter().map(quantize).collect::<Result<_>>()?;
        self.in_order(PackedRows::new(matrices, self.device)?, map, shape)
    }

    /// Checks the size of the rows of a map, and puts its halves in order.
    fn in_order(&self, rows: PackedRows, map: &TensorMap, shape: [i64; 2]) -> Result<PackedRows> {
        if rows.size() != shape {
            return Err(self.wrong_shape(map, &shape, &rows.size()));
        }
        Ok(match map {
            TensorMap::SwapHalves(_) => rows.halves_swapped(),
            TensorMap::Name(_) | TensorMap::Rows(_) => rows,
        })
    }
}

#[cfg(test)]
mod tests {
    use kontext_core::noise;
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::Linear;

    fn draw(shape: &[i64], seed: u64) -> Tensor {
        noise::randn(shape, seed, Kind::Float, Device::Cpu).unwrap()
    }

    #[test]
    fn a_layer_packed_as_it_is_read_is_near_the_plain_one() {
        let weights = || Weights::from_tensors([("a.weight".to_owned(), draw(&[96, 64], 1))]);
        let x = draw(&[5, 64], 2);
        let output = |to| {
            Linear::without_bias(&weights().quantized(to).at("a"), 64, 96)
                .unwrap()
                .forward(&x)
                .unwrap()
        };
        let plain = output(None);
        // Twice the root mean square of the rounding of each format on normal values.
        let bounds = [0.01, 0.06, 0.02, 0.06, 0.08, 0.12, 0.16];
        for (to, bound) in Quantize::ALL.into_iter().zip(bounds) {
            let error = ((output(Some(to)) - &plain).norm() / plain.norm()).double_value(&[]);
            assert!(error > 1e-4 && error < bound, "{to}: {error}");
        }
    }

    #[test]
    fn columns_that_are_no_whole_blocks_stay_plain() {
        let weights =
            Weights::from_tensors([("a.weight".to_owned(), draw(&[8, 20], 1))]).quantized(Some(Quantize::Q4_0));
        let x = draw(&[5, 20], 2);
        let y = Linear::without_bias(&weights.at("a"), 20, 8)
            .unwrap()
            .forward(&x)
            .unwrap();
        assert!(y.allclose(&x.matmul(&draw(&[8, 20], 1).tr()), 1e-5, 1e-6, false));
    }
}
