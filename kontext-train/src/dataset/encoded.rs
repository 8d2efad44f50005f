//! A dataset in encoded form: items in, batches of tensors out.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use kontext_core::{Conditioning, Device, Error, Kind, Result, Tensor, Tokens};
use kontext_sampler::ids::{Origin, grid_ids, origins};
use kontext_sampler::{Grid, References};
use kontext_text::TextEncoder;
use kontext_vae::Autoencoder;

use super::batch::{Batch, Bucket};
use super::cache::Cache;
use super::encode::{EncodeProgress, Encoding, Images, images, prompt_key, prompts};
use super::items::{Dataset, Item, Skipped};
use super::unseen::{UnseenPrompts, unseen};

/// Options of the batches.
#[derive(Debug, Clone, Copy)]
pub struct BatchOptions {
    /// Device of the batches' tensors.
    pub device: Device,
    /// Compute dtype of the model.
    pub kind: Kind,
    /// Scheme by which several reference images get distinct positions.
    pub references: References,
}

/// A dataset with encoded images and prompts.
pub struct EncodedDataset {
    dataset: Dataset,
    images: Images,
    prompts: Cache,
    unseen: Vec<UnseenPrompts>,
    buckets: Vec<Bucket>,
    bucket_of: Vec<usize>,
    options: BatchOptions,
}

impl std::fmt::Debug for EncodedDataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EncodedDataset")
            .field("folder", &self.dataset.folder)
            .field("buckets", &self.buckets)
            .finish_non_exhaustive()
    }
}

impl EncodedDataset {
    /// Encodes the images and prompts missing from the cache, and groups the items into buckets.
    ///
    /// # Errors
    /// Those of the encoders, [`Error::Io`] if the cache cannot be written, and [`Error::Cancelled`] if
    /// `observe` breaks off.
    pub fn new(
        mut dataset: Dataset,
        vae: &Autoencoder,
        text: &TextEncoder,
        encoding: &Encoding,
        options: BatchOptions,
        mut observe: impl FnMut(EncodeProgress) -> ControlFlow<()>,
    ) -> Result<Self> {
        let images = images(&mut dataset, vae, encoding, &mut observe)?;
        if dataset.items.is_empty() {
            let first = dataset.skipped.first().map(ToString::to_string).unwrap_or_default();
            return Err(Error::config(
                &dataset.folder,
                format!("none of its images can be used; {first}"),
            ));
        }
        let wanted: BTreeSet<&str> = dataset.items.iter().map(|item| item.instruction.as_str()).collect();
        let unseen = unseen(&wanted, text)?;
        let prompts = prompts(&wanted, text, encoding, &mut observe)?;
        let (mut buckets, mut bucket_of) = (Vec::<Bucket>::new(), Vec::with_capacity(dataset.items.len()));
        for item in &dataset.items {
            let grid = |path| images.places[path].1.grid();
            let bucket = Bucket {
                target: grid(&item.target)?,
                references: item.sources.iter().map(grid).collect::<Result<_>>()?,
            };
            let known = buckets.iter().position(|b| *b == bucket);
            bucket_of.push(known.unwrap_or(buckets.len()));
            if known.is_none() {
                buckets.push(bucket);
            }
        }
        Ok(Self {
            dataset,
            images,
            prompts,
            unseen,
            buckets,
            bucket_of,
            options,
        })
    }

    /// Returns the usable items.
    #[must_use]
    pub fn items(&self) -> &[Item] {
        &self.dataset.items
    }

    /// Returns the skipped lines and files.
    #[must_use]
    pub fn skipped(&self) -> &[Skipped] {
        &self.dataset.skipped
    }

    /// Returns the prompts of which an encoder does not see a part, also those that were in the cache.
    #[must_use]
    pub fn unseen(&self) -> &[UnseenPrompts] {
        &self.unseen
    }

    /// Returns the combinations of image sizes that occur.
    #[must_use]
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// Returns, for each bucket, the indices of the items for which `wanted` is true.
    pub fn by_bucket(&self, wanted: impl Fn(&Item) -> bool) -> Vec<Vec<usize>> {
        let mut parts = vec![Vec::new(); self.buckets.len()];
        for (index, item) in self.dataset.items.iter().enumerate() {
            if !wanted(item) {
                continue;
            }
            parts[self.bucket_of[index]].push(index);
        }
        parts
    }

