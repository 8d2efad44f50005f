#![doc = include_str!("../README.md")]

pub mod array;
pub mod buffer;
mod causes;
pub mod check;
mod checkpoint_error;
mod class_name;
mod contain;
mod durable;
mod error;
#[cfg(feature = "failpoints")]
pub mod failpoint;
pub mod images;
mod json;
pub mod json_lines;
mod leftovers;
mod line_numbers;
mod lock;
pub mod noise;
mod output_file;
mod output_folder;
mod output_path;
pub mod pattern;
mod printable;
pub mod range;
mod resize;
mod stage;
pub mod threads;
mod tokens;

pub use checkpoint_error::CheckpointError;
pub use class_name::{check_class, wrong_class};
pub use contain::contain;
pub use durable::{append, create_folder, sync_entry};
pub use error::{During, Error, Result, TorchError};
pub use json::{read_json, read_text, utf8, without_mark, write_json};
pub use line_numbers::LineNumbers;
pub use lock::lock;
pub use output_file::{OutputFile, check_writable, write_file};
pub use output_folder::OutputFolder;
pub use output_path::output_path;
pub use printable::{printable, printable_lines, shortened};
pub use stage::{ModelPart, Stage};
pub use tch::{Device, Kind, Tensor};
pub use tokens::{Conditioning, Tokens};
