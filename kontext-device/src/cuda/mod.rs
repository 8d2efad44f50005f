//! The few functions of CUDA's runtime and of NVIDIA's driver that tch does not bind.
//!
//! Those of the runtime are looked up in the libraries that libtorch's CUDA half has loaded into the program, so that
//! the program has one runtime. Source of the signatures: CUDA 13.0 `cuda_runtime_api.h`.

mod code;
mod driver;
mod fp8;
mod runtime;
mod stream;

pub use self::code::{Code, Function};
pub use self::driver::{CudaVersion, Driver, DriverDevice};
pub use self::fp8::has_fp8;
pub(crate) use self::runtime::free_memory;
pub use self::runtime::runtime_version;
pub use self::stream::{Event, Stream};
