//! The parts that the models are made of. Each is built from [`crate::Weights`] and is whole.

mod change;
mod conv;
mod delta;
mod embedding;
mod linear;
mod matrix;
mod norm;
mod placed;
mod scratch;
mod slot;

pub use change::{Change, Norm};
pub use conv::Conv2d;
pub use embedding::Embedding;
pub use linear::Linear;
pub(crate) use matrix::{Bytes, Matrix, PackedMatrix, PackedRows};
pub use norm::{GroupNorm, LayerNorm, RmsNorm};
pub(crate) use slot::Slot;
pub use slot::{Prepared, Slots};
