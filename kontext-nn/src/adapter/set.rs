//! Adapters for the forward passes of one thread.
//!
//! Adapters in a model's slots apply to all threads, so two runs with different LoRAs could not share the
//! model. A set is a value instead, and a thread uses it for a closure. The set in use is thread-local, as
//! libtorch's no-grad mode is: layers stay free of a further argument that every block would have to hand on,
//! and a second view of the model, with slots of its own, would need a copy of each module. A forward pass
//! calls its layers on its own thread only (libtorch's and rayon's threads work within one operation, the
//! prefetch thread copies bytes), so a layer sees the set of its caller.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use kontext_core::lock;

use super::device_adapter::DeviceAdapter;
use super::slot::{AdapterSlot, copies};
use super::slots::AdapterSlots;
use crate::scope::scope;

thread_local! {
    /// Sets in use, the innermost last.
    static IN_USE: RefCell<Vec<AdapterSet>> = const { RefCell::new(Vec::new()) };
}

/// Validated adapters of a model's layers, on its device. A clone shares them.
///
/// It holds the weights of its layers, too, so it should not outlive a model that is to be freed.
///
/// # Example
/// ```
/// use kontext_core::{Device, Kind, Tensor};
/// use kontext_nn::{Adapters, Linear, LinearAdapter, Weights};
/// let (weights, slots) = Weights::synthetic(1).with_slots();
/// let layer = Linear::new(&weights.at("qkv"), 6, 8)?;
/// let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
/// let mut adapters = Adapters::new();
/// adapters.add("qkv", LinearAdapter::low_rank(ones(&[1, 6]), ones(&[8, 1]), 0.5, 0)?);
/// let set = slots.prepare(&adapters)?;
///
/// let (x, plain) = (ones(&[1, 6]), layer.forward(&ones(&[1, 6]))?);
/// assert_eq!(set.scope(|| layer.forward(&x))?, &plain + 3.0);
/// assert_eq!(layer.forward(&x)?, plain);
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Clone, Default)]
#[must_use]
pub struct AdapterSet(Arc<HashMap<usize, Arc<LayerAdapters>>>);

/// The adapters of one layer. In a `Mutex`, because tensors are `Send` but not `Sync`.
struct LayerAdapters {
    /// Keeps the slot's address, the key, from being given to another slot.
    slot: AdapterSlot,
    adapters: Mutex<Vec<DeviceAdapter>>,
}

impl AdapterSet {
    pub(super) fn new(layers: impl IntoIterator<Item = (AdapterSlot, Vec<DeviceAdapter>)>) -> Self {
        let entry = |(slot, adapters): (AdapterSlot, _)| {
            let adapters = Mutex::new(adapters);
            (slot.address(), Arc::new(LayerAdapters { slot, adapters }))
        };
        Self(Arc::new(layers.into_iter().map(entry).collect()))
    }

    /// Joins the sets of several models to one.
    pub fn join(sets: impl IntoIterator<Item = Self>) -> Self {
        let layers = sets.into_iter().flat_map(|set| {
            let layers = set.0.iter().map(|(key, layer)| (*key, Arc::clone(layer)));
            layers.collect::<Vec<_>>()
        });
        Self(Arc::new(layers.collect()))
    }

    /// Calls `f`. The layers of this set use its adapters meanwhile, instead of those of their slots, on this
    /// thread only; no lock is held. Nested scopes: the innermost set that has the layer counts.
    pub fn scope<T>(&self, f: impl FnOnce() -> T) -> T {
        scope(&IN_USE, self.clone(), f)
    }

    /// Returns `true` if the set was prepared for the layers of these slots, not for those of another model or
    /// of an earlier load of the same one.
    #[must_use]
    pub fn covers(&self, slots: &AdapterSlots) -> bool {
        slots.all(|slot| self.0.contains_key(&slot.address()))
    }

    /// Makes the adapters those of their slots, for all threads.
    pub(super) fn apply(&self) {
        for layer in self.0.values() {
            layer.slot.set(copies(&lock(&layer.adapters)));
        }
    }

    fn of(&self, slot: &AdapterSlot) -> Option<Vec<DeviceAdapter>> {
        let layer = self.0.get(&slot.address())?;
        Some(copies(&lock(&layer.adapters)))
    }
}

