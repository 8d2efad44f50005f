//! The encoder of T5 v1.1 and T5: prompts to the transformer's text tokens.

mod bias;
mod config;
mod layer;
mod model;
mod projection;

pub use config::T5Config;
pub use model::T5Encoder;
