#![doc = include_str!("../README.md")]

pub mod array;
pub mod check;
mod checkpoint_error;
mod error;
pub mod images;
mod json;
mod lock;
pub mod noise;
mod output_file;
mod output_folder;
pub mod pattern;
mod resize;
mod stage;
mod tokens;

pub use checkpoint_error::CheckpointError;
pub use error::{During, Error, Result, TorchError};
pub use json::{read_json, write_json};
pub use lock::lock;
pub use output_file::{OutputFile, check_writable};
pub use output_folder::OutputFolder;
pub use stage::{ModelPart, Stage};
pub use tch::{Device, Kind, Tensor};
pub use tokens::{Conditioning, Tokens};
