//! Sampling of batches: a shuffled sequence of items in each epoch, batched by bucket.

use std::collections::BTreeMap;

use kontext_core::range::within;
use kontext_core::{Error, Result};

use crate::bounds::BATCH;
use crate::run::random::{Stream, generator, happens, shuffle};

/// The weights of items, in words.
pub(crate) const WEIGHTS: &str = "0, or a number from 0.001 to 100";

/// Returns `true` for a possible weight of an item. A smaller one would leave nearly all epochs empty, a
/// larger one would make them endless.
pub(crate) fn is_weight(weight: f64) -> bool {
    weight == 0.0 || (0.001..=100.0).contains(&weight)
}

/// Items of one bucket: their images have the same sizes, so they can share a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchItems {
    /// Index of the bucket.
    pub bucket: usize,
    /// Indices of the items.
    pub items: Vec<usize>,
}

/// An endless sequence of batches over shuffled epochs, as a function of the seed and the step.
#[derive(Debug)]
pub struct BatchSampler {
    buckets: Vec<Vec<usize>>,
    weights: BTreeMap<usize, f64>,
    batch: usize,
    seed: u64,
    epoch: Option<(u64, Vec<BatchItems>)>,
    starts: Vec<u64>,
}

impl BatchSampler {
    /// Creates a sampler over `buckets`, the items of each bucket. An item of weight 2 occurs twice in an
    /// epoch, one of weight 0.5 in every second epoch on average; the default weight is 1. A batch has from 1
    /// to 4096 items.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another batch, or a weight that is neither 0 nor from 0.001 to 100.
    pub fn new(buckets: Vec<Vec<usize>>, weights: BTreeMap<usize, f64>, batch: usize, seed: u64) -> Result<Self> {
        if let Some(weight) = weights.values().find(|weight| !is_weight(**weight)) {
            return Err(Error::invalid("weight of an item", WEIGHTS, weight));
        }
        Ok(Self {
            buckets,
            weights,
            batch: within("batch", batch, BATCH)?,
            seed,
            epoch: None,
            starts: vec![0],
        })
    }

    /// Returns the batch of a step: `batch` items of one bucket.
    ///
    /// Returns `None` if there are no items, or if all have weight zero. The epochs up to the step are
    /// counted once, in a time that grows with their number.
    pub fn batch(&mut self, step: u64) -> Option<BatchItems> {
        if !self.buckets.iter().flatten().any(|item| self.weight(*item) > 0.0) {
            return None;
        }
        let mut epoch = self.starts.partition_point(|&start| start <= step).saturating_sub(1) as u64;
        loop {
            let start = self.starts[epoch as usize];
            let parts = self.epoch(epoch);
            // None, if no item of a weight below 1 was drawn.
            let count = parts.len() as u64;
            if step < start + count {
                return parts.get((step - start) as usize).cloned();
            }
            if self.starts.len() as u64 == epoch + 1 {
                self.starts.push(start + count);
            }
            epoch += 1;
        }
    }

    fn weight(&self, item: usize) -> f64 {
        self.weights.get(&item).copied().unwrap_or(1.0)
    }

    /// Returns the batches of an epoch.
    fn epoch(&mut self, epoch: u64) -> &[BatchItems] {
        if self.epoch.as_ref().is_none_or(|(made, _)| *made != epoch) {
            self.epoch = Some((epoch, self.make(epoch)));
        }
        self.epoch.as_ref().map_or(&[], |(_, parts)| parts)
    }

    fn make(&self, epoch: u64) -> Vec<BatchItems> {
        let mut rng = generator(self.seed, Stream::Order, epoch);
        let mut parts = Vec::new();
        for (bucket, items) in self.buckets.iter().enumerate() {
            let mut drawn = Vec::with_capacity(items.len());
            for &item in items {
                let weight = self.weight(item);
                let times = weight.floor() as usize + usize::from(happens(&mut rng, weight.fract()));
                drawn.extend(std::iter::repeat_n(item, times));
            }
            shuffle(&mut rng, &mut drawn);
            let last = drawn.chunks(self.batch).len().saturating_sub(1);
            for (index, chunk) in drawn.chunks(self.batch).enumerate() {
                let mut items = chunk.to_vec();
                if index == last {
                    // The last batch is padded with items from the bucket's start.
                    items.extend(drawn.iter().cycle().take(self.batch - chunk.len()));
                }
                parts.push(BatchItems { bucket, items });
            }
        }
        shuffle(&mut rng, &mut parts);
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(seed: u64) -> BatchSampler {
        BatchSampler::new(
            vec![(0..10).collect(), (10..13).collect()],
            BTreeMap::from([(10, 2.0), (11, 0.0)]),
            4,
            seed,
        )
        .unwrap()
    }

    #[test]
    fn an_epoch_shows_every_item_and_mixes_no_buckets() {
        let mut sampler = sampler(1);
        // 10 items make three batches; 3 items, with weights 2, 0 and 1, make one.
        let parts: Vec<BatchItems> = (0..4).map(|step| sampler.batch(step).unwrap()).collect();
        let mut seen: Vec<usize> = parts.iter().flat_map(|p| p.items.clone()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12]);
        assert!(
            parts
                .iter()
                .all(|p| p.items.len() == 4 && p.items.iter().all(|&i| (i >= 10) == (p.bucket == 1)))
        );
    }

    #[test]
    fn a_step_has_the_same_batch_whatever_was_asked_before() {
        let mut forward = sampler(1);
        let all: Vec<BatchItems> = (0..30).map(|step| forward.batch(step).unwrap()).collect();
        assert_eq!(sampler(1).batch(17).unwrap(), all[17]);
        assert_ne!(all[..4], all[4..8]);
        assert_ne!(sampler(2).batch(17).unwrap(), all[17]);
    }

    #[test]
    fn no_items_have_no_batch() {
        assert_eq!(
            BatchSampler::new(vec![vec![0]], BTreeMap::from([(0, 0.0)]), 2, 0)
                .unwrap()
                .batch(5),
            None
        );
    }

    #[test]
    fn an_epoch_in_which_nothing_was_drawn_is_passed_over() {
        let mut sampler = BatchSampler::new(vec![vec![7]], BTreeMap::from([(7, 0.01)]), 2, 0).unwrap();
        let batches: Vec<_> = (0..20).map(|step| sampler.batch(step).unwrap().items).collect();
        assert!(batches.iter().all(|items| items == &[7, 7]));
        assert!(sampler.starts.windows(2).any(|pair| pair[0] == pair[1]));
    }

    #[test]
    fn a_batch_or_weight_that_no_memory_holds_is_refused() {
        let new = |batch, weight| BatchSampler::new(vec![vec![0]], BTreeMap::from([(0, weight)]), batch, 0);
        for (batch, weight) in [
            (0, 1.0),
            (usize::MAX, 1.0),
            (1 << 30, 1.0),
            (2, -1.0),
            (2, f64::NAN),
            (2, f64::INFINITY),
            (2, 1e300),
            (2, 1e-300),
        ] {
            assert!(new(batch, weight).is_err(), "{batch} {weight}");
        }
        assert_eq!(new(2, 100.0).unwrap().batch(49).unwrap().items, [0, 0]);
    }
}
