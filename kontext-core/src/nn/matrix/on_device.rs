//! Packed matrices that are unpacked on a device, by tensor operations.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use super::{Bytes, PackedMatrix, PackedRows};
use crate::Result;
use crate::quant::on_device::{self, OnDevice};
use crate::weights::Factors;

impl PackedMatrix {
    /// The same matrix in a device's memory.
    pub(super) fn on(&self, device: Device) -> Result<Self> {
        let bytes = Bytes::OnDevice(Mutex::new(OnDevice::hold(&self.view()?, device)?));
        let Self {
            format, rows, columns, ..
        } = *self;
        Ok(Self {
            bytes,
            format,
            rows,
            columns,
            factors: Factors::None,
        })
    }

    /// Writes a part to a contiguous `out` [R, C] on the device.
    fn unpack_to(&self, rows: Range<usize>, columns: Range<usize>, out: &Tensor) -> Result<()> {
        match &self.bytes {
            Bytes::OnDevice(matrix) => matrix
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .unpack_to(rows, columns, out),
            Bytes::Held(_) | Bytes::Mapped(..) => on_device::unpack_to(&self.view()?, rows, columns, out),
        }
    }
}

impl PackedRows {
    /// Whether some bytes are in a device's memory.
    pub(super) fn on_device(&self) -> bool {
        self.parts
            .iter()
            .any(|part| matches!(part.matrix.bytes, Bytes::OnDevice(_)))
    }

    /// Whether they are unpacked on the device: on CUDA, those that are left in the file too.
    pub(super) fn by_tensors(&self) -> bool {
        self.device.is_cuda() || self.on_device()
    }

    /// [out, in] in this kind.
    pub(super) fn dense_by_tensors(&self, kind: Kind) -> Result<Tensor> {
        let out = Tensor::f_empty([self.rows() as i64, self.columns.len() as i64], (kind, self.device))?;
        let mut offset = 0;
        for part in &self.parts {
            let count = part.rows.len() as i64;
            let (rows, columns, out) = (part.rows.clone(), self.columns.clone(), out.f_narrow(0, offset, count)?);
            match &self.prefetch {
                Some(way) if matches!(part.matrix.bytes, Bytes::Mapped(..)) => {
                    way.unpack_to(&part.matrix, rows, columns, &out)?;
                }
                _ => part.matrix.unpack_to(rows, columns, &out)?,
            }
            offset += count;
        }
        Ok(out)
    }

    /// The rows at these indices, which are within: [N, in].
    pub(super) fn gather_by_tensors(&self, indices: &[i64], kind: Kind) -> Result<Tensor> {
        let at = Tensor::f_from_slice(indices)?.f_to_device(self.device)?;
        if let [part] = self.parts.as_slice()
            && let Bytes::OnDevice(matrix) = &part.matrix.bytes
        {
            let at = at.f_add_scalar(part.rows.start as i64)?;
            let matrix = matrix.lock().unwrap_or_else(PoisonError::into_inner).rows_at(&at)?;
            let out = Tensor::f_empty([indices.len() as i64, self.columns.len() as i64], (kind, self.device))?;
            matrix.unpack_to(0..indices.len(), self.columns.clone(), &out)?;
            return Ok(out);
        }
        Ok(self.dense_by_tensors(kind)?.f_index_select(0, &at)?)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use super::super::Matrix;
    use super::*;
    use crate::cuda::Copies;
    use crate::noise;
    use crate::prefetch::Prefetch;
    use crate::quant::Format;

    const ROWS: usize = 7;
    const COLUMNS: usize = 512;

    /// A matrix on the host whose values are finite.
    fn host(format: Format, factors: Factors) -> PackedMatrix {
        let count = ROWS * format.row_bytes(COLUMNS).unwrap();
        // The upper byte of every f16 is small.
        let bytes = (0..count)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 & 0x3b)
            .collect();
        PackedMatrix {
            bytes: Bytes::Held(bytes),
            format,
            rows: ROWS,
            columns: COLUMNS,
            factors,
        }
    }

    fn factors() -> [Factors; 5] {
        let values = |count: usize| (0..count).map(|i| (i as f32 * 0.7).sin()).collect();
        [
            Factors::None,
            Factors::All(0.3),
            Factors::Rows(values(ROWS)),
            Factors::Blocks {
                size: 64,
                values: values(ROWS * COLUMNS / 64),
            },
            Factors::Blocks {
                size: 100,
                values: values((ROWS * COLUMNS).div_ceil(100)),
            },
        ]
    }

    /// What two matrices, one after the other, are on the host, and with one or both of them in the memory of a
    /// "device" that is the CPU: what is asked of them goes the way that it goes on CUDA.
    fn each_pair(mut check: impl FnMut(&str, &Matrix, &Matrix)) {
        for format in Format::ALL {
            for factors in factors() {
                let (first, second) = (|| host(format, factors.clone()), || host(format, Factors::All(-2.0)));
                let rows = |a: PackedMatrix, b: PackedMatrix| {
                    Matrix::Packed(PackedRows::new(vec![Arc::new(a), Arc::new(b)], Device::Cpu).unwrap())
                };
                let there = |matrix: PackedMatrix| matrix.on(Device::Cpu).unwrap();
                let name = format!("{} {factors:?}", format.name());
                let expected = rows(first(), second());
                check(&name, &rows(there(first()), there(second())), &expected);
                check(&name, &rows(first(), there(second())), &expected);
            }
        }
    }

