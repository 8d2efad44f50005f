//! Download targets of pip, as error messages name them.

use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goods {
    Libtorch,
    /// The wheels of the GPU kit, see [`crate::kit_wheels`].
    KitWheels,
    /// The compiler of the kernels, see [`crate::nvrtc`].
    Nvrtc,
}

impl fmt::Display for Goods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Libtorch => "libtorch",
            Self::KitWheels => "the wheels of the GPU kit",
            Self::Nvrtc => "NVRTC, the compiler of the CUDA kernels,",
        })
    }
}
