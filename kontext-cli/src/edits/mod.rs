//! The same edit of many images, and requests of a manifest, resumable and in shards.
//!
//! ```text
//! cat.png              results
//! edits.json           seed and settings of the run
//! edits.jsonl          a record for each result, written before the result appears; edits-0-of-2.jsonl of a shard
//! ```
//!
//! A result counts as made if its record has the same request, images and settings, and its file the recorded bytes.
//! So a process may be killed, or the power cut, at any moment.

mod args;
mod facts;
mod folder;
mod inventory;
mod job;
mod journal;
mod line;
mod list;
mod manifest;
mod names;
mod options;
mod planner;
mod record;
mod run;
mod runner;
mod source;
mod template;
mod workspace;

pub use args::EditsArgs;
pub use list::Defaults;
pub use run::run;
pub use source::Source;
