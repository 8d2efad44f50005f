#![doc = include_str!("../README.md")]

mod entry;
mod file;
mod folder;
mod gguf;
mod gguf_types;
mod gguf_value;
mod gguf_write;
mod header;
mod header_write;
mod hub;
mod matrix;
mod names;
mod open;
pub mod quant;
mod quantize;
mod report;
mod save;
mod save_streamed;
mod scales;
mod shards;
mod side_tensors;
mod store;
mod synthetic;

pub use entry::Entry;
pub use folder::FolderListing;
pub use gguf_value::{Array, Value};
pub use gguf_write::{StreamedTensor, write_gguf};
pub use hub::{hub_snapshot, is_hub_cache};
pub use matrix::StoredMatrix;
pub use names::{NameMap, TensorMap, nearest as nearest_name, prefix_before};
pub use quantize::Quantize;
pub use report::Account;
pub use save::{save, to_bytes};
pub use save_streamed::save_streamed;
pub use scales::Scales;
pub use store::Store;
