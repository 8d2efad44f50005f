//! The parts that the models are made of. Each is built from [`crate::Weights`] and is whole.

mod conv;
mod embedding;
mod linear;
mod low_rank;
mod matrix;
mod norm;
mod scratch;

pub use conv::Conv2d;
pub use embedding::Embedding;
pub use linear::Linear;
pub use low_rank::LowRank;
pub(crate) use matrix::{Bytes, Matrix, PackedMatrix, PackedRows};
pub use norm::{GroupNorm, LayerNorm, RmsNorm};
