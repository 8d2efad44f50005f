#![doc = include_str!("../README.md")]

mod arithmetic;
mod config;
mod double;
mod embed;
mod flops;
mod flow;
mod follow;
mod footprint;
mod fused;
mod infer;
mod linears;
mod model;
mod modulation;
pub mod names;
mod piece;
mod qk_norm;
mod reuse;
mod rope;
mod rows;
mod single;
mod state;
mod step;
mod stream;

pub use arithmetic::Arithmetic;
pub use config::DitConfig;
pub use flops::{DitFlops, RunCounts};
pub use footprint::{DitFootprint, DitWeights, RunSizes};
pub use linears::{LinearPart, linear_parts};
pub use model::{Dit, Run, RunInput};
pub use piece::Piece;
pub use reuse::{CachedRun, FirstBlock, MagCache, StepCache, StepWork, Taylor, TeaCache};
pub use state::State;
