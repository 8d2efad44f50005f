//! CLIP's text model, which produces the pooled vector that modulates the transformer's blocks.

mod config;
mod layer;
mod model;

pub use config::ClipConfig;
pub(crate) use config::HIGHEST_ID;
pub use model::{ClipEncoder, ClipOutput};
