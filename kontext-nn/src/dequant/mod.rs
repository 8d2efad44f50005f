//! Packed matrices in device memory, unpacked there by tensor operations.
//!
//! The results have the bits of the host kernels: values in f32, in the same order of operations, and rounded
//! once.

mod blocks;
mod k;
mod scales;
mod unpack;

use std::ops::Range;

use kontext_core::Result;
use kontext_formats::quant::{Format, Packed};
use tch::{Device, Kind, Tensor};

use self::scales::DeviceScales;

/// Most bytes alive for each element while a matrix is dequantised by tensor operations, next to the result:
/// with 4 bits and a lookup table (`blocks::pairs`), a 4-byte index for two elements and both of them in f32.
pub(crate) const WORKSPACE: u64 = 6;

/// A packed matrix [R, C], or a part of one, as tensors on one device.
#[derive(Debug)]
pub(crate) struct OnDevice {
    /// u8 [R, bytes per row].
    bytes: Tensor,
    format: Format,
    columns: usize,
    scales: DeviceScales,
}

impl OnDevice {
    /// Copies a whole matrix to a device.
    pub(crate) fn hold(matrix: &Packed<'_>, device: Device) -> Result<Self> {
        let [rows, columns] = matrix.size();
        Self::copy(matrix, 0..rows, 0..columns, |tensor| Ok(tensor.f_to_device(device)?))
    }

    /// Wraps a whole matrix whose bytes are on a device already, the first of `bytes` u8 [..].
    pub(crate) fn over(matrix: &Packed<'_>, bytes: &Tensor) -> Result<Self> {
        let ([rows, columns], device) = (matrix.size(), bytes.device());
        let held = bytes.f_narrow(0, 0, matrix.data().len() as i64)?;
        let held = held.f_view([rows as i64, matrix.row_bytes() as i64])?;
        let scales = DeviceScales::copy(matrix, 0..rows, 0..columns, device, |tensor| {
            send_pinned(tensor, device)
        })?;
        Ok(Self {
            bytes: held,
            format: matrix.format(),
            columns,
            scales,
        })
    }

