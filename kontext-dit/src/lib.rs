#![doc = include_str!("../README.md")]

mod config;
mod double;
mod embed;
mod footprint;
mod infer;
mod linears;
mod model;
mod modulation;
pub mod names;
mod piece;
mod rope;
mod single;
mod state;
mod stream;

pub use config::DitConfig;
pub use footprint::{DitFootprint, DitWeights, RunSizes};
pub use linears::{LinearPart, linear_parts};
pub use model::{Dit, Run, RunInput};
pub use piece::Piece;
pub use state::State;
