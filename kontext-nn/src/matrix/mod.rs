//! A linear layer's weight as it is stored: a tensor, or packed rows that are unpacked for each multiplication.

mod fp8;
mod on_device;
mod rows;

use half::bf16;
use kontext_core::{Error, Result};
use tch::{Device, Kind, Tensor};

use super::scratch::{self, Multiplied};
use crate::fp8::Fp8Rows;
pub(crate) use rows::PackedRows;

/// A matrix [out, in].
#[derive(Debug)]
pub(crate) enum Matrix {
    /// In a kind that libtorch multiplies or converts.
    Plain(Tensor),
    /// In some other form, or left in its file.
    Packed(PackedRows),
}

impl Matrix {
    /// [out, in].
    pub(crate) fn size(&self) -> [i64; 2] {
        match self {
            Matrix::Plain(weight) => {
                let size = weight.size();
                [
                    size.first().copied().unwrap_or_default(),
                    size.get(1).copied().unwrap_or_default(),
                ]
            }
            Matrix::Packed(packed) => packed.size(),
        }
    }

    /// The same weight, in the same memory.
    pub(crate) fn shallow_clone(&self) -> Self {
        match self {
            Matrix::Plain(weight) => Matrix::Plain(weight.shallow_clone()),
            Matrix::Packed(packed) => Matrix::Packed(packed.clone()),
        }
    }

    /// The device of its multiplications.
    pub(crate) fn device(&self) -> Device {
        match self {
            Matrix::Plain(weight) => weight.device(),
            Matrix::Packed(packed) => packed.device,
        }
    }

    /// The same elements as a tensor of this kind, on the layer's device.
    pub(crate) fn dense(&self, kind: Kind) -> Result<Tensor> {
        match self {
            Matrix::Plain(weight) => Ok(weight.f_to_kind(kind)?),
            Matrix::Packed(packed) if packed.by_tensors() => packed.dense_by_tensors(kind),
            Matrix::Packed(packed) => {
                let mut values = vec![0.0; packed.rows() * packed.columns.len()];
                packed.unpack(&mut values)?;
                let dense = Tensor::f_from_slice(&values)?.f_reshape(self.size())?;
                Ok(dense.f_to_kind(kind)?.f_to_device(packed.device)?)
            }
        }
    }

    /// Rows `start..start + count`.
    pub(crate) fn rows(&self, start: i64, count: i64) -> Result<Self> {
        Ok(match self {
            Matrix::Plain(weight) => Matrix::Plain(weight.f_narrow(0, start, count)?),
            Matrix::Packed(packed) => {
                self.within(0, start, count)?;
                Matrix::Packed(packed.only_rows(start as usize, count as usize))
            }
        })
    }

    /// Columns `start..start + count`.
    pub(crate) fn columns(&self, start: i64, count: i64) -> Result<Self> {
        Ok(match self {
            Matrix::Plain(weight) => Matrix::Plain(weight.f_narrow(1, start, count)?),
            Matrix::Packed(packed) => {
                self.within(1, start, count)?;
                let first = packed.columns.start + start as usize;
                Matrix::Packed(PackedRows {
                    columns: first..first + count as usize,
                    ..packed.clone()
                })
            }
        })
    }

    fn within(&self, side: usize, start: i64, count: i64) -> Result<()> {
        let size = self.size()[side];
        let inside = start >= 0 && count >= 0 && start.checked_add(count).is_some_and(|end| end <= size);
        let got = || format!("{start}..{start}+{count}");
        if inside {
            Ok(())
        } else {
            Err(Error::invalid("part of a weight", format!("within 0..{size}"), got()))
        }
    }

