//! A small least-recently-used cache.

/// A cache of limited cost that drops the least recently used value first.
///
/// Keys are compared by a condition and in sequence: a cache holds tens of values, each of which took long to
/// compute.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    capacity: u64,
    /// Ordered by use, the most recent last.
    entries: Vec<Entry<K, V>>,
}

#[derive(Debug)]
struct Entry<K, V> {
    key: K,
    value: V,
    cost: u64,
}

impl<K, V> Recent<K, V> {
    /// Creates an empty cache for values whose costs add up to at most `capacity`.
    pub(crate) fn new(capacity: u64) -> Self {
        Self {
            capacity,
            entries: Vec::new(),
        }
    }

    pub(crate) fn get(&mut self, is: impl Fn(&K) -> bool) -> Option<&V> {
        let index = self.entries.iter().position(|entry| is(&entry.key))?;
        self.entries[index..].rotate_left(1);
        self.entries.last().map(|entry| &entry.value)
    }

    /// Adds a value under a key not in the cache; evaluates neither if its cost exceeds the capacity.
    pub(crate) fn add(&mut self, cost: u64, key: impl FnOnce() -> K, value: impl FnOnce() -> V) {
        let Some(room) = self.capacity.checked_sub(cost) else {
            return;
        };
        let mut used = self.cost();
        let oldest = self.entries.iter().take_while(|entry| {
            let drops = used > room;
            used -= if drops { entry.cost } else { 0 };
            drops
        });
        let count = oldest.count();
        self.entries.drain(..count);
        self.entries.push(Entry {
            key: key(),
            value: value(),
            cost,
        });
    }

    /// Returns the cost of all values.
    pub(crate) fn cost(&self) -> u64 {
        self.entries.iter().map(|entry| entry.cost).sum()
    }

    /// Takes all values, and leaves the cache empty.
    pub(crate) fn take(&mut self) -> Vec<V> {
        std::mem::take(&mut self.entries)
            .into_iter()
            .map(|entry| entry.value)
            .collect()
    }

    /// Drops the values whose keys do not fulfil the condition.
    pub(crate) fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.entries.retain(|entry| keep(&entry.key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_value_makes_room() {
        let mut recent = Recent::new(2);
        recent.add(1, || 1, || "one");
        recent.add(1, || 2, || "two");
        assert_eq!(recent.get(|key| *key == 1), Some(&"one"));
        recent.add(1, || 3, || "three");
        assert_eq!(recent.get(|key| *key == 2), None);
        assert_eq!(recent.get(|key| *key == 1), Some(&"one"));
        assert_eq!(recent.get(|key| *key == 3), Some(&"three"));
    }

    #[test]
    fn a_costly_value_makes_several_others_leave_and_no_more() {
        let mut recent = Recent::new(10);
        for (key, cost) in [(1, 4), (2, 3), (3, 3)] {
            recent.add(cost, || key, || ());
        }
        recent.add(6, || 4, || ());
        let held = [1, 2, 3, 4].map(|wanted| recent.get(|key| *key == wanted).is_some());
        assert_eq!(held, [false, false, true, true]);
    }

    #[test]
    fn a_value_that_costs_more_than_the_capacity_is_not_added() {
        let mut recent = Recent::<u8, u8>::new(3);
        recent.add(3, || 1, || 1);
        recent.add(4, || unreachable!(), || unreachable!());
        assert_eq!(recent.get(|_| true), Some(&1));
    }
}
