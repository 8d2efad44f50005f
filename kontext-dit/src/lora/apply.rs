//! Where the changes of a LoRA land in a model.

use kontext_core::formats::nearest_name;
use kontext_core::pattern::matches;
use kontext_core::{CheckpointError, Error, Result};
use kontext_nn::Adapters;
use kontext_nn::Change;

use super::table::{Layer, Naming};
use super::{Lora, LoraTarget, Unmatched};
use crate::{DitConfig, LinearPart, linear_parts};

impl Lora {
    /// The changes for a transformer of these sizes. `strength` gives that of each layer, called as BFL does
    /// (`double_blocks.0.img_attn.qkv`); 1 is as it was trained, and at 0 a layer is left as it is.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for a layer that the transformer does not have, or of another shape.
    pub fn adapters(&self, config: &DitConfig, strength: impl Fn(&str) -> f64) -> Result<Adapters> {
        let parts = linear_parts(config)?;
        let mut adapters = Adapters::new();
        let mut strange = Vec::new();
        for (layer, changes) in self.of(LoraTarget::Transformer) {
            let Some(place) = Place::find(&parts, layer) else {
                if !self.allows(&layer.module) {
                    let names = parts.iter().flat_map(|p| [p.module.as_str(), p.layer.as_str()]);
                    let nearest = nearest_name(&layer.module, names);
                    let reason = "no layer of this transformer";
                    strange.push(Unmatched {
                        name: layer.module.clone(),
                        reason,
                        nearest,
                    });
                }
                continue;
            };
            for change in changes {
                place.check(layer, change).map_err(Error::checkpoint(&self.path))?;
                let change = change
                    .clone()
                    .starting_at(place.start)
                    .at_strength(strength(place.layer));
                let change = if place.swapped { change.swapped()? } else { change };
                add(&mut adapters, place.layer, change);
            }
        }
        self.complete(adapters, &strange)
    }

    /// The changes for a text encoder with these linear layers, called as transformers does. CLIP's may lack the
    /// `text_model.` before their names.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for a layer that the encoder does not have.
    pub fn text_adapters(
        &self,
        target: LoraTarget,
        layers: &[String],
        strength: impl Fn(&str) -> f64,
    ) -> Result<Adapters> {
        let mut adapters = Adapters::new();
        let mut strange = Vec::new();
        for (layer, changes) in self.of(target) {
            let (name, bare) = (&layer.module, layer.module.trim_start_matches("text_model."));
            let Some(own) = layers.iter().find(|own| *own == name || *own == bare) else {
                if !self.allows(name) {
                    let nearest = nearest_name(name, layers.iter().map(String::as_str));
                    let reason = "no layer of this text encoder";
                    strange.push(Unmatched {
                        name: name.clone(),
                        reason,
                        nearest,
                    });
                }
                continue;
            };
            changes
                .iter()
                .for_each(|change| add(&mut adapters, own, change.clone().at_strength(strength(own))));
        }
        self.complete(adapters, &strange)
    }

    /// The adapters, if all layers were found.
    fn complete(&self, adapters: Adapters, strange: &[Unmatched]) -> Result<Adapters> {
        if strange.is_empty() {
            return Ok(adapters);
        }
        let parts = strange.iter().map(ToString::to_string).collect();
        Err(Error::checkpoint(&self.path)(CheckpointError::LoraUnmatched {
            parts,
            total: self.layers.len(),
        }))
    }

    fn of(&self, target: LoraTarget) -> impl Iterator<Item = &(Layer, Vec<Change>)> {
        self.layers.iter().filter(move |(layer, _)| layer.target == target)
    }

    pub(super) fn allows(&self, name: &str) -> bool {
        self.options.unmatched.iter().any(|pattern| matches(pattern, name))
    }
}

fn add(adapters: &mut Adapters, layer: &str, change: Change) {
    // At strength 0 nothing is computed, also where a program's DoRA would still bring rows to their lengths.
    if change.strength() != 0.0 {
        adapters.add(layer, change);
    }
}

/// Where a change lands in the transformer.
struct Place<'a> {
    layer: &'a str,
    start: i64,
    rows: i64,
    input: i64,
    swapped: bool,
}

impl<'a> Place<'a> {
    fn find(parts: &'a [LinearPart], layer: &Layer) -> Option<Self> {
        if layer.naming == Naming::Diffusers || layer.naming == Naming::OldDiffusers {
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
        // BFL's layers are whole, and their rows in our order.
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

    fn check(&self, layer: &Layer, change: &Change) -> Result<(), CheckpointError> {
        let rows = change.rows();
        let input = if change.input() == 0 {
            self.input
        } else {
            change.input()
        };
        let got = vec![rows.end - rows.start, input];
        if got == [self.rows, self.input] {
            return Ok(());
        }
        let name = format!("change of {}", layer.module);
        Err(CheckpointError::Shape {
            name,
            expected: vec![self.rows, self.input],
            got,
        })
    }
}
