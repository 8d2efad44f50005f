#![doc = include_str!("../README.md")]

pub mod array;
pub mod buffer;
pub mod check;
mod checkpoint_error;
mod contain;
mod error;
pub mod images;
mod json;
mod lock;
pub mod noise;
mod output_file;
mod output_folder;
pub mod pattern;
pub mod range;
mod resize;
mod stage;
pub mod threads;
mod tokens;

pub use checkpoint_error::CheckpointError;
pub use contain::contain;
pub use error::{During, Error, Result, TorchError};
pub use json::{read_json, utf8, write_json};
pub use lock::lock;
pub use output_file::{OutputFile, check_writable};
pub use output_folder::OutputFolder;
pub use resize::resize_bytes;
pub use stage::{ModelPart, Stage};
pub use tch::{Device, Kind, Tensor};
pub use tokens::{Conditioning, Tokens};
