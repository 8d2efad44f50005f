#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod activation;
pub mod clip;
mod footprint;
mod ids;
mod load;
mod prompt;
pub mod t5;
mod tokenizer;
mod unseen;
mod weighted;

pub use activation::Activation;
pub use clip::{ClipConfig, ClipEncoder, ClipOutput};
pub use footprint::TextFootprint;
pub use prompt::{Prompt, TextEncoder, pooled, prompt_embeds};
pub use t5::{T5Config, T5Encoder, t5_gguf_name};
pub use tokenizer::{Encoded, Tokenizer};
pub use unseen::{Truncation, Unknown, Unseen};
pub use weighted::{WeightedText, weighted_texts};
