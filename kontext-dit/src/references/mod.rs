//! Reuse of references and unedited tokens between the steps of a run: which steps are full, and which tokens
//! the others compute.

mod edited;
mod schedule;
mod text;
mod velocity;

pub(crate) use edited::grid_tokens;
pub use edited::{EditedTokens, edited_rows};
pub use schedule::{ReferenceReuse, Refresh};
pub(crate) use schedule::{combined, step_work};
