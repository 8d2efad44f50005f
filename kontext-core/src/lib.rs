#![doc = include_str!("../README.md")]

pub mod array;
pub mod check;
mod checkpoint_error;
pub mod cuda;
pub mod device;
mod error;
pub mod formats;
mod json;
pub mod memory;
pub mod nn;
pub mod noise;
mod output_file;
mod output_folder;
pub mod pattern;
pub mod picture;
mod resize;
mod tokens;

pub use checkpoint_error::CheckpointError;
pub use error::{During, Error, Result, TorchError};
pub use formats::quant;
pub use json::read_json;
pub use nn::Weights;
pub use nn::ops;
pub use output_file::{OutputFile, check_writable};
pub use output_folder::OutputFolder;
pub use tch::{Device, Kind, Tensor};
pub use tokens::{Conditioning, Tokens};

/// Files of tensors, and the cursor over them.
pub mod weights {
    pub use crate::formats::{
        Account, Array, NameMap, Quantize, Recipe, StreamedTensor, Value, nearest_name, save, save_streamed, to_bytes,
        write_gguf,
    };
    pub use crate::nn::{Adapters, LeftInFile, PREFETCH_BUFFERS};
}
