//! Pairs of pictures with instructions: what is on disk, its encoded form, and the order in which
//! training meets it.

mod batch;
mod cache;
mod encode;
mod items;
mod order;
mod store;

pub use batch::{Batch, Bucket};
pub use encode::{Encoding, Fill};
pub use items::{Dataset, Item, Skipped};
pub use order::{Order, Part};
pub use store::{Store, StoreOptions};
