//! Packed weights: matrices whose elements are stored in fewer bits, and how they are unpacked and packed.
//!
//! | need | use |
//! | --- | --- |
//! | what a format is called and how large it is | [`Format`] |
//! | rows and columns of a stored matrix as f32 or bf16 | [`Packed::unpack`] |
//! | a matrix packed for storing | [`pack()`] |
//!
//! Nothing here knows of tensors or files: bytes and factors come in as slices.

#[cfg(test)]
pub(crate) mod fixture;
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
pub use pack::{PackedVec, pack};
pub use packed::{Element, Packed, Scale};
