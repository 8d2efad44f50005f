//! CLIP's text model, which produces the pooled vector that modulates the transformer's blocks.

mod config;
mod layer;
mod model;

pub use config::ClipConfig;
pub use model::{ClipEncoder, ClipOutput};
