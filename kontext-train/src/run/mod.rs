//! A training run of any model: the shell around its loop, its files and its random numbers.

pub(crate) mod curve;
pub(crate) mod divergence;
mod intervals;
pub(crate) mod random;
pub(crate) mod shell;
mod snapshot;
mod toml_file;

pub use intervals::Intervals;
pub use snapshot::Snapshot;
pub(crate) use toml_file::read_toml;