impl fmt::Debug for AdapterSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterSet").field("layers", &self.0.len()).finish()
    }
}

/// Returns a slot's adapters in the innermost set of this thread that has the slot.
pub(super) fn in_scope(slot: &AdapterSlot) -> Option<Vec<DeviceAdapter>> {
    IN_USE.with_borrow(|sets| sets.iter().rev().find_map(|set| set.of(slot)))
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use kontext_core::{Device, Kind, Tensor};

    use super::*;
    use crate::adapter::{AdapterSlots, Adapters, LinearAdapter};
    use crate::{Linear, Weights};

    fn layer() -> (Linear, AdapterSlots) {
        let (weights, slots) = Weights::synthetic(1).with_slots();
        (Linear::without_bias(&weights.at("a"), 3, 2).unwrap(), slots)
    }

    fn bias(value: f64) -> Adapters {
        let mut adapters = Adapters::new();
        let bias = Tensor::full([2], value, (Kind::Float, Device::Cpu));
        adapters.add("a", LinearAdapter::of_bias(bias, 0).unwrap());
        adapters
    }

    /// Returns the layer's output for zeros: the sum of the biases of its adapters.
    fn added(layer: &Linear) -> f64 {
        let zeros = Tensor::zeros([1, 3], (Kind::Float, Device::Cpu));
        layer.forward(&zeros).unwrap().double_value(&[0, 0])
    }

    #[test]
    fn the_innermost_set_counts_and_then_the_slots_again() {
        let (layer, slots) = layer();
        slots.set(&bias(1.0)).unwrap();
        let [two, none] = [bias(2.0), Adapters::new()].map(|adapters| slots.prepare(&adapters).unwrap());
        let seen = two.scope(|| [added(&layer), none.scope(|| added(&layer)), added(&layer)]);
        assert_eq!((seen, added(&layer)), ([2.0, 0.0, 2.0], 1.0));
    }

    #[test]
    fn replacing_the_slots_adapters_leaves_a_scope_as_it_is() {
        let (layer, slots) = layer();
        let two = slots.prepare(&bias(2.0)).unwrap();
        let seen = two.scope(|| {
            slots.set(&bias(1.0)).unwrap();
            added(&layer)
        });
        assert_eq!((seen, added(&layer)), (2.0, 1.0));
    }

    #[test]
    fn a_joined_set_serves_both_models() {
        let (models, values) = ([layer(), layer()], [2.0, 3.0]);
        let sets = models
            .iter()
            .zip(values)
            .map(|((_, slots), value)| slots.prepare(&bias(value)).unwrap());
        let both = AdapterSet::join(sets.collect::<Vec<_>>());
        assert_eq!(both.scope(|| models.each_ref().map(|(layer, _)| added(layer))), values);
    }

    #[test]
    fn a_panic_ends_the_scope() {
        let (layer, slots) = layer();
        let two = slots.prepare(&bias(2.0)).unwrap();
        let panicked = catch_unwind(AssertUnwindSafe(|| two.scope(|| panic!("in the scope"))));
        assert!(panicked.is_err());
        assert_eq!(added(&layer), 0.0);
    }

    #[test]
    fn two_threads_use_two_sets_of_one_model_at_the_same_time() {
        let (layer, slots) = layer();
        let [two, three] = [2.0, 3.0].map(|value| slots.prepare(&bias(value)).unwrap());
        let layer = &Mutex::new(layer); // A `Linear` is not `Sync`.
        let (to_other, from_first) = channel();
        let (to_first, from_other) = channel();
        let wait = Duration::from_secs(60);
        std::thread::scope(|threads| {
            let other = threads.spawn(move || {
                three.scope(|| {
                    from_first.recv_timeout(wait).unwrap();
                    let seen = added(&lock(layer));
                    to_first.send(()).unwrap();
                    seen
                })
            });
            let seen = two.scope(|| {
                to_other.send(()).unwrap();
                from_other.recv_timeout(wait).unwrap();
                added(&lock(layer))
            });
            assert_eq!((seen, other.join().unwrap()), (2.0, 3.0));
        });
    }
}