    /// The rows at these indices [..]: [.., in] in the given kind.
    pub(crate) fn gather(&self, indices: &Tensor, kind: Kind) -> Result<Tensor> {
        let packed = match self {
            Matrix::Plain(table) => {
                return Ok(Tensor::f_embedding(table, indices, -1, false, false)?.f_to_kind(kind)?);
            }
            Matrix::Packed(packed) => packed,
        };
        let flat = indices.f_to_device(Device::Cpu)?.f_flatten(0, -1)?;
        let flat = Vec::<i64>::try_from(&flat).map_err(|_| Error::Shape {
            tensor: "indices",
            expected: "[..]",
            got: indices.size(),
        })?;
        flat.iter().try_for_each(|index| self.within(0, *index, 1))?;
        let width = packed.columns.len();
        let mut shape = indices.size();
        shape.push(width as i64);
        if packed.on_device() {
            return Ok(packed.gather_by_tensors(&flat, kind)?.f_reshape(shape)?);
        }
        let mut values = vec![0.0; flat.len() * width];
        for (index, row) in flat.iter().zip(values.chunks_mut(width.max(1))) {
            packed.only_rows(*index as usize, 1).unpack(row)?;
        }
        let rows = Tensor::f_from_slice(&values)?.f_reshape(shape)?;
        Ok(rows.f_to_kind(kind)?.f_to_device(packed.device)?)
    }

    /// `x @ self^T + bias` for `x` [.., in].
    pub(crate) fn apply(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        if let Some(packed) = self.in_fp8_for(x, bias) {
            return packed.fp8_product(&Fp8Rows::quantise(x)?, bias, x.kind());
        }
        if !self.unpacks_for(x) {
            return Ok(x.f_linear(&self.dense(x.kind())?, bias)?);
        }
        let rows = x.f_flatten(0, -2)?;
        let y = Tensor::f_empty([rows.size()[0], self.size()[0]], (x.kind(), Device::Cpu))?;
        self.apply_to(&rows, bias, &y)?;
        let mut shape = x.size();
        if let Some(last) = shape.last_mut() {
            *last = self.size()[0];
        }
        Ok(y.f_reshape(shape)?)
    }

    /// Writes `x @ self^T + bias` for `x` [N, in] to `out` [N, out], which may be a part of a larger tensor. No gradient
    /// may be wanted.
    pub(crate) fn apply_to(&self, x: &Tensor, bias: Option<&Tensor>, out: &Tensor) -> Result<()> {
        if let Some(packed) = self.in_fp8_for(x, bias) {
            return packed.fp8_product_to(&Fp8Rows::quantise(x)?, bias, out);
        }
        let multiply = |weight: &Tensor, bias: Option<&Tensor>, out: &Tensor| -> Result<()> {
            let weight = weight.f_transpose(0, 1)?;
            let _ = match bias {
                Some(bias) => bias.f_addmm_out(out, x, &weight)?,
                None => x.f_mm_out(out, &weight)?,
            };
            Ok(())
        };
        if !self.unpacks_for(x) {
            return multiply(&self.dense(x.kind())?, bias, out);
        }
        self.by_pieces(x.kind(), |start, weight| {
            let count = weight.size()[0];
            let bias = bias.map(|bias| bias.f_narrow(0, start, count)).transpose()?;
            multiply(weight, bias.as_ref(), &out.f_narrow(1, start, count)?)
        })
    }

    /// `sum + x @ self^T` for `x` [.., in], with the product added inside the multiplication.
    pub(crate) fn apply_add(&self, x: &Tensor, sum: &Tensor) -> Result<Tensor> {
        if self.in_fp8_for(x, None).is_some() {
            return Ok(self.apply(x, None)?.f_add(sum)?);
        }
        let (rows, sums) = (x.f_flatten(0, -2)?, sum.f_flatten(0, -2)?);
        if !self.unpacks_for(x) {
            let weight = self.dense(x.kind())?;
            return Ok(sums.f_addmm(&rows, &weight.f_transpose(0, 1)?)?.f_reshape(sum.size())?);
        }
        let y = Tensor::f_empty(sums.size(), (x.kind(), Device::Cpu))?;
        self.by_pieces(x.kind(), |start, weight| {
            let count = weight.size()[0];
            let part = y.f_narrow(1, start, count)?;
            let _ = sums
                .f_narrow(1, start, count)?
                .f_addmm_out(&part, &rows, &weight.f_transpose(0, 1)?)?;
            Ok(())
        })?;
        Ok(y.f_reshape(sum.size())?)
    }

