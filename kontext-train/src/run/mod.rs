//! A training run of any model: the shell around its loop, its files and its random numbers.

mod critic_report;
pub(crate) mod curve;
pub(crate) mod divergence;
pub(crate) mod identity;
mod intervals;
pub(crate) mod random;
pub(crate) mod recipe_changes;
pub(crate) mod segment;
pub(crate) mod shell;
mod snapshot;
mod toml_file;
pub(crate) mod training;

pub use critic_report::CriticReport;
pub use intervals::Intervals;
pub use recipe_changes::{Change, differences};
pub use snapshot::Snapshot;
pub(crate) use toml_file::read_toml;
