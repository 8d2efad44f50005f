//! Packed weights: matrices with fewer bits per element, and their unpacking and packing.
//!
//! | need | use |
//! | --- | --- |
//! | name and size of a format | [`Format`] |
//! | rows and columns of a stored matrix as f32 or bf16 | [`Packed::unpack`] |
//! | a matrix packed for storage | [`pack()`] |
//!
//! Bytes and scales are passed as slices; the module does not access files, and only `on_device` uses
//! tensors.

mod float8;
mod format;
mod half_floats;
mod iq4;
mod k;
mod legacy;
mod nf4;
mod pack;
mod pack_blocks;
mod packed;
mod unpack;
mod wide;

pub use format::Format;
pub use iq4::LEVELS as IQ4_LEVELS;
pub use nf4::{FP4 as FP4_PAIRS, NF4 as NF4_PAIRS};
pub use pack::{PackedVec, pack};
pub use packed::{Element, Packed, Scale};
