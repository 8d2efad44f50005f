//! What pip is asked for, as failures name it.

use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goods {
    Libtorch,
    /// What the GPU kit is compared with, see [`crate::kit_wheels`].
    KitWheels,
}

impl fmt::Display for Goods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Libtorch => "libtorch",
            Self::KitWheels => "the wheels of the GPU kit",
        })
    }
}
