//! Adapter slots of a model's linear layers, through which adapters are replaced while the weights stay
//! loaded.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::{Kind, Tensor};

use super::Adapters;
use super::device_adapter::{DeviceAdapter, Window};
use super::linear_adapter::LinearAdapter;
use crate::matrix::Matrix;
use kontext_core::{Error, Result};
use kontext_formats::nearest_name;

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

/// One layer's adapters.
#[derive(Clone)]
pub(crate) struct AdapterSlot(Arc<Mutex<Content>>);

/// State of a slot. In a `Mutex`, because tensors are `Send` but not `Sync`: readers take shallow copies.
struct Content {
    /// The layer's weight [out, in], which shares its memory with the layer.
    weight: Matrix,
    adapters: Vec<DeviceAdapter>,
}

/// Validated adapters, on the device but not yet active.
#[derive(Debug)]
#[must_use]
pub struct PendingAdapters(Vec<(AdapterSlot, Vec<DeviceAdapter>)>);

impl std::fmt::Debug for AdapterSlots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdapterSlots")
            .field("layers", &lock(&self.0).len())
            .finish()
    }
}

impl std::fmt::Debug for AdapterSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdapterSlot")
            .field("adapters", &lock(&self.0).adapters.len())
            .finish_non_exhaustive()
    }
}

impl AdapterSlots {
    /// Returns the names of the layers, sorted.
    #[must_use]
    pub fn layers(&self) -> Vec<String> {
        lock(&self.0).keys().cloned().collect()
    }

    /// Replaces all adapters with these; a layer without one is then unmodified.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a layer outside the model, [`Error::Shape`] for an adapter of a layer
    /// of another width. The active adapters are then unchanged.
    pub fn set(&self, adapters: &Adapters) -> Result<()> {
        self.prepare(adapters)?.apply();
        Ok(())
    }

    /// Does the fallible part of [`AdapterSlots::set`]; [`PendingAdapters::apply`] does the rest.
    ///
    /// # Errors
    /// The errors of [`AdapterSlots::set`].
    pub fn prepare(&self, adapters: &Adapters) -> Result<PendingAdapters> {
        let slots = lock(&self.0);
        if let Some(name) = adapters.layers().find(|name| !slots.contains_key(*name)) {
            let nearest = nearest_name(name, slots.keys().map(String::as_str));
            let nearest = nearest.map(|n| format!(" (nearest: `{n}`)")).unwrap_or_default();
            return Err(Error::invalid(
                "layer of an adapter",
                format!("a linear layer of the model{nearest}"),
                name,
            ));
        }
        let prepared_slot = |(name, slot): (&String, &AdapterSlot)| Ok((slot.clone(), slot.place(adapters.of(name))?));
        Ok(PendingAdapters(slots.iter().map(prepared_slot).collect::<Result<_>>()?))
    }

    pub(crate) fn register(&self, name: &str, weight: &Matrix) -> AdapterSlot {
        let content = Content {
            weight: weight.shallow_clone(),
            adapters: Vec::new(),
        };
        let slot = AdapterSlot(Arc::new(Mutex::new(content)));
        lock(&self.0).insert(name.to_owned(), slot.clone());
        slot
    }
}

impl PendingAdapters {
    /// Activates the adapters.
    pub fn apply(self) {
        for (slot, adapters) in self.0 {
            lock(&slot.0).adapters = adapters;
        }
    }
}

impl AdapterSlot {
    fn place(&self, adapters: &[LinearAdapter]) -> Result<Vec<DeviceAdapter>> {
        let content = lock(&self.0);
        let place = |adapter: &LinearAdapter| {
            adapter.fits(&content.weight.size())?;
            adapter.place(content.weight.device(), || content.weight.dense(Kind::Float))
        };
        adapters.iter().map(place).collect()
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

    /// Adds all adapters to `y`, the output features from `start` on for the input `x`.
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
        let adapters: Vec<DeviceAdapter> = lock(&slot.0)
            .adapters
            .iter()
            .map(DeviceAdapter::shallow_clone)
            .collect();
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

/// Locks a mutex. A poisoned lock holds whole values.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
