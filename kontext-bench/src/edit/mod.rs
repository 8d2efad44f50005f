//! Edits with known answers: correctness of a result, and its unwanted changes.

mod held_out;
mod score;
mod table;

pub use held_out::{HeldOut, Quality};
pub use score::{EditScore, KnownEdit};
pub(crate) use score::{agree, untouched};
pub use table::{Mean, Table};
