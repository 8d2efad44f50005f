//! Where a run's batches come from.

use kontext_core::{Device, Error, Kind, Result};
use kontext_sampler::{References, Shift, Size};
use kontext_vae::Autoencoder;

use crate::base::Base;
use crate::dataset::{Dataset, Encoding, Fill, Order, Store, StoreOptions};
use crate::event::Observer;
use crate::step::{self, Prepared};
use crate::{Recipe, TrainEvent};

/// Encodes the dataset. The text encoders are dropped again: they are larger than the rest.
pub(super) fn open_store(
    recipe: &Recipe,
    base: &Base,
    vae: &Autoencoder,
    device: Device,
    kind: Kind,
    observe: Observer<'_>,
) -> Result<Store> {
    let data = &recipe.data;
    let mut dataset = Dataset::open(&data.folder)?;
    dataset
        .items
        .retain(|item| item.split == data.split || item.split == data.validation);
    let sizes = match &data.sizes {
        Some(sizes) => sizes.iter().map(|[width, height]| Size::new(*width, *height)).collect(),
        None => base.sizes(),
    };
    let cache = data.cache.clone().unwrap_or_else(|| recipe.out.join("cache"));
    let text = base.text(kind, device)?;
    let encoding = Encoding {
        cache,
        sizes,
        kind,
        device,
    };
    let options = StoreOptions {
        device,
        kind,
        references: References::Offset,
    };
    let fill = |fill: Fill| observe(TrainEvent::Encoding(fill));
    let store = Store::new(dataset, vae, &text, &encoding, options, fill)?;
    for skipped in store.skipped() {
        if observe(TrainEvent::Skipped(skipped)).is_break() {
            return Err(Error::Cancelled {
                done: 0,
                total: recipe.steps as usize,
            });
        }
    }
    Ok(store)
}

/// Training batches in order.
pub(super) struct Source {
    order: Order,
    shift: Shift,
}

impl Source {
    pub(super) fn new(recipe: &Recipe, store: &Store, shift: Shift) -> Result<Self> {
        let data = &recipe.data;
        let buckets = store.by_bucket(|item| item.split == data.split);
        let mut order = Order::new(buckets, store.weights(&data.weights), data.batch, recipe.seed);
        if order.batch(0).is_none() {
            let reason = format!(
                "no item of split `{}` has a weight above 0; name another split",
                data.split
            );
            return Err(Error::config(&data.folder, reason));
        }
        Ok(Self { order, shift })
    }

    pub(super) fn next(&mut self, store: &Store, recipe: &Recipe, index: u64) -> Result<Prepared> {
        let prepared = step::training(
            store,
            &mut self.order,
            &recipe.objective,
            self.shift,
            recipe.seed,
            index,
        )?;
        prepared.ok_or_else(|| Error::invalid("training items", "at least one", 0))
    }
}
