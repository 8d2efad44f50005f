#![doc = include_str!("../README.md")]

mod backward;
pub mod dataset;
mod ema;
mod muon;
mod objective;
mod optimizer;
mod params;
mod random;
mod rate;

pub use backward::{Activations, backward};
pub use ema::Ema;
pub use objective::{Density, Objective, Weighting, add_noise};
pub use optimizer::{AdamW, AdamWConfig};
pub use params::Params;
pub use rate::Rate;
