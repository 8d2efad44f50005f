#![doc = include_str!("../README.md")]

mod apply;
mod factors;
mod families;
mod file;
mod leaf;
mod lora;
mod prefix;
mod report;
mod save;
mod scaling;
mod table;

pub use factors::LoraForm;
pub use families::LoraFamily;
pub use lora::{Lora, LoraOptions};
pub use report::{LoraReport, Unmatched};
pub use save::{LoraLayer, save_lora};
pub use table::LoraTarget;
