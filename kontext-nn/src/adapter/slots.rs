//! Where the changes of a model's linear layers lie, so that they can be replaced while the weights stay.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::{Kind, Tensor};

use super::Adapters;
use super::device_adapter::{Placed, Window};
use super::linear_adapter::Change;
use crate::matrix::Matrix;
use kontext_core::formats::nearest_name;
use kontext_core::{Error, Result};

/// The linear layers of one model by name: changes can be set, replaced and removed without its weights being read
/// again. All clones are the same layers.
///
/// Layers register themselves as they are built from weights that bring it along ([`crate::Weights::with_slots`]).
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

/// One layer's changes.
#[derive(Clone)]
pub(crate) struct Slot(Arc<Mutex<Content>>);

/// In a `Mutex`, because tensors are `Send` alone: readers take shallow copies.
struct Content {
    /// The layer's weight [out, in]; it shares its memory with the layer.
    weight: Matrix,
    changes: Vec<Placed>,
}

/// Changes that were checked and brought to the device, and are not in force yet.
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
    /// The names of the layers, sorted.
    #[must_use]
    pub fn layers(&self) -> Vec<String> {
        lock(&self.0).keys().cloned().collect()
    }

    /// Puts these changes in the place of all that were set before; a layer that is not named is unchanged again.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a layer that the model does not have, [`Error::Shape`] for a change of another
    /// layer's width. Nothing is changed then.
    pub fn set(&self, adapters: &Adapters) -> Result<()> {
        self.prepare(adapters)?.apply();
        Ok(())
    }

    /// Does everything of [`Slots::set`] that can fail; [`Prepared::apply`] does the rest.
    ///
    /// # Errors
    /// Those of [`Slots::set`].
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
        let of = |(name, slot): (&String, &Slot)| Ok((slot.clone(), slot.place(adapters.of(name))?));
        Ok(Prepared(slots.iter().map(of).collect::<Result<_>>()?))
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
    /// Puts the changes in force.
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

/// A layer's view of its changes: all of them, or those of some of its input features.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    slot: Option<Slot>,
    columns: Range<i64>,
    /// Whether the layer has the bias, and with it its changes.
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

    /// The part that meets the input features `start..start + count`.
    pub(crate) fn of_columns(&self, start: i64, count: i64, bias: bool) -> Self {
        let start = self.columns.start + start;
        Self {
            slot: self.slot.clone(),
            columns: start..start + count,
            bias,
        }
    }

    /// Adds all changes to `y`, the output features from `start` on for the input `x`.
    ///
    /// `product` multiplies those rows of the weight; `plain` is the product with `x`, where the layer has it.
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

/// A poisoned lock holds whole values.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