    /// Returns the sampling weight of each item: that of the longest prefix of its category in `by_category`,
    /// 1 without one.
    #[must_use]
    pub fn weights(&self, by_category: &BTreeMap<String, f64>) -> BTreeMap<usize, f64> {
        let items = self.dataset.items.iter().enumerate();
        items
            .map(|(index, item)| (index, weight_of(item, by_category)))
            .collect()
    }

    /// Loads items of one bucket as a batch. Those at the batch indices in `unprompted` get the empty prompt.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for no items, or for items of several buckets.
    pub fn batch(&self, items: &[usize], unprompted: &[usize]) -> Result<Batch> {
        let bucket = items.first().and_then(|&item| self.bucket_of.get(item)).copied();
        let same = items.iter().all(|&item| self.bucket_of.get(item).copied() == bucket);
        let (Some(bucket), true) = (bucket, same) else {
            return Err(Error::invalid(
                "batch",
                "items of one bucket",
                format!("items {items:?}"),
            ));
        };
        let bucket = &self.buckets[bucket];
        let chosen = || items.iter().map(|&item| &self.dataset.items[item]);
        let target = self.stack(chosen().map(|item| self.images.get(&item.target)))?;
        let context = |index: usize| self.stack(chosen().map(|item| self.images.get(&item.sources[index])));
        let features = (0..bucket.references.len()).map(context).collect::<Result<Vec<_>>>()?;
        let prompt = |(index, item): (usize, &Item)| {
            if unprompted.contains(&index) {
                String::new()
            } else {
                item.instruction.clone()
            }
        };
        let instructions: Vec<String> = chosen().enumerate().map(prompt).collect();
        let part = |part: &'static str| self.stack(instructions.iter().map(|i| self.prompts.get(&prompt_key(i, part))));
        Ok(Batch {
            items: items.to_vec(),
            target,
            target_ids: grid_ids(bucket.target, Origin { t: 0, y: 0, x: 0 })?,
            context: if features.is_empty() {
                None
            } else {
                let ids = reference_ids(&bucket.references, self.options.references)?;
                Some(Tokens::new(Tensor::f_cat(&features, 1)?, ids)?)
            },
            conditioning: Conditioning {
                prompt_embeds: part("embeds")?,
                pooled: part("pooled")?,
            },
            bucket: bucket.clone(),
        })
    }

    fn stack(&self, tensors: impl Iterator<Item = Result<Tensor>>) -> Result<Tensor> {
        let stacked = Tensor::f_stack(&tensors.collect::<Result<Vec<_>>>()?, 0)?;
        Ok(stacked.f_to_device(self.options.device)?.f_to_kind(self.options.kind)?)
    }
}

/// Returns the sampling weight of an item, as [`EncodedDataset::weights`]; 1 without a matching prefix.
pub(crate) fn weight_of(item: &Item, by_category: &BTreeMap<String, f64>) -> f64 {
    longest_prefix(item, by_category).map_or(1.0, |(_, weight)| *weight)
}

/// Returns the entry of the longest prefix of the item's category.
pub(crate) fn longest_prefix<'a>(item: &Item, by_category: &'a BTreeMap<String, f64>) -> Option<(&'a String, &'a f64)> {
    let matching = by_category
        .iter()
        .filter(|(start, _)| item.category.starts_with(start.as_str()));
    matching.max_by_key(|(start, _)| start.len())
}

impl Images {
    fn get(&self, path: &std::path::PathBuf) -> Result<Tensor> {
        self.cache.get(&self.places[path].0)
    }
}

/// Returns the positions of the tokens of several references [R, 3].
fn reference_ids(grids: &[Grid], references: References) -> Result<Tensor> {
    let ids = grids
        .iter()
        .zip(origins(grids, references))
        .map(|(grid, origin)| grid_ids(*grid, origin));
    Ok(Tensor::f_cat(&ids.collect::<Result<Vec<_>>>()?, 0)?)
}
