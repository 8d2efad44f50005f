//! Adapter slots of a model's linear layers, through which adapters are replaced while the weights stay
//! loaded.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use kontext_core::{Error, Result, lock};
use kontext_formats::nearest_name;
use tch::Tensor;

use super::Adapters;
use super::device_adapter::{DeviceAdapter, Window};
use super::set::{self, AdapterSet};
use super::slot::AdapterSlot;
use crate::matrix::Matrix;

/// The linear layers of one model by name, whose adapters can be set, replaced and removed without reading
/// its weights again. All clones share the same layers.
///
/// Layers register themselves when they are built from weights with slots ([`crate::Weights::with_slots`]).
///
/// # Example
/// ```
/// use kontext_nn::{LinearAdapter, Linear};
/// use kontext_nn::Adapters;
/// use kontext_core::{Device, Kind, Tensor};
/// use kontext_nn::Weights;
/// let (weights, slots) = Weights::synthetic(1).with_slots();
/// let layer = Linear::new(&weights.at("qkv"), 6, 8)?;
/// let x = Tensor::ones([1, 6], (Kind::Float, Device::Cpu));
/// let plain = layer.forward(&x)?;
///
/// let mut adapters = Adapters::new();
/// let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
/// adapters.add("qkv", LinearAdapter::low_rank(ones(&[1, 6]), ones(&[8, 1]), 0.5, 0)?);
/// slots.set(&adapters)?;
/// assert_eq!(layer.forward(&x)?, &plain + 3.0); // 0.5 * (1 + 1 + 1 + 1 + 1 + 1)
/// slots.set(&Adapters::new())?;
/// assert_eq!(layer.forward(&x)?, plain);
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct AdapterSlots(Arc<Mutex<BTreeMap<String, AdapterSlot>>>);

impl std::fmt::Debug for AdapterSlots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdapterSlots")
            .field("layers", &lock(&self.0).len())
            .finish()
    }
}

impl AdapterSlots {
    /// Returns the names of the layers, sorted.
    #[must_use]
    pub fn layers(&self) -> Vec<String> {
        lock(&self.0).keys().cloned().collect()
    }

    /// Returns the sizes of the layers' weights, [out, in], by name.
    #[must_use]
    pub fn sizes(&self) -> BTreeMap<String, [i64; 2]> {
        let slots = lock(&self.0);
        slots.iter().map(|(name, slot)| (name.clone(), slot.size())).collect()
    }

    /// Replaces all adapters with these, for all threads; a layer without one is then unmodified.
    ///
    /// # Errors
    /// Those of [`AdapterSlots::check`]. The active adapters are then unchanged.
    pub fn set(&self, adapters: &Adapters) -> Result<()> {
        self.prepare(adapters)?.apply();
        Ok(())
    }

    /// Validates adapters and moves them to the layers' device, without making them active: a set of them can
    /// be used by one thread ([`AdapterSet::scope`]). A layer without adapters is unmodified under the set.
    ///
    /// # Errors
    /// Those of [`AdapterSlots::check`].
    pub fn prepare(&self, adapters: &Adapters) -> Result<AdapterSet> {
        self.check(adapters)?;
        // A copy, so that the lock is not held while norms are computed.
        let slots = lock(&self.0).clone();
        let placed = |(name, slot): (String, AdapterSlot)| {
            let adapters = slot.place(adapters.of(&name))?;
            Ok((slot, adapters))
        };
        Ok(AdapterSet::new(
            slots.into_iter().map(placed).collect::<Result<Vec<_>>>()?,
        ))
    }

    /// Checks that adapters fit the model. Moves and computes nothing.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a layer outside the model, [`Error::Shape`] for an adapter of a layer
    /// of another width.
    pub fn check(&self, adapters: &Adapters) -> Result<()> {
        let slots = lock(&self.0);
        adapters.layers().try_for_each(|name| {
            let outside = || {
                let nearest = nearest_name(name, slots.keys().map(String::as_str));
                let nearest = nearest.map(|n| format!(" (nearest: `{n}`)")).unwrap_or_default();
                let expected = format!("a linear layer of the model{nearest}");
                Error::invalid("layer of an adapter", expected, name)
            };
            slots.get(name).ok_or_else(outside)?.check(adapters.of(name))
        })
    }

    /// Returns `true` if the condition holds for all slots.
    pub(super) fn all(&self, condition: impl Fn(&AdapterSlot) -> bool) -> bool {
        lock(&self.0).values().all(condition)
    }

    pub(crate) fn register(&self, name: &str, weight: &Matrix) -> AdapterSlot {
        let slot = AdapterSlot::new(weight);
        lock(&self.0).insert(name.to_owned(), slot.clone());
        slot
    }
}

/// A layer's view of its adapters: all of them, or those of some of its input features.
#[derive(Debug, Default)]
pub(crate) struct ActiveAdapters {
    slot: Option<AdapterSlot>,
    columns: Range<i64>,
    /// If set, the layer has the bias, and with it the bias adapters.
    bias: bool,
}

impl ActiveAdapters {
    pub(crate) fn new(slot: Option<AdapterSlot>, input: i64) -> Self {
        Self {
            slot,
            columns: 0..input,
            bias: true,
        }
    }

    /// Returns the part for the input features `start..start + count`.
    pub(crate) fn of_columns(&self, start: i64, count: i64, bias: bool) -> Self {
        let start = self.columns.start + start;
        Self {
            slot: self.slot.clone(),
            columns: start..start + count,
            bias,
        }
    }

    /// Returns `true` if this thread uses adapters of the layer, and one of them makes `condition` true.
    fn any(&self, condition: impl Fn(&DeviceAdapter) -> bool) -> bool {
        let adapters = self
            .slot
            .as_ref()
            .map(|slot| set::in_scope(slot).unwrap_or_else(|| slot.get()));
        adapters.is_some_and(|adapters| adapters.iter().any(condition))
    }

    /// Returns `true` if this thread uses no adapter of the layer.
    pub(crate) fn is_empty(&self) -> bool {
        !self.any(|_| true)
    }

    /// Returns `true` if a backward pass has to reach an adapter that this thread uses.
    pub(crate) fn requires_grad(&self) -> bool {
        self.any(DeviceAdapter::requires_grad)
    }

    /// Adds all adapters to `y`, the output features from `start` on for the input `x`: those of the set that
    /// this thread uses, otherwise the slot's.
    ///
    /// `product` multiplies by those rows of the weight; `plain` returns the product with `x`, if the layer
    /// has it.
    pub(crate) fn add_to(
        &self,
        y: &Tensor,
        x: &Tensor,
        start: i64,
        product: &dyn Fn(&Tensor) -> Result<Tensor>,
        plain: impl FnOnce() -> Result<Option<Tensor>>,
    ) -> Result<()> {
        let Some(slot) = &self.slot else { return Ok(()) };
        let adapters = set::in_scope(slot).unwrap_or_else(|| slot.get());
        let count = y.size().last().copied().unwrap_or_default();
        let window = Window {
            rows: start..start + count,
            columns: self.columns.clone(),
            bias: self.bias,
            product,
        };
        let plain = if adapters.iter().any(DeviceAdapter::scales_rows) {
            plain()?
        } else {
            None
        };
        adapters
            .iter()
            .try_for_each(|adapter| adapter.add_to(y, x, &window, plain.as_ref()))
    }
}
