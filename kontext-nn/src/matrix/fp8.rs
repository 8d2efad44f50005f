//! Products of packed fp8 weights with activations that are rounded to fp8, too.
//!
//! The exact products of codes are summed, multiplied by the factors of both rows, and rounded once with the bias: on CUDA
//! by cuBLASLt or CUTLASS (`_scaled_mm`), on a CPU in f32 by matrix products of the widened codes. Hopper's tensor cores
//! keep about 14 bits of a sum (docs/quantisation.md).

use kontext_core::Result;
use kontext_formats::quant::{Format, Scale};
use tch::{Device, Kind, Tensor, no_grad};

use super::Matrix;
use super::rows::{Held, PackedRows};
use crate::dequant::send_pinned;
use crate::fp8::{self, Fp8Rows};

/// Elements of a row that a GPU reads at once: its sizes and offsets are multiples of them.
const UNIT: usize = 16;
/// Sums stay in the tensor cores' accumulators, as torchao has it for inference. Without it, cards of Hopper's
/// generation take up to a fifth longer: pytorch/ao issue 2377.
const FAST_ACCUMULATION: bool = true;
/// Elements of the weight that a CPU widens at a time.
const PIECE: usize = 1 << 24;

impl Matrix {
    /// Returns the packed rows if the product with activations of this kind is in fp8.
    pub(crate) fn in_fp8(&self, kind: Kind) -> Option<&PackedRows> {
        match self {
            Matrix::Packed(packed) if packed.fp8 && fp8::is_on() => {
                let fits = packed.rows().is_multiple_of(UNIT) && packed.columns.len().is_multiple_of(UNIT);
                // The GPU's operation returns bf16.
                let kinds: &[Kind] = if packed.device.is_cuda() {
                    &[Kind::BFloat16]
                } else {
                    &[Kind::Float, Kind::BFloat16]
                };
                (fits && kinds.contains(&kind)).then_some(packed)
            }
            _ => None,
        }
    }

    /// Returns the packed rows if the product with `x` is in fp8: no gradient may be wanted.
    pub(super) fn in_fp8_for(&self, x: &Tensor, bias: Option<&Tensor>) -> Option<&PackedRows> {
        let grad = x.requires_grad() || bias.is_some_and(Tensor::requires_grad);
        self.in_fp8(x.kind()).filter(|_| !grad)
    }
}

impl PackedRows {
    /// Multiplies in fp8, if all rows are in e4m3 with at most one scale each.
    pub(crate) fn multiplied_in_fp8(self, wanted: bool) -> Result<Self> {
        let mut fp8 = wanted && matches!(self.device, Device::Cpu | Device::Cuda(_));
        for part in &self.parts {
            fp8 &= match &part.matrix {
                Held::Host(matrix) => {
                    let view = matrix.view()?;
                    view.format() == Format::F8E4M3 && !matches!(view.scale(), Scale::Blocks { .. })
                }
                Held::Device(matrix) => kontext_core::lock(matrix).is_e4m3_by_row(),
            };
        }
        Ok(Self { fp8, ..self })
    }

    /// Returns the codes, e4m3 [out, in] on the layer's device.
    fn e4m3(&self) -> Result<Tensor> {
        if let [part] = self.parts.as_slice()
            && let Held::Device(matrix) = &part.matrix
            && self.columns.start.is_multiple_of(UNIT)
        {
            let codes = kontext_core::lock(matrix).e4m3(part.rows.clone(), self.columns.clone())?;
            if codes.stride().first().is_some_and(|stride| stride % UNIT as i64 == 0) {
                return Ok(codes);
            }
            return Ok(codes.f_contiguous()?);
        }
        self.dense_by_tensors(Kind::Float8e4m3fn)
    }

