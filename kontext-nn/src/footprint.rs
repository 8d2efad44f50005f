//! Memory of a model's weights, held and in use, computed from the headers of its files.
//!
//! Each model crate counts the activations of its own code and adds these numbers; nothing is loaded for it. Sizes
//! may come from damaged files, so sums and products saturate.

use kontext_formats::Quantize;
use tch::{Device, Kind};

use crate::Weights;
use crate::dequant::WORKSPACE;
use crate::prefetch::BUFFERS;

/// Device and dtype of a computation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Execution {
    /// Device of the computation.
    pub device: Device,
    /// Dtype of the activations.
    pub kind: Kind,
}

impl Execution {
    /// Returns the bytes of an activation's element.
    #[must_use]
    pub fn element_bytes(self) -> u64 {
        element_bytes(self.kind)
    }

    /// Returns the bytes of a stage that do not grow with its input, next to `weights` bytes of weights.
    ///
    /// On a CPU `on_cpu`, measured for each stage (a model of full width, edits at 256x256 and 512x512, two
    /// cores): the unpacked piece of a weight, buffers of libtorch's threads, and gaps in the heap. A part
    /// with fewer bytes of weights takes no more than those.
    ///
    /// On a CUDA device 600 MB, not measured: the growth of the device's context after its creation, when
    /// kernels are loaded, and the workspaces of cuBLAS (32 MB on an H100) and cuDNN.
    #[must_use]
    pub fn constant_bytes(self, on_cpu: u64, weights: u64) -> u64 {
        const ON_CUDA: u64 = 600_000_000;
        if self.device.is_cuda() {
            ON_CUDA
        } else {
            on_cpu.min(weights)
        }
    }
}

/// Returns the bytes of an element.
#[must_use]
pub fn element_bytes(kind: Kind) -> u64 {
    kind.elt_size_in_bytes() as u64
}

/// Bytes of a model's weights: matrices, which may be offloaded to their file, and all other tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WeightBytes {
    /// Matrices as held in memory.
    pub matrices: u64,
    /// Matrices as stored in their files.
    pub stored: u64,
    /// All other tensors.
    pub rest: u64,
    /// The largest matrix, in transit to the device if offloaded.
    pub largest: MatrixBytes,
    /// The largest matrix held in another form than the one it is multiplied in.
    pub largest_packed: MatrixBytes,
}

/// Sizes of a matrix.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MatrixBytes {
    /// Number of elements.
    pub elements: u64,
    /// Bytes in its file.
    pub stored: u64,
}

impl WeightBytes {
    /// Sums the tensors of files whose names are `wanted`, as layers hold them: plain ones in at most the
    /// width of their dtype, `kind(name)`; plain matrices quantised to `to` at load.
    ///
    /// Weights that are not in files count nothing.
    pub fn of(
        weights: &Weights,
        to: Option<Quantize>,
        kind: impl Fn(&str) -> Kind,
        wanted: impl Fn(&str) -> bool,
    ) -> Self {
        let mut sum = Self::default();
        for (name, (shape, stored)) in weights
            .store()
            .stored_sizes()
            .into_iter()
            .filter(|(name, _)| wanted(name))
        {
            let elements = shape
                .iter()
                .fold(1, |all: u64, side| all.saturating_mul(side.unsigned_abs()));
            let wide = element_bytes(kind(&name)).saturating_mul(elements);
            match shape.as_slice() {
                [_, columns] => {
                    let held = packed(to, *columns, elements, stored).min(wide);
                    let matrix = MatrixBytes { elements, stored };
                    sum.matrices = sum.matrices.saturating_add(held);
                    sum.stored = sum.stored.saturating_add(stored);
                    sum.largest = sum.largest.max(matrix);
                    if held != wide {
                        sum.largest_packed = sum.largest_packed.max(matrix);
                    }
                }
                // A tensor stored wider is narrowed.
                _ => sum.rest = sum.rest.saturating_add(stored.min(wide)),
            }
        }
        sum
    }

    /// Returns the bytes of all tensors in memory.
    #[must_use]
    pub fn all(self) -> u64 {
        self.matrices.saturating_add(self.rest)
    }

    /// Returns the bytes of the tensors that stay in memory if all matrices are offloaded or not.
    #[must_use]
    pub fn held(self, offloaded: bool) -> u64 {
        if offloaded { self.rest } else { self.all() }
    }

    /// Returns the bytes of dequantising one matrix on a CUDA device: the largest, in stored form too, if
    /// matrices are offloaded, otherwise the largest packed one. 0 on a CPU, whose
    /// [constant](Execution::constant_bytes) includes it.
    #[must_use]
    pub fn dequantised(self, offloaded: bool, execution: Execution) -> u64 {
        let matrix = if offloaded {
            self.largest
        } else {
            MatrixBytes {
                stored: 0,
                ..self.largest_packed
            }
        };
        if execution.device.is_cuda() {
            let dequantised = matrix.elements.saturating_mul(execution.element_bytes() + WORKSPACE);
            dequantised.saturating_add(matrix.stored)
        } else {
            0
        }
    }
}

