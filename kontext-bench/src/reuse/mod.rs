//! Quality of runs that reuse results between steps, against the exact run, by the operations that they compute.

mod fidelity;
mod plot;
mod table;

pub use fidelity::Fidelity;
pub use plot::plot;
pub use table::{Row, Table};
