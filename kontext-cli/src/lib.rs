#![doc = include_str!("../README.md")]

pub mod args;
mod cache;
pub mod command;
mod dump;
pub mod emoji;
pub mod few_steps;
mod files;
pub mod held_out;
pub mod identity;
pub mod images;
pub mod input;
pub mod interrupt;
pub mod judge;
mod loras;
mod memory;
pub mod notes;
pub mod outputs;
mod parts;
mod program;
pub mod progress;
pub mod reuse;
mod round_trip;
pub mod run;
pub mod shipped;
mod strip;
pub mod training;
pub mod typed;
mod values;
pub mod walker;
pub mod walks;

pub use files::{create_folder, read, save, write};
pub use parts::PartArgs;
pub use program::{announce, complain, main, note, noted, say};
pub use round_trip::round_trip;
pub use strip::{row_size, strip};
