//! The T5 and T5 v1.1 encoder, which produces the transformer's text tokens.

mod bias;
mod config;
mod footprint;
mod gguf;
mod layer;
mod model;

pub use config::T5Config;
pub(crate) use footprint::{activations, held_kind, is_embedding};
pub use gguf::t5_gguf_name;
pub use model::T5Encoder;
