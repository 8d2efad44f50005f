//! Launches of kernels, and the targets that carry them out.

use std::ffi::{CStr, c_void};
use std::fmt::{self, Debug};

use kontext_core::{Device, Result};

use crate::KernelShape;

/// One of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Kernel {
    /// RMS norm and rotation of queries and keys.
    QkNormRope,
    /// Residual and layer norm, to bf16.
    ResidualNorm,
    /// Residual and layer norm, to e4m3.
    ResidualNormFp8,
    /// Attention and GELU of the MLP in one row of e4m3.
    GeluConcatFp8,
    /// First launch of a group norm.
    GroupSums,
    /// Second launch of a group norm.
    GroupNorm,
}

impl Kernel {
    /// All kernels.
    pub const ALL: [Self; 6] = [
        Self::QkNormRope,
        Self::ResidualNorm,
        Self::ResidualNormFp8,
        Self::GeluConcatFp8,
        Self::GroupSums,
        Self::GroupNorm,
    ];

    /// Returns the kernel's name in its text.
    ///
    /// # Example
    /// ```
    /// assert_eq!(kontext_kernels::Kernel::QkNormRope.name(), c"qk_norm_rope");
    /// ```
    #[must_use]
    pub fn name(self) -> &'static CStr {
        match self {
            Self::QkNormRope => c"qk_norm_rope",
            Self::ResidualNorm => c"residual_norm",
            Self::ResidualNormFp8 => c"residual_norm_fp8",
            Self::GeluConcatFp8 => c"gelu_concat_fp8",
            Self::GroupSums => c"group_sums",
            Self::GroupNorm => c"group_norm",
        }
    }

    /// Returns `true` if the kernel converts to e4m3, which GPUs do from compute capability 8.9 on.
    #[must_use]
    pub fn needs_fp8(self) -> bool {
        matches!(self, Self::ResidualNormFp8 | Self::GeluConcatFp8)
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name().to_string_lossy())
    }
}

/// Uses of a buffer by a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read only.
    Read,
    /// Written whole, and not read.
    Write,
    /// Read and written whole.
    Update,
}

/// Memory that a launch uses: `counts[0]` times `counts[1]` stretches of `bytes`, each at its strides from
/// `address`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Address of the first stretch.
    pub address: *const c_void,
    /// Bytes of a stretch.
    pub bytes: usize,
    /// Numbers of stretches, outer and inner.
    pub counts: [usize; 2],
    /// Bytes from the start of a stretch to the next one's, outer and inner.
    pub strides: [usize; 2],
    /// Use by the launch.
    pub access: Access,
}

impl Buffer {
    /// Returns the bytes of all stretches.
    #[must_use]
    pub fn size(&self) -> usize {
        self.counts[0] * self.counts[1] * self.bytes
    }
}

/// A launch of a kernel. Only this crate makes one, after it has checked the tensors: the addresses are valid
/// as long as the borrowed arguments are.
#[derive(Debug)]
pub struct Call<'a> {
    pub(crate) kernel: Kernel,
    pub(crate) shape: KernelShape,
    pub(crate) grid: [u32; 2],
    pub(crate) threads: u32,
    pub(crate) arguments: &'a mut [*mut c_void],
    pub(crate) buffers: &'a [Buffer],
}

impl Call<'_> {
    /// Returns the kernel.
    #[must_use]
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Returns the sizes that the kernel must be compiled for.
    #[must_use]
    pub fn shape(&self) -> &KernelShape {
        &self.shape
    }

    /// Returns the numbers of blocks on three axes.
    #[must_use]
    pub fn grid(&self) -> [u32; 3] {
        [self.grid[0], self.grid[1], 1]
    }

    /// Returns the threads of a block on three axes.
    #[must_use]
    pub fn block(&self) -> [u32; 3] {
        [self.threads, 1, 1]
    }

    /// Returns pointers to the arguments' values, in the order of the kernel's parameters.
    #[must_use]
    pub fn arguments(&mut self) -> &mut [*mut c_void] {
        self.arguments
    }

    /// Returns all memory that the kernel may use.
    #[must_use]
    pub fn buffers(&self) -> &[Buffer] {
        self.buffers
    }
}

/// A target of launches: a device, an emulator, or an account of another target's.
pub trait Launch: Debug + Send + Sync {
    /// Returns the device whose tensors the kernels get.
    fn device(&self) -> Device;

    /// Returns `true` if the kernels that convert to e4m3 can be launched.
    fn has_fp8(&self) -> bool;

    /// Launches a kernel. The work is done in the order of the device's other work, and may not be finished
    /// on return.
    ///
    /// # Errors
    /// [`kontext_core::Error::Device`] if the target refuses.
    fn launch(&self, call: Call<'_>) -> Result<()>;
}
