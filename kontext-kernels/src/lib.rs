#![doc = include_str!("../README.md")]

mod cache;
mod checks;
mod counter;
mod device;
mod gelu_concat;
mod group_norm;
mod kernels;
mod launch;
mod nvrtc;
mod qk_norm_rope;
mod residual_norm;
mod shape;
mod source;

pub use counter::{Count, Counter};
pub use device::options;
pub use kernels::Kernels;
pub use launch::{Access, Buffer, Call, Kernel, Launch};
pub use nvrtc::Nvrtc;
pub use qk_norm_rope::QkWeights;
pub use residual_norm::{Branch, NormModulation};
pub use shape::KernelShape;
pub use source::source;
