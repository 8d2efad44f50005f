//! The few functions of CUDA's runtime that tch does not bind.
//!
//! They are looked up in the libraries that libtorch's CUDA half has loaded into the program, so that the program has one
//! runtime. Source of the signatures: CUDA 13.0 `cuda_runtime_api.h`.

mod runtime;
mod stream;

pub(crate) use self::runtime::free_memory;
pub use self::stream::{Event, Stream};