    /// Copies some rows and columns of a matrix through `send`. The columns begin and end on block
    /// boundaries.
    fn copy(
        matrix: &Packed<'_>,
        rows: Range<usize>,
        columns: Range<usize>,
        send: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Self> {
        let (data, format, row_bytes) = (matrix.data(), matrix.format(), matrix.row_bytes());
        let within = bytes_of(format, columns.start)..bytes_of(format, columns.end);
        let lines = &data[rows.start * row_bytes..rows.end * row_bytes];
        let bytes = if within.len() == row_bytes {
            Tensor::f_from_slice(lines)?
        } else {
            let parts: Vec<u8> = lines
                .chunks(row_bytes)
                .flat_map(|line| &line[within.clone()])
                .copied()
                .collect();
            Tensor::f_from_slice(&parts)?
        };
        let bytes = send(&bytes.f_reshape([rows.len() as i64, within.len() as i64])?)?;
        let scales = DeviceScales::copy(matrix, rows, columns.clone(), bytes.device(), send)?;
        Ok(Self {
            bytes,
            format,
            columns: columns.len(),
            scales,
        })
    }

    /// Returns `true` for e4m3 with at most one scale a row.
    pub(crate) fn is_e4m3_by_row(&self) -> bool {
        self.format == Format::F8E4M3 && self.scales.block().is_none()
    }

    /// Returns the codes e4m3 [R, C] of some columns of some rows, in this matrix's memory.
    pub(crate) fn e4m3(&self, rows: Range<usize>, columns: Range<usize>) -> Result<Tensor> {
        let bytes = self.bytes.f_narrow(0, rows.start as i64, rows.len() as i64)?;
        let bytes = bytes.f_narrow(1, columns.start as i64, columns.len() as i64)?;
        Ok(bytes.f_view_dtype(Kind::Float8e4m3fn)?)
    }

    /// Returns the scales f32 [R or 1, 1] of some whole rows; `None` without scales.
    pub(crate) fn row_scales(&self, rows: Range<usize>) -> Result<Option<Tensor>> {
        self.scales.part(&rows, &(0..self.columns), self.columns)
    }

    /// Gathers the rows at these indices, i64 [N] on the device.
    pub(crate) fn rows_at(&self, indices: &Tensor) -> Result<Self> {
        let scales = self.scales.rows_at(indices, self.columns)?;
        let bytes = self.bytes.f_index_select(0, indices)?;
        Ok(Self {
            bytes,
            format: self.format,
            columns: self.columns,
            scales,
        })
    }

    /// Unpacks and scales some columns of some rows to a contiguous `out` [R, C] on the device, in its dtype.
    /// Columns may begin and end within a block. An `out` of e4m3 takes the codes of a matrix in that format.
    pub(crate) fn unpack_to(&self, rows: Range<usize>, columns: Range<usize>, out: &Tensor) -> Result<()> {
        if rows.is_empty() || columns.is_empty() {
            return Ok(());
        }
        let wide = widened(&columns, self.columns, self.format, self.scales.block());
        let (first, count) = (bytes_of(self.format, wide.start), bytes_of(self.format, wide.len()));
        let bytes = self.bytes.f_narrow(0, rows.start as i64, rows.len() as i64)?;
        let bytes = bytes.f_narrow(1, first as i64, count as i64)?;
        let scales = self.scales.part(&rows, &wide, self.columns)?;
        if wide == columns {
            return unpack::unpack(&bytes, self.format, scales.as_ref(), out);
        }
        let values = Tensor::f_empty([rows.len() as i64, wide.len() as i64], (out.kind(), out.device()))?;
        unpack::unpack(&bytes, self.format, scales.as_ref(), &values)?;
        let cut = (columns.start - wide.start) as i64;
        out.shallow_clone()
            .f_copy_(&values.f_narrow(1, cut, columns.len() as i64)?)?;
        Ok(())
    }
}

/// Unpacks a matrix on the host, as [`OnDevice::unpack_to`]: the part is transferred packed, from pinned
/// memory if `out` is on CUDA.
pub(crate) fn unpack_to(matrix: &Packed<'_>, rows: Range<usize>, columns: Range<usize>, out: &Tensor) -> Result<()> {
    if rows.is_empty() || columns.is_empty() {
        return Ok(());
    }
    let wide = widened(&columns, matrix.size()[1], matrix.format(), scales::block(matrix));
    let there = OnDevice::copy(matrix, rows.clone(), wide.clone(), |tensor| {
        send_pinned(tensor, out.device())
    })?;
    there.unpack_to(0..rows.len(), columns.start - wide.start..columns.end - wide.start, out)
}

/// Transfers a tensor without waiting for the copy: the allocator of pinned memory keeps memory in flight
/// alive.
pub(crate) fn send_pinned(tensor: &Tensor, device: Device) -> Result<Tensor> {
    if !device.is_cuda() {
        return Ok(tensor.f_to_device(device)?);
    }
    // Not `f_pin_memory`, which warns that its argument is deprecated, and tch cannot omit it.
    match tensor.f_internal_pin_memory(device) {
        Ok(pinned) => Ok(pinned.f_internal_to_copy((tensor.kind(), device), true)?),
        // The machine may refuse more pinned memory.
        Err(_) => Ok(tensor.f_to_device(device)?),
    }
}

/// Returns the bytes of `elements`, a whole number of blocks.
const fn bytes_of(format: Format, elements: usize) -> usize {
    elements / format.block() * format.bytes()
}

/// Returns the smallest range of columns around this one that begins and ends on block boundaries, both of
/// the format and of the scales. If blocks of scales cross row ends, only the row ends are boundaries.
fn widened(columns: &Range<usize>, all: usize, format: Format, scales: Option<usize>) -> Range<usize> {
    let block = format.block();
    let unit = match scales {
        None => block,
        Some(size) if !all.is_multiple_of(size) => all,
        // The least common multiple: a block is a power of two.
        Some(size) => size * (block >> size.trailing_zeros().min(block.trailing_zeros())),
    };
    let unit = unit.max(1);
    columns.start / unit * unit..columns.end.next_multiple_of(unit).min(all)
}

#[cfg(test)]
mod tests {
    use kontext_fixtures::Fixture;
    use kontext_formats::quant::{Packed, Scale};
    use proptest::prelude::*;

