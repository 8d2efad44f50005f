#![doc = include_str!("../README.md")]

pub mod array;
pub mod check;
pub mod device;
mod error;
pub mod nn;
pub mod noise;
pub mod ops;
pub mod picture;
mod resize;
mod tokens;
pub mod weights;

pub use error::{CheckpointError, During, Error, Result, TorchError};
pub use tch::{Device, Kind, Tensor};
pub use tokens::{Conditioning, Tokens};
pub use weights::Weights;
