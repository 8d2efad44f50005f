//! Data of a run: the encoded dataset and its training batches.

use std::ops::ControlFlow;

use kontext_core::{Device, Error, Kind, Result};
use kontext_sampler::{References, Shift, Size};
use kontext_vae::Autoencoder;

use crate::base::Base;
use crate::dataset::{BatchOptions, BatchSampler, Dataset, EncodeProgress, EncodedDataset, Encoding};
use crate::run::segment::report;

use super::check::no_items;
use super::event::TrainEvent;
use super::recipe::Recipe;
use super::step::{self, NoisyBatch};
use super::teacher_images::TeacherImages;

/// Encodes the examples. The text encoders, larger than everything else, are dropped afterwards.
pub(super) fn encoded(
    recipe: &Recipe,
    base: &Base,
    dataset: Dataset,
    vae: &Autoencoder,
    device: Device,
    kind: Kind,
    observe: &mut dyn FnMut(TrainEvent<'_>) -> ControlFlow<()>,
) -> Result<EncodedDataset> {
    let sizes = recipe.sizes(base);
    let cache = recipe.cache();
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
    let skipped = dataset.skipped().iter().map(TrainEvent::Skipped);
    for event in skipped.chain(dataset.unseen().iter().map(TrainEvent::Unseen)) {
        report(observe, event, 0, recipe.steps)?;
    }
    Ok(dataset)
}

/// Returns a digest of the data that a run is trained on: its examples, the lengths of their image files, and
/// the sizes to which images are resized.
pub(super) fn data_digest(dataset: &Dataset, sizes: &[Size]) -> String {
    let mut hasher = crc32fast::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for item in &dataset.items {
        add(&(item.sources.len() as u64).to_le_bytes());
        for image in item.sources.iter().chain([&item.target]) {
            add(image.as_os_str().as_encoded_bytes());
        }
        for text in [&item.instruction, &item.category, &item.split] {
            add(text.as_bytes());
        }
    }
    for image in dataset.images() {
        // An image that cannot be read is skipped with a message while the data is encoded.
        let length = std::fs::metadata(dataset.folder.join(image)).map_or(u64::MAX, |facts| facts.len());
        add(&length.to_le_bytes());
    }
    for size in sizes {
        add(&[size.width.to_le_bytes(), size.height.to_le_bytes()].concat());
    }
    format!("{} examples of digest {:08x}", dataset.items.len(), hasher.finalize())
}

/// The training batches, in the sampler's order.
pub(super) struct Batches {
    sampler: BatchSampler,
    shift: Shift,
    /// The targets, if they are the teacher's.
    made: Option<TeacherImages>,
}

impl Batches {
    pub(super) fn new(
        recipe: &Recipe,
        dataset: &EncodedDataset,
        shift: Shift,
        made: Option<TeacherImages>,
    ) -> Result<Self> {
        let data = &recipe.data;
        let buckets = dataset.by_bucket(|item| item.split == data.split);
        let mut sampler = BatchSampler::new(buckets, dataset.weights(&data.weights), data.batch, recipe.seed)?;
        if sampler.batch(0).is_none() {
            return Err(no_items(recipe));
        }
        Ok(Self { sampler, shift, made })
    }

    pub(super) fn next(&mut self, dataset: &EncodedDataset, recipe: &Recipe, index: u64) -> Result<NoisyBatch> {
        let prepared = step::training(
            dataset,
            &mut self.sampler,
            self.made.as_ref(),
            recipe,
            self.shift,
            index,
        )?;
        prepared.ok_or_else(|| Error::bug(format!("no batch {index} of a dataset that has items")))
    }
}
