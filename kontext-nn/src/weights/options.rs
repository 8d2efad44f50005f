//! Options of the linear layers that are built from weights.

use std::sync::{Arc, Mutex};

use kontext_formats::Quantize;
use tch::Device;

use super::Weights;
use crate::adapter::{AdapterSlots, Adapters};
use crate::prefetch::{Copies, Prefetch};

/// Form and place of the weights of linear layers, and their adapters.
#[derive(Clone, Default)]
pub(super) struct LinearOptions {
    pub(super) offload: Offload,
    pub(super) quantize: Option<Quantize>,
    /// If set, packed fp8 weights multiply in fp8.
    pub(super) fp8: bool,
    pub(super) prefetch: Option<Arc<Prefetch<Copies>>>,
    /// Adapters that are added to the weights as they are read.
    pub(super) fused: Option<Arc<Mutex<Adapters>>>,
    /// AdapterSlots in which the layers register.
    pub(super) slots: Option<AdapterSlots>,
}

/// Linear layers whose weights stay in their file and are read from the system's page cache for each multiplication.
/// They take no memory of the program's own.
///
/// On a CUDA device they are copied there for each multiplication, in their stored form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offload {
    /// No layers: all are read when the model is built.
    #[default]
    None,
    /// Layers that a model uses once a run ([`Weights::used_once`]), such as the transformer's modulation.
    Once,
    /// All layers.
    All,
}

impl Weights {
    /// Selects the linear layers whose weights stay in the file. Default: none.
    #[must_use]
    pub fn offload(self, offload: Offload) -> Self {
        self.with(|linear| linear.offload = offload)
    }

    /// The same cursor, for layers that a model uses once a run and not once a step. They are not quantised to fp8, nor
    /// multiplied in it: it would save no time.
    #[must_use]
    pub fn used_once(self) -> Self {
        self.with(|linear| {
            linear.fp8 = false;
            linear.quantize = linear.quantize.filter(|to| *to != Quantize::Fp8);
            if linear.offload == Offload::Once {
                linear.offload = Offload::All;
            }
        })
    }

    /// Quantises the weights of linear layers as they are read, if they are not quantised already and their columns are
    /// whole blocks; only one layer is held in full width at a time. Default: as they are stored.
    #[must_use]
    pub fn quantized(self, to: Option<Quantize>) -> Self {
        self.with(|linear| linear.quantize = to)
    }

    /// Multiplies the weights of linear layers in fp8 if they are stored or quantised so (e4m3, with one scale for all or
    /// one a row) and both their sizes are multiples of 16: the activations are rounded to e4m3 by row
    /// ([`Fp8Rows`](crate::Fp8Rows)). Default: they are unpacked to the kind of the activations.
    ///
    /// On CUDA that is for activations in bf16, on cards from compute capability 8.9 on. A CPU computes the same
    /// roundings in f32, which saves it no time. Inputs with a gradient are multiplied by unpacked weights.
    #[must_use]
    pub fn fp8_products(self, on: bool) -> Self {
        self.with(|linear| linear.fp8 = on)
    }

    /// Prefetches weights that are left in their file to a CUDA device while others are multiplied, in the order of the
    /// previous step.
    ///
    /// From the first multiplication on it takes a thread that reads the file, and
    /// [`PREFETCH_BUFFERS`](crate::PREFETCH_BUFFERS) times the largest weight in device memory and in pinned
    /// memory. Does nothing on other devices; if it fails, weights are copied on demand.
    #[must_use]
    pub fn prefetched(self) -> Self {
        let prefetch = self.new_prefetch();
        self.with(|linear| linear.prefetch = prefetch.map(Arc::new))
    }

    /// Prefetches as [`Weights::prefetched`] does, in the first step as well, for models whose layers are built in the
    /// order in which they are used.
    #[must_use]
    pub fn prefetched_in_order(self) -> Self {
        let prefetch = self.new_prefetch().map(Prefetch::in_order);
        self.with(|linear| linear.prefetch = prefetch.map(Arc::new))
    }

    /// The same cursor, for a weight that is never multiplied.
    pub(crate) fn not_prefetched(self) -> Self {
        self.with(|linear| linear.prefetch = None)
    }

    fn new_prefetch(&self) -> Option<Prefetch<Copies>> {
        match self.device {
            Device::Cuda(index) => Some(Prefetch::new(move |capacity| Copies::new(index, capacity))),
            _ => None,
        }
    }

    /// Adds adapters to the weights as they are read. A run then has no extra work, and the sum is rounded to the kind
    /// that the model computes in.
    #[must_use]
    pub fn fused(self, adapters: Adapters) -> Self {
        self.with(|linear| linear.fused = Some(Arc::new(Mutex::new(adapters))))
    }

    /// The same weights, and the adapter slots of the linear layers that are built from them.
    #[must_use]
    pub fn with_slots(&self) -> (Self, AdapterSlots) {
        let slots = AdapterSlots::default();
        let weights = self.clone().with(|linear| linear.slots = Some(slots.clone()));
        (weights, slots)
    }

    fn with(mut self, adapter: impl FnOnce(&mut LinearOptions)) -> Self {
        adapter(&mut self.linear);
        self
    }
}
