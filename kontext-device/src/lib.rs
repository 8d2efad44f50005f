#![doc = include_str!("../README.md")]

pub mod cpu;
pub mod cuda;
pub mod device;
pub mod dispatcher;
pub mod libtorch;
pub mod memory;
pub mod openmp;
pub mod rates;
pub mod tf32;
pub mod turns;