    /// Returns the factors of the rows, f32 [1, out] on the layer's device.
    fn factors(&self) -> Result<Tensor> {
        let mut factors = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let count = part.rows.len() as i64;
            let all = |scale: f32| Tensor::f_full([1, count], f64::from(scale), (Kind::Float, self.device));
            factors.push(match &part.matrix {
                Held::Device(matrix) => match kontext_core::lock(matrix).row_scales(part.rows.clone())? {
                    Some(scales) => scales.f_transpose(0, 1)?.f_expand([1, count], false)?,
                    None => all(1.0)?,
                },
                Held::Host(matrix) => match matrix.view()?.scale() {
                    Scale::All(scale) => all(scale)?,
                    Scale::Rows(scales) => {
                        let scales = Tensor::f_from_slice(&scales[part.rows.clone()])?;
                        send_pinned(&scales.f_unsqueeze(0)?, self.device)?
                    }
                    Scale::None | Scale::Blocks { .. } => all(1.0)?,
                },
            });
        }
        match factors.as_slice() {
            [one] => Ok(one.f_contiguous()?),
            _ => Ok(Tensor::f_cat(&factors, 1)?),
        }
    }

    /// Computes `x @ self^T + bias` for `x` [.., in]: [.., out] in this kind.
    pub(crate) fn fp8_product(&self, x: &Fp8Rows, bias: Option<&Tensor>, kind: Kind) -> Result<Tensor> {
        let mut shape = x.codes().size();
        if let Some(last) = shape.last_mut() {
            *last = self.rows() as i64;
        }
        let out = Tensor::f_empty(&shape, (kind, self.device))?;
        self.fp8_product_to(x, bias, &out.f_view([-1, self.rows() as i64])?)?;
        Ok(out)
    }

    /// Writes [`PackedRows::fp8_product`] to `out` [N, out], which may be a part of a larger tensor.
    pub(crate) fn fp8_product_to(&self, x: &Fp8Rows, bias: Option<&Tensor>, out: &Tensor) -> Result<()> {
        let (codes, factors) = x.flat()?;
        if codes.size().first() == Some(&0) {
            return Ok(());
        }
        no_grad(|| {
            if self.device.is_cuda() {
                self.fp8_on_gpu(&codes, &factors, bias, out)
            } else {
                self.fp8_in_f32(&codes, &factors, bias, out)
            }
        })
    }

    fn fp8_on_gpu(&self, x: &Tensor, factors: &Tensor, bias: Option<&Tensor>, out: &Tensor) -> Result<()> {
        let (weight, rows, kind) = (self.e4m3()?.f_transpose(0, 1)?, self.factors()?, out.kind());
        let (factors, scale_result, fast) = (&aligned(factors)?, None::<&Tensor>, FAST_ACCUMULATION);
        if out.is_contiguous() {
            let _ = x.f_internal_scaled_mm_out(out, &weight, factors, &rows, bias, scale_result, kind, fast)?;
        } else {
            let product = x.f_internal_scaled_mm(&weight, factors, &rows, bias, scale_result, kind, fast)?;
            out.shallow_clone().f_copy_(&product)?;
        }
        Ok(())
    }

    fn fp8_in_f32(&self, x: &Tensor, factors: &Tensor, bias: Option<&Tensor>, out: &Tensor) -> Result<()> {
        let (x, columns) = (x.f_to_kind(Kind::Float)?, self.factors()?);
        let most = (PIECE / self.columns.len().max(1)).max(1);
        for start in (0..self.rows()).step_by(most) {
            let rows = most.min(self.rows() - start);
            let weight = self.only_rows(start, rows).e4m3()?.f_to_kind(Kind::Float)?;
            let (start, count) = (start as i64, rows as i64);
            let mut y = x.f_mm(&weight.f_transpose(0, 1)?)?;
            let _ = y.f_mul_(factors)?.f_mul_(&columns.f_narrow(1, start, count)?)?;
            if let Some(bias) = bias {
                let _ = y.f_add_(&bias.f_narrow(0, start, count)?)?;
            }
            out.f_narrow(1, start, count)?.f_copy_(&y)?;
        }
        Ok(())
    }
}

