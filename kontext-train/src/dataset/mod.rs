//! Image pairs with instructions: the files, their encoded form, and the sampling of batches.

mod batch;
mod batch_sampler;
mod cache;
mod encode;
mod encoded;
mod items;
mod missing;
mod unseen;

pub use batch::{Batch, Bucket};
pub use batch_sampler::{BatchItems, BatchSampler};
pub(crate) use batch_sampler::{WEIGHTS, is_weight};
pub(crate) use cache::Cache;
pub use encode::{EncodeProgress, Encoding};
pub use encoded::{BatchOptions, EncodedDataset};
pub(crate) use encoded::{longest_prefix, weight_of};
pub use items::{Dataset, Item, Skipped};
pub use unseen::{UnseenPart, UnseenPrompts};
