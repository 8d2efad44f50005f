#![doc = include_str!("../README.md")]

mod apply;
mod defaults;
mod factors;
mod family;
mod file;
mod key;
mod leaf;
mod lora;
mod prefix;
mod report;
mod save;
mod scaling;
mod table;

pub use defaults::LoraDefaults;
pub use factors::LoraForm;
pub use family::LoraFamily;
pub use lora::{Lora, LoraOptions};
pub use report::{LoraReport, Unmatched};
pub use save::{LoraLayer, save_lora};
pub use table::LoraTarget;
