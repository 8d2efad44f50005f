#![doc = include_str!("../README.md")]

pub mod cpu;
pub mod cuda;
pub mod device;
pub mod libtorch;
pub mod memory;
pub mod openmp;
pub mod tf32;