    use super::*;

    const CPU: Device = Device::Cpu;

    /// Returns arbitrary bytes, which include infinite, tiny and NaN scales.
    fn noise(count: usize, seed: u32) -> Vec<u8> {
        let mut state = seed;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..count).map(|_| byte()).collect()
    }

    fn scales(count: usize) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * 0.7).sin() * 3.0).collect()
    }

    fn empty(rows: usize, columns: usize, kind: Kind) -> Tensor {
        Tensor::full([rows as i64, columns as i64], f64::NAN, (kind, CPU))
    }

    /// Returns `true` if all elements have the same bits, except for NaNs.
    fn same(a: &Tensor, b: &Tensor) -> bool {
        let bits = if a.kind() == Kind::Float {
            Kind::Int
        } else {
            Kind::Int16
        };
        if a.size() != b.size() || a.kind() != b.kind() {
            return false;
        }
        let equal = a.view_dtype(bits).eq_tensor(&b.view_dtype(bits));
        equal
            .logical_or(&a.isnan().logical_and(&b.isnan()))
            .all()
            .int64_value(&[])
            == 1
    }

    /// Unpacks a part with the host kernels.
    fn expected(matrix: &Packed<'_>, rows: Range<usize>, columns: Range<usize>, kind: Kind) -> Tensor {
        let mut values = vec![0.0_f32; rows.len() * columns.len()];
        matrix.unpack(rows.clone(), columns.clone(), &mut values).unwrap();
        Tensor::from_slice(&values)
            .reshape([rows.len() as i64, columns.len() as i64])
            .to_kind(kind)
    }

    #[test]
    fn every_format_unpacks_to_the_bits_of_gguf_py() {
        let fixture = Fixture::open("quant.safetensors");
        for format in Format::ALL.into_iter().filter(|format| format.gguf_type().is_some()) {
            let packed = fixture.bytes(&format!("{}.packed", format.name()));
            let values = fixture.floats(&format!("{}.values", format.name()));
            let matrix = Packed::new(&packed, format, 1, values.len(), Scale::None).unwrap();
            let out = empty(1, values.len(), Kind::Float);
            OnDevice::hold(&matrix, CPU)
                .unwrap()
                .unpack_to(0..1, 0..values.len(), &out)
                .unwrap();
            assert!(
                same(&out, &Tensor::from_slice(&values).unsqueeze(0)),
                "{}",
                format.name()
            );
        }
    }

    #[test]
    fn four_bits_unpack_to_the_bits_of_bitsandbytes() {
        let fixture = Fixture::open("quant.safetensors");
        for format in [Format::Nf4, Format::Fp4] {
            let part = |what: &str| format!("{}.{what}", format.name());
            let (packed, values) = (fixture.bytes(&part("packed")), fixture.floats(&part("values")));
            let absmax = fixture.floats(&part("absmax"));
            let (rows, columns) = (values.len() / 48, 48);
            let scale = Scale::Blocks {
                size: 64,
                values: &absmax,
            };
            let matrix = Packed::new(&packed, format, rows, columns, scale).unwrap();
            let out = empty(rows, columns, Kind::Float);
            OnDevice::hold(&matrix, CPU)
                .unwrap()
                .unpack_to(0..rows, 0..columns, &out)
                .unwrap();
            assert!(
                same(&out, &Tensor::from_slice(&values).reshape(out.size())),
                "{}",
                format.name()
            );
        }
    }

    #[test]
    fn all_codes_of_eight_bits_have_their_bits() {
        let codes: Vec<u8> = (0..=u8::MAX).collect();
        for format in [Format::F8E4M3, Format::F8E5M2, Format::Int8] {
            for scale in [Scale::None, Scale::All(0.3)] {
                let matrix = Packed::new(&codes, format, 1, 256, scale).unwrap();
                let out = empty(1, 256, Kind::Float);
                unpack_to(&matrix, 0..1, 0..256, &out).unwrap();
                assert!(
                    same(&out, &expected(&matrix, 0..1, 0..256, Kind::Float)),
                    "{} {scale:?}",
                    format.name()
                );
            }
        }
    }

    #[test]
    fn every_format_has_the_bits_of_the_host_with_every_kind_of_factors() {
        let (rows, columns) = (5, 768);
        let (by_row, by_block) = (scales(rows), scales(rows * columns));
        let blocks = |size: usize| Scale::Blocks {
            size,
            values: &by_block[..(rows * columns).div_ceil(size)],
        };
        for format in Format::ALL {
            let data = noise(rows * format.row_bytes(columns).unwrap(), 3);
            let scales = [Scale::None, Scale::All(-0.3), Scale::Rows(&by_row)].into_iter();
            for scale in scales.chain([1, 3, 64, 100, 256, 768, 1000, 10_000].map(blocks)) {
                let matrix = Packed::new(&data, format, rows, columns, scale).unwrap();
                for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
                    let out = empty(rows, columns, kind);
                    OnDevice::hold(&matrix, CPU)
                        .unwrap()
                        .unpack_to(0..rows, 0..columns, &out)
                        .unwrap();
                    let expected = expected(&matrix, 0..rows, 0..columns, kind);
                    assert!(same(&out, &expected), "{} {kind:?} {scale:?}", format.name());
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_part_is_that_of_the_host(
            format in proptest::sample::select(Format::ALL.to_vec()),
            (rows, blocks, seed) in (1..5_usize, 1..4_usize, 0..u32::MAX),
            (a, b, c, d) in (0..=1000_usize, 0..=1000_usize, 0..=1000_usize, 0..=1000_usize),
            size in proptest::sample::select(vec![0, 1, 2, 3, 16, 64, 96, 256, 300, 512, 9999]),
        ) {
            let columns = 256 * blocks;
            let data = noise(rows * format.row_bytes(columns).unwrap(), seed);
            let values = scales(if size == 0 { rows } else { (rows * columns).div_ceil(size) });
            let scale = if size == 0 { Scale::Rows(&values) } else { Scale::Blocks { size, values: &values } };
            let matrix = Packed::new(&data, format, rows, columns, scale).unwrap();
            let range = |a: usize, b: usize, side: usize| a.min(b) * side / 1000..a.max(b) * side / 1000;
            let (down, across) = (range(a, b, rows), range(c, d, columns));
            let expected = expected(&matrix, down.clone(), across.clone(), Kind::BFloat16);

            let (held, sent) = (empty(down.len(), across.len(), Kind::BFloat16), empty(down.len(), across.len(), Kind::BFloat16));
            let whole = OnDevice::hold(&matrix, CPU).unwrap();
            whole.unpack_to(down.clone(), across.clone(), &held).unwrap();
            prop_assert!(same(&held, &expected));
            unpack_to(&matrix, down.clone(), across.clone(), &sent).unwrap();
            prop_assert!(same(&sent, &expected));

            let indices = Tensor::from_slice(&down.clone().rev().map(|row| row as i64).collect::<Vec<_>>());
            let gathered = empty(down.len(), across.len(), Kind::BFloat16);
            whole.rows_at(&indices).unwrap().unpack_to(0..down.len(), across, &gathered).unwrap();
            prop_assert!(same(&gathered, &expected.flip([0])));
        }
    }

    #[test]
    fn a_part_grows_to_borders_of_blocks_and_of_factors() {
        assert_eq!(widened(&(33..34), 512, Format::Q8_0, None), 32..64);
        assert_eq!(widened(&(33..34), 512, Format::Q8_0, Some(64)), 0..64);
        assert_eq!(widened(&(100..101), 768, Format::Q8_0, Some(48)), 96..192);
        assert_eq!(widened(&(100..101), 512, Format::Nf4, Some(48)), 0..512);
        assert_eq!(widened(&(5..6), 7, Format::Int8, Some(1)), 5..6);
    }
}
