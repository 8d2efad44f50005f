//! Parts with the adapters of a run, and a cache of prepared adapters.

use std::sync::{Mutex, MutexGuard};

use kontext_core::{Result, lock};
use kontext_dit::Dit;
use kontext_nn::{AdapterSet, AdapterSlots};
use kontext_text::TextEncoder;

use super::recent::Recent;
use crate::lora::{LoraKey, LoraSet};
use crate::placement::Lease;

/// Capacity for prepared sets of each kind of part, that of the active LoRAs among them. On a CUDA device a
/// set holds a copy of its LoRAs: 172 MB for all layers of the published transformer at rank 16 in bf16. On a
/// CPU sets share the LoRAs' tensors.
const PREPARED: u64 = 4;

/// A part whose layers have adapters.
pub(super) trait AdaptedPart {
    /// The kind, by which its adapters are cached.
    const KIND: PartKind;

    /// Returns the slots of its models.
    fn slots(&self) -> Vec<&AdapterSlots>;

    /// Returns `true` if a set was prepared for this part in memory, not for an earlier one that was unloaded.
    fn has_prepared(&self, adapters: &AdapterSet) -> bool {
        self.slots().into_iter().all(|slots| adapters.covers(slots))
    }
}

impl AdaptedPart for TextEncoder {
    const KIND: PartKind = PartKind::Text;

    fn slots(&self) -> Vec<&AdapterSlots> {
        vec![self.clip().slots(), self.t5().slots()]
    }
}

impl AdaptedPart for Dit {
    const KIND: PartKind = PartKind::Transformer;

    fn slots(&self) -> Vec<&AdapterSlots> {
        vec![self.slots()]
    }
}

/// A leased part with the adapters of a run. It is only reachable with them in use.
pub(super) struct Adapted<'a, T> {
    part: Lease<'a, T>,
    adapters: AdapterSet,
}

impl<'a, T: AdaptedPart> Adapted<'a, T> {
    /// Joins a lease and the adapters that `prepare` makes of these LoRAs. Adapters of a part that stays in
    /// memory are cached; those of a part loaded for the lease hold its weights, and are freed with it.
    pub(super) fn new(
        part: Lease<'a, T>,
        loras: &LoraSet,
        cache: &PreparedLoras,
        prepare: impl FnOnce(&LoraSet, &T) -> Result<AdapterSet>,
    ) -> Result<Self> {
        let adapters = match &part {
            Lease::Own(own) => prepare(loras, own)?,
            Lease::Given(_) | Lease::Shared(_) => {
                if let Some(adapters) = cache.find(&*part, loras) {
                    adapters
                } else {
                    let adapters = prepare(loras, &part)?;
                    cache.add(T::KIND, loras, &adapters);
                    adapters
                }
            }
        };
        Ok(Self { part, adapters })
    }

    /// Calls `f` with the part, whose layers use the adapters meanwhile.
    pub(super) fn with<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        self.adapters.scope(|| f(&self.part))
    }

    /// Frees the adapters, then ends the lease.
    pub(super) fn end(self) {
        let Self { part, adapters } = self;
        drop(adapters);
        part.end();
    }
}

/// The kinds of parts that have adapters.
#[derive(Debug, Clone, Copy)]
pub(super) enum PartKind {
    Text,
    Transformer,
}

/// The LoRAs of a pipeline, and the adapters of those used last.
#[derive(Debug)]
pub(super) struct PreparedLoras {
    /// Never held while adapters are prepared or a part runs.
    state: Mutex<State>,
    /// Held for a whole change, files and norms included. Runs do not take it.
    changing: Mutex<()>,
}

#[derive(Debug)]
struct State {
    loaded: LoraSet,
    text: Recent<LoraKey, AdapterSet>,
    transformer: Recent<LoraKey, AdapterSet>,
}

impl Default for PreparedLoras {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                loaded: LoraSet::default(),
                text: Recent::new(PREPARED),
                transformer: Recent::new(PREPARED),
            }),
            changing: Mutex::default(),
        }
    }
}

impl PreparedLoras {
    /// Returns the loaded LoRAs.
    pub(super) fn loaded(&self) -> LoraSet {
        lock(&self.state).loaded.clone()
    }

