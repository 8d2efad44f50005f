//! An emulator of a GPU for tests: it runs the very text of the kernels of `kontext-kernels` on CPU tensors.
//!
//! A thread of a kernel is a fiber. The emulator reports a barrier or shuffle that not all threads reach; an
//! access that is outside the launch's buffers, unaligned or narrow; a race between threads or blocks; shared
//! memory that is read before it is written; and results that are not written whole. It runs one launch at a
//! time, on Linux only.

mod emulator;
mod ffi;
mod variants;

pub use emulator::{Account, Emulator, Order};
pub use variants::{FAULTS, FAULTY_SHAPE, Fault, SHAPES};

/// The text that the emulator was compiled from.
pub const SOURCE: &str = include_str!(concat!(env!("OUT_DIR"), "/source.cu"));
