//! Edits with known answers: correctness of a result, and its unwanted changes.

mod score;
mod table;

pub use score::{EditScore, KnownEdit};
pub(crate) use score::{agree, untouched};
pub use table::{Mean, Table};
