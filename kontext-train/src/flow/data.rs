//! Data of a run: the encoded dataset and its training batches.

use std::ops::ControlFlow;
use std::path::Path;

use kontext_core::{Device, Error, Kind, Result};
use kontext_sampler::{References, Shift};
use kontext_vae::Autoencoder;

use crate::base::Base;
use crate::dataset::{BatchOptions, BatchSampler, Dataset, EncodeProgress, EncodedDataset, Encoding};

use super::check::no_items;
use super::event::TrainEvent;
use super::recipe::Recipe;
use super::step::{self, NoisyBatch};

/// Encodes the dataset. The text encoders, larger than everything else, are dropped afterwards.
pub(super) fn open_dataset(
    recipe: &Recipe,
    base: &Base,
    vae: &Autoencoder,
    device: Device,
    kind: Kind,
    observe: &mut dyn FnMut(TrainEvent<'_>) -> ControlFlow<()>,
) -> Result<EncodedDataset> {
    let data = &recipe.data;
    let mut dataset = Dataset::open(&data.folder)?;
    dataset
        .items
        .retain(|item| item.split == data.split || item.split == data.validation);
    let sizes = recipe.sizes(base);
    let cache = data.cache.clone().unwrap_or_else(|| recipe.out.join("cache"));
    let text = base.text(kind, device)?;
    let encoding = Encoding {
        cache,
        sizes,
        kind,
        device,
    };
    let options = BatchOptions {
        device,
        kind,
        references: References::Offset,
    };
    let progress = |progress: EncodeProgress| observe(TrainEvent::Encoding(progress));
    let dataset = EncodedDataset::new(dataset, vae, &text, &encoding, options, progress)?;
    for skipped in dataset.skipped() {
        if observe(TrainEvent::Skipped(skipped)).is_break() {
            return Err(Error::Cancelled {
                done: 0,
                total: recipe.steps as usize,
            });
        }
    }
    Ok(dataset)
}

/// Returns a digest of the data that a run is trained on: its examples, the sizes of their images, and the
/// lengths of the image files, from `folder`.
pub(super) fn data_digest(dataset: &EncodedDataset, folder: &Path) -> String {
    let mut hasher = crc32fast::Hasher::new();
    for item in dataset.items() {
        hasher.update(format!("{item:?}").as_bytes());
        for image in item.sources.iter().chain([&item.target]) {
            // The images have just been read: only an unusual file system has no length for one.
            let length = std::fs::metadata(folder.join(image)).map_or(0, |facts| facts.len());
            hasher.update(&length.to_le_bytes());
        }
    }
    hasher.update(format!("{:?}", dataset.buckets()).as_bytes());
    format!("{} examples of digest {:08x}", dataset.items().len(), hasher.finalize())
}

/// The training batches, in the sampler's order.
pub(super) struct Batches {
    sampler: BatchSampler,
    shift: Shift,
}

impl Batches {
    pub(super) fn new(recipe: &Recipe, dataset: &EncodedDataset, shift: Shift) -> Result<Self> {
        let data = &recipe.data;
        let buckets = dataset.by_bucket(|item| item.split == data.split);
        let mut sampler = BatchSampler::new(buckets, dataset.weights(&data.weights), data.batch, recipe.seed)?;
        if sampler.batch(0).is_none() {
            return Err(no_items(recipe));
        }
        Ok(Self { sampler, shift })
    }

    pub(super) fn next(&mut self, dataset: &EncodedDataset, recipe: &Recipe, index: u64) -> Result<NoisyBatch> {
        let prepared = step::training(
            dataset,
            &mut self.sampler,
            &recipe.objective,
            self.shift,
            recipe.seed,
            index,
        )?;
        prepared.ok_or_else(|| Error::bug(format!("no batch {index} of a dataset that has items")))
    }
}
