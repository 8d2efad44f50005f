//! Packed matrices that are unpacked on a device, by tensor operations.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use kontext_core::{Result, lock};
use kontext_formats::StoredMatrix;
use tch::{Device, Kind, Tensor};

use super::rows::{Held, PackedRows};
use crate::dequant;
use crate::dequant::OnDevice;

impl Held {
    /// A copy in a device's memory.
    pub(super) fn on(matrix: &StoredMatrix, device: Device) -> Result<Self> {
        Ok(Held::Device(Arc::new(Mutex::new(OnDevice::hold(
            &matrix.view()?,
            device,
        )?))))
    }

    /// Writes a part to a contiguous `out` [R, C] on the device.
    fn unpack_to(&self, rows: Range<usize>, columns: Range<usize>, out: &Tensor) -> Result<()> {
        match self {
            Held::Device(matrix) => lock(matrix).unpack_to(rows, columns, out),
            Held::Host(matrix) => dequant::unpack_to(&matrix.view()?, rows, columns, out),
        }
    }
}

impl PackedRows {
    /// Returns `true` if some bytes are in a device's memory.
    pub(super) fn on_device(&self) -> bool {
        self.parts.iter().any(|part| matches!(part.matrix, Held::Device(_)))
    }

    /// Returns `true` if the rows are unpacked on the device: on CUDA, also those that are left in the file.
    pub(super) fn by_tensors(&self) -> bool {
        self.device.is_cuda() || self.on_device()
    }

    /// [out, in] in this kind; in e4m3, the codes of rows in that format.
    pub(super) fn dense_by_tensors(&self, kind: Kind) -> Result<Tensor> {
        let out = Tensor::f_empty([self.rows() as i64, self.columns.len() as i64], (kind, self.device))?;
        let mut offset = 0;
        for part in &self.parts {
            let count = part.rows.len() as i64;
            let (rows, columns, out) = (part.rows.clone(), self.columns.clone(), out.f_narrow(0, offset, count)?);
            match (&self.prefetch, &part.matrix) {
                (Some(prefetch), Held::Host(matrix)) if matrix.is_mapped() => {
                    prefetch.unpack_to(matrix, rows, columns, &out)?;
                }
                (_, matrix) => matrix.unpack_to(rows, columns, &out)?,
            }
            offset += count;
        }
        Ok(out)
    }

    /// The rows at these indices, which are in range: [N, in].
    pub(super) fn gather_by_tensors(&self, indices: &[i64], kind: Kind) -> Result<Tensor> {
        let at = Tensor::f_from_slice(indices)?.f_to_device(self.device)?;
        if let [part] = self.parts.as_slice()
            && let Held::Device(matrix) = &part.matrix
        {
            let at = at.f_add_scalar(part.rows.start as i64)?;
            let matrix = lock(matrix).rows_at(&at)?;
            let out = Tensor::f_empty([indices.len() as i64, self.columns.len() as i64], (kind, self.device))?;
            matrix.unpack_to(0..indices.len(), self.columns.clone(), &out)?;
            return Ok(out);
        }
        Ok(self.dense_by_tensors(kind)?.f_index_select(0, &at)?)
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use kontext_core::noise;
    use kontext_formats::quant::Format;
    use kontext_formats::{Scales, Store, StreamedTensor, write_gguf};

    use super::super::Matrix;
    use super::super::rows::Part;
    use super::*;
    use crate::prefetch::{Copies, Prefetch};

    const ROWS: usize = 7;
    const COLUMNS: usize = 512;

    /// Packed bytes whose values are finite.
    fn bytes(format: Format) -> Vec<u8> {
        let count = ROWS * format.row_bytes(COLUMNS).unwrap();
        // The upper byte of every f16 is small.
        (0..count)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 & 0x3b)
            .collect()
    }

    /// A matrix on the host.
    fn host(format: Format, scales: Scales) -> StoredMatrix {
        StoredMatrix::new(bytes(format), format, [ROWS, COLUMNS], scales)
    }

    /// All rows of some matrices, each on the host or in the memory of a "device" that is the CPU: a part there takes
    /// the way that it takes on CUDA.
    fn rows(matrices: Vec<(StoredMatrix, bool)>) -> PackedRows {
        let part = |(matrix, there): (StoredMatrix, bool)| Part {
            matrix: if there {
                Held::on(&matrix, Device::Cpu).unwrap()
            } else {
                Held::Host(Arc::new(matrix))
            },
            rows: 0..ROWS,
        };
        PackedRows {
            parts: matrices.into_iter().map(part).collect(),
            columns: 0..COLUMNS,
            device: Device::Cpu,
            prefetch: None,
            fp8: false,
        }
    }

    fn scales() -> [Scales; 5] {
        let values = |count: usize| (0..count).map(|i| (i as f32 * 0.7).sin()).collect();
        [
            Scales::None,
            Scales::All(0.3),
            Scales::Rows(values(ROWS)),
            Scales::Blocks {
                size: 64,
                values: values(ROWS * COLUMNS / 64),
            },
            Scales::Blocks {
                size: 100,
                values: values((ROWS * COLUMNS).div_ceil(100)),
            },
        ]
    }

    /// Checks two matrices, one after the other, with one or both of them on the "device" against both on the host.
    fn each_pair(mut check: impl FnMut(&str, &Matrix, &Matrix)) {
        for format in Format::ALL {
            for scales in scales() {
                let pair = |first, second| {
                    let matrices = [
                        (host(format, scales.clone()), first),
                        (host(format, Scales::All(-2.0)), second),
                    ];
                    Matrix::Packed(rows(matrices.into()))
                };
                let name = format!("{} {scales:?}", format.name());
                let expected = pair(false, false);
                check(&name, &pair(true, true), &expected);
                check(&name, &pair(false, true), &expected);
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
        let matrix = Matrix::Packed(rows(vec![(host(Format::Q4K, Scales::None), true)]));
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
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.gguf");
        let shape = [ROWS, COLUMNS];
        let tensor = StreamedTensor::new("rows", Format::Q8_0, &shape, || Ok(Cow::Owned(bytes(Format::Q8_0))));
        write_gguf(&path, &[], [tensor]).unwrap();
        let mapped = Store::open(&path).unwrap().map_matrix("rows").unwrap();
        assert!(mapped.is_mapped());
        let prefetch = Prefetch::new(|capacity| Copies::new(usize::from(u16::MAX), capacity));
        let rows = PackedRows::new(vec![mapped], Device::Cpu)
            .unwrap()
            .prefetched(Some(Arc::new(prefetch)));
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
