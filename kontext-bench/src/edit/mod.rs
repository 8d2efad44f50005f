//! Edits whose answers are known: is a result the right picture, and what else did it change?

mod score;
mod table;

pub use score::{EditScore, KnownEdit};
pub(crate) use score::{agree, untouched};
pub use table::{Mean, Table};