    /// [`Matrix::apply_add`] in the memory of `sum`, which is contiguous. No gradient may be wanted.
    pub(crate) fn apply_add_in_place(&self, x: &Tensor, sum: &mut Tensor) -> Result<()> {
        if self.in_fp8_for(x, None).is_some() {
            let _ = sum.f_add_(&self.apply(x, None)?)?;
            return Ok(());
        }
        let (rows, mut sums) = (x.f_flatten(0, -2)?, sum.f_view([-1, self.size()[0]])?);
        if !self.unpacks_for(x) {
            let _ = sums.f_addmm_(&rows, &self.dense(x.kind())?.f_transpose(0, 1)?)?;
            return Ok(());
        }
        self.by_pieces(x.kind(), |start, weight| {
            let mut part = sums.f_narrow(1, start, weight.size()[0])?;
            let _ = part.f_addmm_(&rows, &weight.f_transpose(0, 1)?)?;
            Ok(())
        })
    }

    /// Returns `true` if the elements are held as a tensor, and a backward pass has to reach them.
    pub(crate) fn requires_grad(&self) -> bool {
        matches!(self, Matrix::Plain(weight) if weight.requires_grad())
    }

    /// Returns `true` if the elements are held as a tensor.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Matrix::Plain(_))
    }

    /// Returns `true` if no multiplication unpacks or widens the elements.
    pub(crate) fn is_of(&self, kind: Kind) -> bool {
        matches!(self, Matrix::Plain(weight) if weight.kind() == kind)
    }

    /// Returns `true` if the weight is converted piece by piece: on a CPU, if it is not stored in the kind of the
    /// arithmetic, and nothing has to remember it for a backward pass.
    fn unpacks_for(&self, x: &Tensor) -> bool {
        let kind = x.kind();
        let host = matches!(kind, Kind::Float | Kind::BFloat16) && x.device() == Device::Cpu && !x.requires_grad();
        host && match self {
            Matrix::Plain(weight) => weight.kind() != kind && !weight.requires_grad(),
            Matrix::Packed(packed) => !packed.by_tensors(),
        }
    }

    /// Calls `use_piece` with the first row of each piece and the piece in f32 or bf16.
    fn by_pieces(&self, kind: Kind, use_piece: impl FnMut(i64, &Tensor) -> Result<()>) -> Result<()> {
        match kind {
            Kind::BFloat16 => self.by_pieces_of::<bf16>(use_piece),
            _ => self.by_pieces_of::<f32>(use_piece),
        }
    }

    fn by_pieces_of<E: Multiplied>(&self, mut use_piece: impl FnMut(i64, &Tensor) -> Result<()>) -> Result<()> {
        let [out, input] = self.size().map(|side| side as usize);
        let most = (E::PIECE / input.max(1)).max(1);
        for start in (0..out).step_by(most) {
            let count = most.min(out - start);
            match self {
                Matrix::Plain(weight) => {
                    let stored = weight.f_narrow(0, start as i64, count as i64)?;
                    scratch::with::<E, _>(
                        count,
                        input,
                        |_| Ok(()),
                        |piece| {
                            let mut piece = piece.shallow_clone();
                            piece.f_copy_(&stored)?;
                            use_piece(start as i64, &piece)
                        },
                    )?;
                }
                Matrix::Packed(packed) => {
                    let rows = packed.only_rows(start, count);
                    scratch::with::<E, _>(
                        count,
                        input,
                        |out| rows.unpack(out),
                        |piece| use_piece(start as i64, piece),
                    )?;
                }
            }
        }
        Ok(())
    }
}
