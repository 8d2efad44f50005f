#![doc = include_str!("../README.md")]

pub mod cuda;
pub mod device;
pub mod memory;