/// Returns a tensor's values at an address that is a multiple of [`UNIT`]: factors of rows in the middle of a sequence
/// may begin anywhere.
fn aligned(x: &Tensor) -> Result<Tensor> {
    if x.data_ptr().addr().is_multiple_of(UNIT) {
        return Ok(x.shallow_clone());
    }
    Ok(x.f_to_dtype(x.kind(), false, true)?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kontext_core::noise;
    use kontext_formats::{Quantize, Scales, StoredMatrix};

    use super::super::rows::Part;
    use super::*;

    const ROWS: usize = 32;
    const COLUMNS: usize = 96;

    fn matrix(seed: u64) -> Tensor {
        noise::randn(&[ROWS as i64, COLUMNS as i64], seed, Kind::Float, Device::Cpu).unwrap()
    }

    fn with_one_scale(seed: u64) -> StoredMatrix {
        let (bytes, scales) = Quantize::Fp8.pack(&matrix(seed)).unwrap();
        StoredMatrix::new(bytes, Format::F8E4M3, [ROWS, COLUMNS], Scales::All(scales[0]))
    }

    /// Two matrices, one after the other, on the host or in the memory of a "device" that is the CPU.
    fn rows(there: [bool; 2]) -> Matrix {
        let matrices = [Quantize::Fp8.matrix(&matrix(1)).unwrap(), with_one_scale(2)];
        let part = |(matrix, there): (StoredMatrix, bool)| Part {
            matrix: if there {
                Held::on(&matrix, Device::Cpu).unwrap()
            } else {
                Held::Host(Arc::new(matrix))
            },
            rows: 0..ROWS,
        };
        let rows = PackedRows::new(Vec::new(), Device::Cpu).unwrap();
        let rows = PackedRows {
            parts: matrices.into_iter().zip(there).map(part).collect(),
            columns: 0..COLUMNS,
            ..rows
        };
        Matrix::Packed(rows.multiplied_in_fp8(true).unwrap())
    }

    #[test]
    fn codes_times_factors_are_the_unpacked_rows() {
        for there in [[false; 2], [true; 2], [false, true]] {
            let whole = rows(there);
            for (first, rows, start, columns) in [(0, 64, 0, 96), (16, 32, 32, 48), (0, 16, 24, 16), (32, 32, 16, 80)] {
                let part = whole.rows(first, rows).unwrap().columns(start, columns).unwrap();
                let packed = part.in_fp8(Kind::Float).unwrap();
                let (codes, factors) = (packed.e4m3().unwrap(), packed.factors().unwrap());
                assert_eq!((codes.kind(), factors.size()), (Kind::Float8e4m3fn, vec![1, rows]));
                let dense = codes.to_kind(Kind::Float) * factors.tr();
                assert!(
                    dense.equal(&part.dense(Kind::Float).unwrap()),
                    "{there:?} {first} {start}"
                );
            }
        }
    }

    #[test]
    fn products_on_a_device_are_those_on_the_host() {
        let x = noise::randn(&[7, COLUMNS as i64], 3, Kind::Float, Device::Cpu).unwrap();
        let host = rows([false; 2]).apply(&x, None).unwrap();
        for there in [[true; 2], [false, true]] {
            assert!(rows(there).apply(&x, None).unwrap().equal(&host), "{there:?}");
        }
    }

    /// The same codes by libtorch's own product, with one factor for a matrix, which is all that a CPU has.
    #[test]
    fn a_product_is_that_of_scaled_mm() {
        let (x, bias) = (
            matrix(3),
            noise::randn(&[ROWS as i64], 4, Kind::Float, Device::Cpu).unwrap(),
        );
        let x = Fp8Rows::quantise(&x).unwrap();
        let packed = PackedRows::new(vec![with_one_scale(2)], Device::Cpu).unwrap();
        let ours = packed.fp8_product(&x, Some(&bias), Kind::Float).unwrap();
        let (codes, scale) = (packed.e4m3().unwrap().tr(), packed.factors().unwrap().select(1, 0));
        let one = Tensor::from(1.0_f32);
        let none = None::<&Tensor>;
        let product = x
            .codes()
            .f_internal_scaled_mm(&codes, &one, &scale, none, none, Kind::Float, false)
            .unwrap();
        let theirs = product * x.factors() + bias;
        let error = kontext_core::check::relative_l2(&ours, &theirs).unwrap();
        assert!(error < 1e-6, "{error:e}");
    }

    #[test]
    fn factors_are_copied_to_an_aligned_address_where_they_have_none() {
        let factors = noise::randn(&[9, 1], 3, Kind::Float, Device::Cpu).unwrap();
        for start in 0..5 {
            let some = factors.narrow(0, start, 4);
            let there = aligned(&some).unwrap();
            assert!(there.equal(&some) && there.data_ptr().addr().is_multiple_of(UNIT));
            assert_eq!(there.data_ptr() == some.data_ptr(), start % 4 == 0);
        }
    }

    #[test]
    fn other_formats_and_scales_by_block_are_not_multiplied_in_fp8() {
        let by_block = Scales::Blocks {
            size: 48,
            values: vec![1.0; ROWS * 2],
        };
        let bytes = with_one_scale(2).bytes().to_vec();
        let blocks = StoredMatrix::new(bytes, Format::F8E4M3, [ROWS, COLUMNS], by_block);
        let int8 = Quantize::Int8.matrix(&matrix(1)).unwrap();
        for matrix in [blocks, int8] {
            let there = Held::on(&matrix, Device::Cpu).unwrap();
            let packed = PackedRows::new(vec![matrix], Device::Cpu).unwrap();
            assert!(!packed.clone().multiplied_in_fp8(true).unwrap().fp8);
            let parts = vec![Part {
                matrix: there,
                rows: 0..ROWS,
            }];
            assert!(!PackedRows { parts, ..packed }.multiplied_in_fp8(true).unwrap().fp8);
        }
    }
}