    fn is_close(a: &Tensor, b: &Tensor) -> bool {
        // Products of 512 elements, summed in another order.
        let scale = b.abs().max().double_value(&[]).max(1e-30);
        a.size() == b.size() && a.kind() == b.kind() && (a - b).abs().max().double_value(&[]) <= 1e-5 * scale
    }

    #[test]
    fn rows_and_columns_on_a_device_are_those_on_the_host() {
        each_pair(|name, there, host| {
            for kind in [Kind::Float, Kind::BFloat16] {
                let dense = |matrix: &Matrix| matrix.dense(kind).unwrap();
                assert!(dense(there).equal(&dense(host)), "{name}");
                let rows = |matrix: &Matrix| matrix.rows(3, 9).unwrap();
                assert!(dense(&rows(there)).equal(&dense(&rows(host))), "{name}");
                for (start, count) in [(256, 256), (64, 192), (77, 300), (511, 1)] {
                    let part = |matrix: &Matrix| rows(matrix).columns(start, count).unwrap();
                    assert!(dense(&part(there)).equal(&dense(&part(host))), "{name} {start}");
                }
            }
        });
    }

    #[test]
    fn halves_exchanged_on_a_device_are_those_on_the_host() {
        each_pair(|name, there, host| {
            let swapped = |matrix: &Matrix| match matrix {
                Matrix::Packed(rows) => Matrix::Packed(rows.halves_swapped()).dense(Kind::Float).unwrap(),
                Matrix::Plain(_) => panic!("packed"),
            };
            assert!(swapped(there).equal(&swapped(host)), "{name}");
        });
    }

    #[test]
    fn gathered_rows_on_a_device_are_those_on_the_host() {
        let indices = Tensor::from_slice(&[13_i64, 0, 6, 7, 0, 3]).reshape([2, 3]);
        each_pair(|name, there, host| {
            let gather = |matrix: &Matrix| matrix.gather(&indices, Kind::BFloat16).unwrap();
            assert!(gather(there).equal(&gather(host)), "{name}");
            // Of one matrix: without unpacking the rest.
            let one = |matrix: &Matrix| {
                let part = matrix.rows(8, 6).unwrap().columns(33, 101).unwrap();
                part.gather(&(&indices / 3).to_kind(Kind::Int64), Kind::Float).unwrap()
            };
            assert!(one(there).equal(&one(host)), "{name}");
            assert!(there.gather(&Tensor::from_slice(&[14_i64]), Kind::Float).is_err());
            assert!(there.gather(&Tensor::from_slice(&[-1_i64]), Kind::Float).is_err());
        });
    }

    #[test]
    fn products_on_a_device_are_those_on_the_host() {
        let input = |shape: &[i64]| noise::randn(shape, 3, Kind::Float, Device::Cpu).unwrap();
        let (x, sum, bias) = (input(&[2, 3, 512]), input(&[2, 3, 14]), input(&[14]));
        each_pair(|name, there, host| {
            let apply = |matrix: &Matrix| matrix.apply(&x, Some(&bias)).unwrap();
            assert!(is_close(&apply(there), &apply(host)), "{name}");
            let plain = |matrix: &Matrix| matrix.apply(&x, None).unwrap();
            assert!(is_close(&plain(there), &plain(host)), "{name}");
            let add = |matrix: &Matrix| matrix.apply_add(&x, &sum).unwrap();
            assert!(is_close(&add(there), &add(host)), "{name}");
        });
    }

    #[test]
    fn the_gradient_of_an_input_goes_through_a_weight_on_a_device() {
        let matrix = host(Format::Q4K, Factors::None).on(Device::Cpu).unwrap();
        let matrix = Matrix::Packed(PackedRows::new(vec![Arc::new(matrix)], Device::Cpu).unwrap());
        let x = noise::randn(&[3, 512], 3, Kind::Float, Device::Cpu)
            .unwrap()
            .set_requires_grad(true);
        matrix.apply(&x, None).unwrap().sum(Kind::Float).backward();
        let column_sums = matrix
            .dense(Kind::Float)
            .unwrap()
            .sum_dim_intlist(0, false, Kind::Float);
        assert!(is_close(&x.grad().select(0, 1), &column_sums));
    }

    #[test]
    fn rows_in_a_file_with_a_way_to_a_device_that_is_not_there_are_those_without() {
        let file = tempfile::tempfile().unwrap();
        let Bytes::Held(bytes) = host(Format::Q8_0, Factors::None).bytes else {
            panic!("held")
        };
        (&file).write_all(&bytes).unwrap();
        // SAFETY: nobody else has the file.
        #[allow(unsafe_code)]
        let map = Arc::new(unsafe { memmap2::Mmap::map(&file) }.unwrap());
        let mapped = PackedMatrix {
            bytes: Bytes::Mapped(map, 0..bytes.len()),
            ..host(Format::Q8_0, Factors::None)
        };
        let way = Prefetch::new(|capacity| Copies::new(usize::from(u16::MAX), capacity));
        let rows = PackedRows::new(vec![Arc::new(mapped)], Device::Cpu)
            .unwrap()
            .prefetched(Some(Arc::new(way)));
        let expected = Matrix::Packed(rows.clone()).dense(Kind::BFloat16).unwrap();
        for _ in 0..3 {
            assert!(rows.dense_by_tensors(Kind::BFloat16).unwrap().equal(&expected));
        }
    }

    #[test]
    fn packed_rows_on_a_device_can_be_shared_between_threads() {
        fn check<T: Send + Sync>() {}
        check::<PackedRows>();
    }
}
