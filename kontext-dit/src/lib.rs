#![doc = include_str!("../README.md")]

mod arithmetic;
mod config;
mod double;
mod embed;
mod flow;
mod footprint;
mod fused;
mod infer;
mod kept;
mod linears;
mod model;
mod modulation;
pub mod names;
mod pass;
mod piece;
mod qk_norm;
mod reduced;
mod references;
mod rope;
mod rows;
mod single;
mod state;
mod step;
mod stream;

pub use arithmetic::Arithmetic;
pub use config::DitConfig;
pub use footprint::{DitFootprint, DitWeights, RunSizes};
pub use kept::{KeptKv, KeptTokens};
pub use linears::{LinearPart, linear_parts};
pub use model::{Dit, Run, RunInput};
pub use piece::Piece;
pub use reduced::Region;
pub use references::{EditedTokens, ReferenceReuse, Refresh, StepKind, edited_rows};
pub use state::State;
