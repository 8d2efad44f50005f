#![doc = include_str!("../README.md")]

mod autoencoder;
mod backward;
mod base;
mod curve;
pub mod dataset;
mod ema;
mod initial;
mod muon;
mod objective;
mod optimizer;
mod params;
mod random;
mod rate;
mod recipe;
mod samples;
mod snapshot;
mod step;
mod trained;
mod trainer;

pub use autoencoder::{AutoencoderRecipe, AutoencoderReport, AutoencoderTrainer};
pub use backward::{Activations, backward};
pub use base::Base;
pub use ema::Ema;
pub use initial::{initial, initial_transformer};
pub use objective::{Density, Objective, Weighting, add_noise};
pub use optimizer::{AdamW, AdamWConfig};
pub use params::Params;
pub use rate::Rate;
pub use recipe::{Data, Every, LoraMethod, Method, Recipe};
pub use snapshot::Snapshot;
pub use trainer::{StepReport, TrainEvent, Trainer};
