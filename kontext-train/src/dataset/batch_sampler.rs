//! Sampling of batches: a shuffled sequence of items in each epoch, batched by bucket.

use std::collections::BTreeMap;

use crate::run::random::{Stream, generator, happens, shuffle};

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
    /// epoch, one of weight 0.5 in every second epoch on average; the default weight is 1.
    #[must_use]
    pub fn new(buckets: Vec<Vec<usize>>, weights: BTreeMap<usize, f64>, batch: usize, seed: u64) -> Self {
        Self {
            buckets,
            weights,
            batch: batch.max(1),
            seed,
            epoch: None,
            starts: vec![0],
        }
    }

    /// Returns the batch of a step: `batch` items of one bucket.
    ///
    /// Returns `None` if there are no items, or if all have weight zero.
    pub fn batch(&mut self, step: u64) -> Option<BatchItems> {
        let mut epoch = self.starts.partition_point(|&start| start <= step).saturating_sub(1) as u64;
        loop {
            let start = self.starts[epoch as usize];
            let parts = self.epoch(epoch);
            let count = parts.len() as u64;
            if count == 0 {
                return None;
            }
            if step < start + count {
                return parts.get((step - start) as usize).cloned();
            }
            if self.starts.len() as u64 == epoch + 1 {
                self.starts.push(start + count);
            }
            epoch += 1;
        }
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
                let weight = self.weights.get(&item).copied().unwrap_or(1.0);
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
            BatchSampler::new(vec![vec![0]], BTreeMap::from([(0, 0.0)]), 2, 0).batch(5),
            None
        );
    }
}