    /// Makes this thread the only one to change LoRAs until the guard is dropped.
    pub(super) fn begin_change(&self) -> MutexGuard<'_, ()> {
        lock(&self.changing)
    }

    /// Replaces the loaded LoRAs. Cached adapters of removed ones are dropped, and so are those of the
    /// previous active set: it seldom returns, and a copy for each value of a scale would fill the device's
    /// memory.
    pub(super) fn replace(&self, loaded: LoraSet) {
        let mut state = lock(&self.state);
        let previous = state.loaded.active();
        for kind in [PartKind::Text, PartKind::Transformer] {
            let previous = kind.key(&previous);
            state
                .sets(kind)
                .retain(|key| key.is_within(&loaded) && *key != previous);
        }
        state.loaded = loaded;
    }

    /// Drops all cached adapters, which hold the weights of the parts that they were prepared for.
    pub(super) fn forget_prepared(&self) {
        let mut state = lock(&self.state);
        let dropped = [PartKind::Text, PartKind::Transformer].map(|kind| state.sets(kind).take());
        drop(state);
        drop(dropped);
    }

    /// Returns the cached adapters of these LoRAs for a part.
    pub(super) fn find<T: AdaptedPart>(&self, part: &T, loras: &LoraSet) -> Option<AdapterSet> {
        let key = T::KIND.key(loras);
        let found = lock(&self.state).sets(T::KIND).get(|known| *known == key).cloned();
        found.filter(|adapters| part.has_prepared(adapters))
    }

    /// Adds adapters to the cache instead of those with the same key, unless a LoRA was removed meanwhile.
    pub(super) fn add(&self, kind: PartKind, loras: &LoraSet, adapters: &AdapterSet) {
        let (key, mut state) = (kind.key(loras), lock(&self.state));
        if key.is_within(&state.loaded) {
            state.sets(kind).retain(|known| *known != key);
            state.sets(kind).add(1, || key, || adapters.clone());
        }
    }
}

impl PartKind {
    /// Returns the key of the LoRAs of this kind of part.
    pub(super) fn key(self, loras: &LoraSet) -> LoraKey {
        match self {
            Self::Text => loras.text_key(),
            Self::Transformer => loras.key(),
        }
    }
}

impl State {
    fn sets(&mut self, kind: PartKind) -> &mut Recent<LoraKey, AdapterSet> {
        match kind {
            PartKind::Text => &mut self.text,
            PartKind::Transformer => &mut self.transformer,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kontext_core::{Device, Kind, Tensor};
    use kontext_lora::{Lora, LoraLayer, save_lora};

    use super::*;
    use crate::lora::{LoadedLora, LoraUse};

    /// A part without layers.
    struct NoLayers;

    impl AdaptedPart for NoLayers {
        const KIND: PartKind = PartKind::Transformer;

        fn slots(&self) -> Vec<&AdapterSlots> {
            Vec::new()
        }
    }

    /// Returns a LoRA of one layer.
    fn lora(name: &str) -> LoadedLora {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lora.safetensors");
        let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
        let layer = LoraLayer {
            module: "transformer_blocks.0.attn.to_q".to_owned(),
            down: ones(&[2, 4]),
            up: ones(&[4, 2]),
            magnitude: None,
        };
        save_lora(&path, &[layer], BTreeMap::new()).unwrap();
        LoadedLora::open(LoraUse::of(Lora::open(&path).unwrap()).named(name)).unwrap()
    }

    fn set(loras: &[&LoadedLora]) -> LoraSet {
        let mut set = LoraSet::default();
        for lora in loras {
            set.add((*lora).clone()).unwrap();
        }
        set
    }

    /// Returns `true` if adapters of these LoRAs are in the cache; adds them otherwise.
    fn cached(cache: &PreparedLoras, loras: &LoraSet) -> bool {
        let found = cache.find(&NoLayers, loras).is_some();
        if !found {
            cache.add(PartKind::Transformer, loras, &AdapterSet::default());
        }
        found
    }

    #[test]
    fn adapters_are_found_by_identity_and_scale() {
        let (a, b) = (lora("a"), lora("b"));
        let cache = PreparedLoras::default();
        cache.replace(set(&[&a, &b]));
        for loras in [set(&[&a]), set(&[&a, &b]), set(&[&b, &a])] {
            assert_eq!([cached(&cache, &loras), cached(&cache, &loras)], [false, true]);
        }
        let mut half = set(&[&a]);
        half.set_scale("a", 0.5).unwrap();
        assert!(!cached(&cache, &half));
        assert!(!cached(&cache, &set(&[&lora("a")])), "another LoRA of the same name");
    }

    #[test]
    fn adapters_of_a_removed_lora_are_dropped_and_not_added_again() {
        let (a, b) = (lora("a"), lora("b"));
        let cache = PreparedLoras::default();
        cache.replace(set(&[&a, &b]));
        cached(&cache, &set(&[&a]));
        cached(&cache, &set(&[&b]));
        cache.replace(set(&[&a]));
        assert!(cached(&cache, &set(&[&a])));
        // A run that began before goes on with it, without caching.
        assert!(!cached(&cache, &set(&[&b])));
        assert!(!cached(&cache, &set(&[&b])));
    }

    #[test]
    fn adapters_of_the_last_active_set_are_dropped_for_the_next() {
        let a = lora("a");
        let mut next = set(&[&a]);
        next.set_scale("a", 0.5).unwrap();
        let cache = PreparedLoras::default();
        cache.replace(set(&[&a]));
        assert!(!cached(&cache, &set(&[&a])));
        cache.replace(next);
        assert!(!cached(&cache, &set(&[&a])));
    }
}
