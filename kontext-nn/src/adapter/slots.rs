//! Adapter slots of a model's linear layers, through which adapters are replaced while the weights stay
//! loaded.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::{Kind, Tensor};

use super::Adapters;
use super::device_adapter::{Placed, Window};
use super::linear_adapter::Change;
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
/// use kontext_nn::{Change, Linear};
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
/// adapters.add("qkv", Change::low_rank(ones(&[1, 6]), ones(&[8, 1]), 0.5, 0)?);
/// slots.set(&adapters)?;
/// assert_eq!(layer.forward(&x)?, &plain + 3.0); // 0.5 * (1 + 1 + 1 + 1 + 1 + 1)
/// slots.set(&Adapters::new())?;
/// assert_eq!(layer.forward(&x)?, plain);
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Slots(Arc<Mutex<BTreeMap<String, Slot>>>);

/// One layer's adapters.
#[derive(Clone)]
pub(crate) struct Slot(Arc<Mutex<Content>>);

/// State of a slot. In a `Mutex`, because tensors are `Send` but not `Sync`: readers take shallow copies.
struct Content {
    /// The layer's weight [out, in], which shares its memory with the layer.
    weight: Matrix,
    changes: Vec<Placed>,
}

/// Validated adapters, on the device but not yet active.
#[derive(Debug)]
#[must_use]
pub struct Prepared(Vec<(Slot, Vec<Placed>)>);

impl std::fmt::Debug for Slots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slots").field("layers", &lock(&self.0).len()).finish()
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot")
            .field("changes", &lock(&self.0).changes.len())
            .finish_non_exhaustive()
    }
}

impl Slots {
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

    /// Does the fallible part of [`Slots::set`]; [`Prepared::apply`] does the rest.
    ///
    /// # Errors
    /// The errors of [`Slots::set`].
    pub fn prepare(&self, adapters: &Adapters) -> Result<Prepared> {
        let slots = lock(&self.0);
        if let Some(name) = adapters.layers().find(|name| !slots.contains_key(*name)) {
            let nearest = nearest_name(name, slots.keys().map(String::as_str));
            let nearest = nearest.map(|n| format!(" (nearest: `{n}`)")).unwrap_or_default();
            return Err(Error::invalid(
                "layer of a change",
                format!("a linear layer of the model{nearest}"),
                name,
            ));
        }
        let prepared_slot = |(name, slot): (&String, &Slot)| Ok((slot.clone(), slot.place(adapters.of(name))?));
        Ok(Prepared(slots.iter().map(prepared_slot).collect::<Result<_>>()?))
    }

    pub(crate) fn register(&self, name: &str, weight: &Matrix) -> Slot {
        let content = Content {
            weight: weight.shallow_clone(),
            changes: Vec::new(),
        };
        let slot = Slot(Arc::new(Mutex::new(content)));
        lock(&self.0).insert(name.to_owned(), slot.clone());
        slot
    }
}

impl Prepared {
    /// Activates the adapters.
    pub fn apply(self) {
        for (slot, changes) in self.0 {
            lock(&slot.0).changes = changes;
        }
    }
}

impl Slot {
    fn place(&self, changes: &[Change]) -> Result<Vec<Placed>> {
        let content = lock(&self.0);
        let place = |change: &Change| {
            change.fits(&content.weight.size())?;
            change.place(content.weight.device(), || content.weight.dense(Kind::Float))
        };
        changes.iter().map(place).collect()
    }
}

/// A layer's view of its adapters: all of them, or those of some of its input features.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    slot: Option<Slot>,
    columns: Range<i64>,
    /// If set, the layer has the bias, and with it the bias adapters.
    bias: bool,
}

impl Changes {
    pub(crate) fn new(slot: Option<Slot>, input: i64) -> Self {
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
        let changes: Vec<Placed> = lock(&slot.0).changes.iter().map(Placed::shallow_clone).collect();
        let count = y.size().last().copied().unwrap_or_default();
        let window = Window {
            rows: start..start + count,
            columns: self.columns.clone(),
            bias: self.bias,
            product,
        };
        let plain = if changes.iter().any(Placed::scales_rows) {
            plain()?
        } else {
            None
        };
        changes
            .iter()
            .try_for_each(|change| change.add_to(y, x, &window, plain.as_ref()))
    }
}

/// Locks a mutex. A poisoned lock holds whole values.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
