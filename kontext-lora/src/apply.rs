//! Mapping of a LoRA's adapters to the layers of a model.

use std::collections::{BTreeMap, BTreeSet};

use kontext_core::pattern::matches;
use kontext_core::{CheckpointError, Error, Result};
use kontext_dit::{DitConfig, LinearPart, linear_parts};
use kontext_formats::nearest_name;
use kontext_nn::{Adapters, LinearAdapter};

use crate::report::HINTS;
use crate::table::{Layer, Naming};
use crate::{Lora, LoraTarget, Unmatched};

impl Lora {
    /// Returns the adapters for a transformer of these sizes. `scale` maps BFL's name of a layer
    /// (`double_blocks.0.img_attn.qkv`) to its LoRA scale: 1 is as trained, 0 leaves the layer unchanged.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if a layer is not in the transformer or has another shape.
    pub fn adapters(&self, config: &DitConfig, scale: impl Fn(&str) -> f64) -> Result<Adapters> {
        let parts = linear_parts(config)?;
        let mut adapters = Adapters::new();
        let mut unmatched = Vec::new();
        for (layer, stored) in self.of(LoraTarget::Transformer) {
            let Some(place) = Place::find(&parts, layer) else {
                if !self.allows(&layer.module) {
                    let names = parts.iter().flat_map(|p| [p.module.as_str(), p.layer.as_str()]);
                    let nearest = hint(&unmatched, &layer.module, names);
                    let reason = "no layer of this transformer";
                    unmatched.push(Unmatched {
                        name: layer.module.clone(),
                        reason,
                        nearest,
                    });
                }
                continue;
            };
            for adapter in stored {
                check(layer, adapter, [place.rows, place.input]).map_err(Error::checkpoint(&self.path))?;
                let adapter = adapter.clone().starting_at(place.start).with_scale(scale(place.layer));
                let adapter = if place.swapped { adapter.swapped()? } else { adapter };
                add(&mut adapters, place.layer, adapter);
            }
        }
        self.complete(adapters, &unmatched)
    }

    /// Returns the adapters for a text encoder with these linear layers: their names, in transformers'
    /// naming, with the sizes of their weights, [out, in]. CLIP's names may lack the prefix `text_model.`.
    /// `scale` maps the name of a layer to its LoRA scale.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if a layer is not in the encoder or has another shape.
    pub fn text_adapters(
        &self,
        target: LoraTarget,
        layers: &BTreeMap<String, [i64; 2]>,
        scale: impl Fn(&str) -> f64,
    ) -> Result<Adapters> {
        let mut adapters = Adapters::new();
        let mut unmatched = Vec::new();
        for (layer, stored) in self.of(target) {
            let (name, bare) = (&layer.module, layer.module.trim_start_matches("text_model."));
            let Some((own, size)) = layers.get_key_value(name).or_else(|| layers.get_key_value(bare)) else {
                if !self.allows(name) {
                    let nearest = hint(&unmatched, name, layers.keys().map(String::as_str));
                    let reason = "no layer of this text encoder";
                    unmatched.push(Unmatched {
                        name: name.clone(),
                        reason,
                        nearest,
                    });
                }
                continue;
            };
            for adapter in stored {
                check(layer, adapter, *size).map_err(Error::checkpoint(&self.path))?;
                add(&mut adapters, own, adapter.clone().with_scale(scale(own)));
            }
        }
        self.complete(adapters, &unmatched)
    }

    /// Returns the names of the layers that it changes: BFL's for a transformer of these sizes
    /// (`double_blocks.0.img_attn.qkv`), and those of text encoders after `clip.` or `t5.`, without CLIP's prefix
    /// `text_model.`. Layers that are not in the transformer are left out.
    ///
    /// # Errors
    /// [`Error::Torch`] and [`Error::Checkpoint`] if the sizes make no transformer.
    pub fn layer_names(&self, config: &DitConfig) -> Result<BTreeSet<String>> {
        let parts = linear_parts(config)?;
        let name = |(layer, _): &(Layer, Vec<LinearAdapter>)| match layer.target {
            LoraTarget::Transformer => Some(Place::find(&parts, layer)?.layer.to_owned()),
            LoraTarget::Clip => Some(format!("clip.{}", layer.module.trim_start_matches("text_model."))),
            LoraTarget::T5 => Some(format!("t5.{}", layer.module)),
        };
        Ok(self.layers.iter().filter_map(name).collect())
    }

    /// Returns the adapters, or an error if any layer is unmatched.
    fn complete(&self, adapters: Adapters, unmatched: &[Unmatched]) -> Result<Adapters> {
        if unmatched.is_empty() {
            return Ok(adapters);
        }
        let parts = unmatched.iter().map(ToString::to_string).collect();
        Err(Error::checkpoint(&self.path)(CheckpointError::LoraUnmatched {
            parts,
            total: self.layers.len(),
        }))
    }

    fn of(&self, target: LoraTarget) -> impl Iterator<Item = &(Layer, Vec<LinearAdapter>)> {
        self.layers.iter().filter(move |(layer, _)| layer.target == target)
    }

    pub(super) fn allows(&self, name: &str) -> bool {
        self.options.unmatched.iter().any(|pattern| matches(pattern, name))
    }
}

/// Returns the nearest name, for the first unmatched layers.
fn hint<'a>(unmatched: &[Unmatched], name: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    (unmatched.len() < HINTS).then(|| nearest_name(name, names)).flatten()
}

fn add(adapters: &mut Adapters, layer: &str, adapter: LinearAdapter) {
    // At scale 0 the layer is skipped entirely, although a DoRA would still rescale its rows in other
    // programs.
    if adapter.scale() != 0.0 {
        adapters.add(layer, adapter);
    }
}

/// Target of an adapter in the transformer.
struct Place<'a> {
    layer: &'a str,
    start: i64,
    rows: i64,
    input: i64,
    swapped: bool,
}

impl<'a> Place<'a> {
    fn find(parts: &'a [LinearPart], layer: &Layer) -> Option<Self> {
        if matches!(
            layer.naming,
            Naming::Diffusers | Naming::OldDiffusers | Naming::OneTrainer
        ) {
            let part = parts.iter().find(|part| part.module == layer.module)?;
            let LinearPart {
                layer,
                start,
                rows,
                input,
                swapped,
                ..
            } = part;
            return Some(Self {
                layer,
                start: *start,
                rows: *rows,
                input: *input,
                swapped: *swapped,
            });
        }
        // BFL's layers are whole, with their rows in our order.
        let mut own = parts.iter().filter(|part| part.layer == layer.module).peekable();
        let first = *own.peek()?;
        let rows = own
            .filter(|part| !(layer.attention_only && part.module.ends_with("proj_mlp")))
            .map(|part| part.rows);
        Some(Self {
            layer: &first.layer,
            start: 0,
            rows: rows.sum(),
            input: first.input,
            swapped: false,
        })
    }
}

/// Checks that an adapter covers a layer, or a part of one, of these rows and inputs.
fn check(layer: &Layer, adapter: &LinearAdapter, [rows, input]: [i64; 2]) -> Result<(), CheckpointError> {
    // One of the bias only has no input.
    let own = if adapter.input() == 0 { input } else { adapter.input() };
    let got = vec![adapter.rows().end - adapter.rows().start, own];
    if got == [rows, input] {
        return Ok(());
    }
    let name = format!("adapter of {}", layer.module);
    Err(CheckpointError::Shape {
        name,
        expected: vec![rows, input],
        got,
    })
}
