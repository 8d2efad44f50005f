//! Kernels compiled for a device and a model's sizes.

use std::ffi::c_void;
use std::sync::Arc;

use kontext_core::{Device, Error, Result};

use crate::{Buffer, Call, Kernel, KernelShape, Launch};

/// Kernels of one device, for blocks of one width and head width.
///
/// A method checks its tensors (shape, kind, device, strides, alignment to 16 bytes, no gradient), queues the
/// kernel on libtorch's current stream, and returns before the work is done. A clone shares the compiled
/// code.
#[derive(Debug, Clone)]
pub struct Kernels {
    target: Arc<dyn Launch>,
    shape: KernelShape,
}

impl Kernels {
    /// Makes the kernels that `target` launches, such as an emulator.
    #[must_use]
    pub fn launched_by(target: Arc<dyn Launch>, shape: &KernelShape) -> Self {
        Self { target, shape: *shape }
    }

    /// Returns the sizes of the blocks.
    #[must_use]
    pub fn shape(&self) -> &KernelShape {
        &self.shape
    }

    /// Returns the device of the tensors.
    #[must_use]
    pub fn device(&self) -> Device {
        self.target.device()
    }

    /// Returns `true` if the device has the kernels that write e4m3: CUDA devices from compute capability 8.9
    /// on.
    #[must_use]
    pub fn has_fp8(&self) -> bool {
        self.target.has_fp8()
    }

    /// Launches a block of `threads` for each place of `grid`.
    pub(crate) fn launch(
        &self,
        kernel: Kernel,
        grid: [u32; 2],
        threads: i64,
        arguments: &mut [*mut c_void],
        buffers: &[Buffer],
    ) -> Result<()> {
        if kernel.needs_fp8() && !self.has_fp8() {
            return Err(Error::Device {
                device: format!("{:?}", self.device()),
                reason: format!("{kernel} needs compute capability 8.9 or newer; compute in bf16"),
            });
        }
        self.target.launch(Call {
            kernel,
            shape: self.shape,
            grid,
            threads: threads as u32,
            arguments,
            buffers,
        })
    }
}

/// Threads of a warp.
const WARP: i64 = 32;

/// Returns the smallest multiple of a warp.
pub(crate) fn whole_warps(threads: i64) -> i64 {
    (threads + WARP - 1) / WARP * WARP
}

/// Returns the pointer to an argument's value.
pub(crate) fn argument<T>(value: &mut T) -> *mut c_void {
    std::ptr::from_mut(value).cast()
}
