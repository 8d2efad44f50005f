#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod attention;
mod autoencoder;
mod autoencoder_kl;
mod config;
mod decoder;
mod encoder;
mod footprint;
mod infer;
mod latent_map;
pub mod names;
mod resnet;
mod size;
mod tiling;
mod tiny;
mod tiny_config;
mod upsample;

pub use autoencoder::Autoencoder;
pub use autoencoder_kl::{AutoencoderKl, Posterior};
pub use config::VaeConfig;
pub use footprint::VaeFootprint;
pub use latent_map::{LatentColours, LatentFit, LatentMap};
pub use size::DOWNSCALE;
pub use tiling::Tiling;
pub use tiny::AutoencoderTiny;
pub use tiny_config::TinyConfig;
