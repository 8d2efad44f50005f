#![doc = include_str!("../README.md")]

pub mod cell;
pub mod drift;
pub mod edit;
pub mod few_steps;
pub mod kontextbench;
pub mod metrics;
pub mod reconstruction;
pub mod reuse;
pub mod statistics;
