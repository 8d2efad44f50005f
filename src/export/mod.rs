//! Models that are written: parts in diffusers' layout, quantised parts, and a random model.

mod letter_tokenizers;
pub mod quantize;
mod random_model;
mod renamed;
pub mod save_part;

pub(crate) use random_model::random_parts;
pub use random_model::{ModelSizes, random_model};