/// Returns the bytes of the buffers that prefetch the offloaded matrices of a model to a CUDA device; 0 on a
/// CPU.
#[must_use]
pub fn prefetch_bytes(parts: &[WeightBytes], device: Device) -> u64 {
    let largest = parts.iter().map(|part| part.largest.stored).max().unwrap_or_default();
    if device.is_cuda() {
        largest.saturating_mul(BUFFERS as u64)
    } else {
        0
    }
}

/// Returns the bytes of a matrix after quantisation at load, if it is requested and the file holds a plain
/// matrix.
fn packed(to: Option<Quantize>, columns: i64, elements: u64, stored: u64) -> u64 {
    const HALF: u64 = 2;
    match to.filter(|to| to.fits(columns) && stored >= elements.saturating_mul(HALF)) {
        Some(to) => (elements / to.format().block() as u64).saturating_mul(to.format().bytes() as u64),
        None => stored,
    }
}

#[cfg(test)]
mod tests {
    use kontext_core::{Tensor, noise};
    use kontext_formats::save;

    use super::*;

    fn draw(shape: &[i64]) -> Tensor {
        noise::randn(shape, 1, Kind::Float, Device::Cpu).unwrap()
    }

    fn file(tensors: &[(&str, Tensor)]) -> (tempfile::TempDir, Weights) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let named: Vec<_> = tensors
            .iter()
            .map(|(name, tensor)| ((*name).to_owned(), tensor.shallow_clone()))
            .collect();
        save(&path, &named, None).unwrap();
        let weights = Weights::open(&path).unwrap();
        (folder, weights)
    }

    #[test]
    fn a_matrix_counts_the_bytes_that_quantisation_packs_it_into() {
        let matrix = draw(&[6, 64]);
        let (_folder, weights) = file(&[("a.weight", matrix.shallow_clone())]);
        for to in Quantize::ALL {
            let counted = WeightBytes::of(&weights, Some(to), |_| Kind::Float, |_| true);
            assert_eq!(counted.matrices, to.pack(&matrix).unwrap().0.len() as u64, "{to}");
            assert_eq!(counted.largest_packed, counted.largest, "{to}");
        }
        let plain = WeightBytes::of(&weights, None, |_| Kind::Float, |_| true);
        assert_eq!((plain.matrices, plain.stored), (4 * 6 * 64, 4 * 6 * 64));
        assert_eq!(plain.largest_packed, MatrixBytes::default());
    }

    #[test]
    fn tensors_count_the_bytes_in_which_weights_at_most_as_wide_are_read() {
        let (_folder, weights) = file(&[
            ("bias", draw(&[64])),
            ("narrow", draw(&[7]).to_kind(Kind::Half)),
            ("conv", draw(&[2, 3, 3, 3]).to_kind(Kind::BFloat16)),
        ]);
        for kind in [Kind::Float, Kind::BFloat16] {
            let counted = WeightBytes::of(&weights, None, |_| kind, |_| true);
            let read = weights.clone().at_most(kind);
            let held = |name: &str, shape: &[i64]| {
                let tensor = read.tensor(name, shape).unwrap();
                tensor.numel() as u64 * element_bytes(tensor.kind())
            };
            let expected = held("bias", &[64]) + held("narrow", &[7]) + held("conv", &[2, 3, 3, 3]);
            assert_eq!((counted.rest, counted.matrices), (expected, 0), "{kind:?}");
        }
    }

    #[test]
    fn an_offloaded_matrix_counts_on_cuda_as_stored_too_and_a_held_one_only_if_packed() {
        let part = WeightBytes {
            largest: MatrixBytes {
                elements: 100,
                stored: 50,
            },
            ..WeightBytes::default()
        };
        let on = |device| Execution {
            device,
            kind: Kind::BFloat16,
        };
        let cuda = on(Device::Cuda(0));
        assert_eq!(part.dequantised(true, cuda), 100 * 2 + 100 * 6 + 50);
        assert_eq!(part.dequantised(false, cuda), 0);
        assert_eq!(part.dequantised(true, on(Device::Cpu)), 0);
        assert_eq!(prefetch_bytes(&[part, WeightBytes::default()], Device::Cuda(0)), 100);
        assert_eq!(
            (cuda.constant_bytes(9, 5), on(Device::Cpu).constant_bytes(9, 5)),
            (600_000_000, 5)
        );
    }
}
