//! The order in which training meets the items.

use std::collections::BTreeMap;

use crate::random::{Stream, generator, happens, shuffle};

/// One bucket's part of the data: items whose pictures have the same sizes, which may share a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The bucket's number.
    pub bucket: usize,
    /// Indices of items.
    pub items: Vec<usize>,
}

/// Batches of an endless sequence of epochs: a function of the seed and the step.
#[derive(Debug)]
pub struct Order {
    buckets: Vec<Vec<usize>>,
    weights: BTreeMap<usize, f64>,
    batch: usize,
    seed: u64,
    epoch: Option<(u64, Vec<Part>)>,
    starts: Vec<u64>,
}

impl Order {
    /// `buckets` holds the items of each bucket. An item of weight 2 comes twice an epoch, one of
    /// weight 0.5 in every second epoch on average; items without a weight come once.
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

    /// The batch of a step: items of one bucket, `batch` of them.
    ///
    /// `None` where there are no items (or all have weight zero).
    pub fn batch(&mut self, step: u64) -> Option<Part> {
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

    /// The batches of an epoch.
    fn epoch(&mut self, epoch: u64) -> &[Part] {
        if self.epoch.as_ref().is_none_or(|(made, _)| *made != epoch) {
            self.epoch = Some((epoch, self.make(epoch)));
        }
        self.epoch.as_ref().map_or(&[], |(_, parts)| parts)
    }

    fn make(&self, epoch: u64) -> Vec<Part> {
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
                    // The last batch is filled up from the bucket's beginning.
                    items.extend(drawn.iter().cycle().take(self.batch - chunk.len()));
                }
                parts.push(Part { bucket, items });
            }
        }
        shuffle(&mut rng, &mut parts);
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(seed: u64) -> Order {
        Order::new(
            vec![(0..10).collect(), (10..13).collect()],
            BTreeMap::from([(10, 2.0), (11, 0.0)]),
            4,
            seed,
        )
    }

    #[test]
    fn an_epoch_shows_every_item_and_mixes_no_buckets() {
        let mut order = order(1);
        // 10 items make three batches, and 3 with one twice and one never make one.
        let parts: Vec<Part> = (0..4).map(|step| order.batch(step).unwrap()).collect();
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
        let mut forward = order(1);
        let all: Vec<Part> = (0..30).map(|step| forward.batch(step).unwrap()).collect();
        assert_eq!(order(1).batch(17).unwrap(), all[17]);
        assert_ne!(all[..4], all[4..8]);
        assert_ne!(order(2).batch(17).unwrap(), all[17]);
    }

    #[test]
    fn no_items_have_no_batch() {
        assert_eq!(
            Order::new(vec![vec![0]], BTreeMap::from([(0, 0.0)]), 2, 0).batch(5),
            None
        );
    }
}
