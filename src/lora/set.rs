//! LoRAs in order: those of a pipeline, and those of one run.

use std::collections::BTreeMap;
use std::ptr;
use std::sync::{Arc, Weak};

use kontext_core::{Error, Result};
use kontext_dit::{Dit, DitConfig};
use kontext_lora::{LoraDefaults, LoraTarget};
use kontext_nn::{AdapterSet, Adapters};
use kontext_text::TextEncoder;

use super::{LoadedLora, LoraUse, OpenLora};
use crate::LoraScale;
use crate::frozen::Frozen;

/// LoRAs with their scales, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct LoraSet(Vec<LoadedLora>);

/// Cache key of adapters, or of a text encoded with them: the LoRAs, by identity, and their scales.
///
/// It holds no LoRA in memory. A weak reference keeps the address from being reused, so a LoRA that is loaded
/// again under the same name has another key.
#[derive(Debug, Clone)]
pub(crate) struct LoraKey(Vec<(Weak<Frozen<OpenLora>>, f64)>);

impl LoraSet {
    /// Opens the files.
    pub(crate) fn open(uses: impl IntoIterator<Item = LoraUse>) -> Result<Self> {
        let mut set = Self::default();
        for usage in uses {
            set.add(LoadedLora::open(usage)?)?;
        }
        Ok(set)
    }

    pub(crate) fn add(&mut self, lora: LoadedLora) -> Result<()> {
        self.push(lora, "a name for each (`LoraUse::named`)")
    }

    fn push(&mut self, lora: LoadedLora, expected: &str) -> Result<()> {
        if self.0.iter().any(|other| other.name() == lora.name()) {
            let got = format!("`{}` twice", lora.name());
            return Err(Error::invalid("names of LoRAs", expected, got));
        }
        self.0.push(lora);
        Ok(())
    }

    pub(crate) fn remove(&mut self, name: &str) -> Result<()> {
        let at = self.position(name)?;
        self.0.remove(at);
        Ok(())
    }

    pub(crate) fn set_scale(&mut self, name: &str, scale: f64) -> Result<()> {
        let at = self.position(name)?;
        self.0[at] = self.0[at].scaled(scale)?;
        Ok(())
    }

    /// Returns those at another scale than 0.
    pub(crate) fn active(&self) -> Self {
        let active = self.0.iter().filter(|lora| lora.scale != 0.0);
        Self(active.cloned().collect())
    }

    /// Returns the LoRAs that a request names, at its scales.
    pub(crate) fn named(&self, names: &[LoraScale]) -> Result<Self> {
        let mut named = Self::default();
        for LoraScale { name, scale } in names {
            let lora = self.0[self.position(name)?].scaled(*scale)?;
            named.push(lora, "each once in a request")?;
        }
        Ok(named)
    }

    fn position(&self, name: &str) -> Result<usize> {
        let names = || {
            self.0
                .iter()
                .map(|lora| format!("`{}`", lora.name()))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let found = self.0.iter().position(|lora| lora.name() == name);
        found.ok_or_else(|| {
            let all = if self.0.is_empty() {
                "one that was added; there are none".to_owned()
            } else {
                names()
            };
            Error::invalid("name of a LoRA", all, format!("`{name}`"))
        })
    }

    /// Returns the settings that the LoRAs ask for, of those at another scale than 0.
    pub(crate) fn defaults(&self) -> Vec<LoraDefaults> {
        let active = self.0.iter().filter(|lora| lora.scale != 0.0);
        active.map(|lora| lora.lora().defaults()).collect()
    }

    /// Returns clones of the LoRAs, in order.
    pub(crate) fn to_vec(&self) -> Vec<LoadedLora> {
        self.0.clone()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the key of the whole set.
    pub(crate) fn key(&self) -> LoraKey {
        LoraKey::of(&self.0)
    }

    /// Returns the key of the LoRAs that have layers of text encoders.
    pub(crate) fn text_key(&self) -> LoraKey {
        let text = [LoraTarget::Clip, LoraTarget::T5];
        LoraKey::of(self.0.iter().filter(|lora| {
            let targets = &lora.lora().report().targets;
            text.iter().any(|target| targets.contains_key(target))
        }))
    }

    /// Returns the adapters of all LoRAs for a transformer of these sizes.
    pub(crate) fn transformer(&self, config: &DitConfig) -> Result<Adapters> {
        let mut adapters = Adapters::new();
        for lora in &self.0 {
            adapters.extend(lora.lora().adapters(config, |layer| lora.layer_scale(layer))?);
        }
        Ok(adapters)
    }

    /// Returns the adapters of all LoRAs for a text encoder with these layers.
    fn text(&self, target: LoraTarget, layers: &BTreeMap<String, [i64; 2]>) -> Result<Adapters> {
        let prefix = if target == LoraTarget::Clip { "clip" } else { "t5" };
        let mut adapters = Adapters::new();
        for lora in &self.0 {
            // Some files of CLIP have a prefix of their own.
            let scale =
                |layer: &str| lora.layer_scale(&format!("{prefix}.{}", layer.trim_start_matches("text_model.")));
            adapters.extend(lora.lora().text_adapters(target, layers, scale)?);
        }
        Ok(adapters)
    }

    /// Checks that every pattern of layers decides for a layer of its LoRA. Needs no part in memory.
    pub(crate) fn check_patterns(&self, config: &DitConfig) -> Result<()> {
        self.0.iter().try_for_each(|lora| lora.check_patterns(config))
    }

    /// Checks that every LoRA fits these parts, also one at scale 0.
    pub(crate) fn check(&self, text: &TextEncoder, dit: &Dit) -> Result<()> {
        let encoders = [
            (LoraTarget::Clip, text.clip().slots()),
            (LoraTarget::T5, text.t5().slots()),
        ];
        for lora in &self.0 {
            for (target, slots) in encoders {
                slots.check(&lora.lora().text_adapters(target, &slots.sizes(), |_| 1.0)?)?;
            }
        }
        dit.slots().check(&self.transformer(dit.config())?)
    }

    /// Validates all adapters of the text encoders and moves them to the device.
    pub(crate) fn prepare_text(&self, text: &TextEncoder) -> Result<AdapterSet> {
        let (clip, t5) = (text.clip().slots(), text.t5().slots());
        Ok(AdapterSet::join([
            clip.prepare(&self.text(LoraTarget::Clip, &clip.sizes())?)?,
            t5.prepare(&self.text(LoraTarget::T5, &t5.sizes())?)?,
        ]))
    }

    /// Validates those of the transformer and moves them to the device.
    pub(crate) fn prepare_dit(&self, dit: &Dit) -> Result<AdapterSet> {
        dit.slots().prepare(&self.transformer(dit.config())?)
    }
}

impl LoraKey {
    fn of<'a>(loras: impl IntoIterator<Item = &'a LoadedLora>) -> Self {
        let entry = |lora: &LoadedLora| (Arc::downgrade(&lora.file), lora.scale);
        Self(loras.into_iter().map(entry).collect())
    }

    /// Returns `true` if all of its LoRAs are in the set, at any scale.
    pub(crate) fn is_within(&self, set: &LoraSet) -> bool {
        let there = |file: &Weak<_>| set.0.iter().any(|lora| ptr::eq(file.as_ptr(), Arc::as_ptr(&lora.file)));
        self.0.iter().all(|(file, _)| there(file))
    }
}

impl PartialEq for LoraKey {
    fn eq(&self, other: &Self) -> bool {
        let same = |((a, of_a), (b, of_b)): (&(Weak<_>, f64), &(Weak<_>, f64))| a.ptr_eq(b) && of_a == of_b;
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(same)
    }
}
