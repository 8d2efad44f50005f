//! LoRA files for the transformer, in the naming of diffusers and peft.
//!
//! Source: huggingface/diffusers 0.38 `src/diffusers/loaders/lora_pipeline.py`, `FluxLoraLoaderMixin`, and
//! `loaders/lora_base.py` for the metadata.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use kontext_core::nn::LowRank;
use kontext_core::weights::{self, Adapters};
use kontext_core::{CheckpointError, Error, Kind, Result, Tensor, Weights};
use serde_json::Value;

use crate::{DitConfig, LinearPart, linear_parts};

/// What names of the transformer's layers begin with in the file of a pipeline's LoRA.
const PREFIX: &str = "transformer.";
/// Where peft's configuration is kept in the file's metadata.
const METADATA: &str = "lora_adapter_metadata";
const DOWN: &str = "lora_A.weight";
const UP: &str = "lora_B.weight";
const ALPHA: &str = "alpha";

/// Low-rank changes of a transformer's linear layers.
#[derive(Debug)]
pub struct Lora {
    path: PathBuf,
    modules: BTreeMap<String, Factors>,
    facts: BTreeMap<String, String>,
}

/// The change of one of diffusers' layers: `scale * up @ down`.
#[derive(Debug)]
struct Factors {
    down: Tensor,
    up: Tensor,
    scale: f64,
}

impl Lora {
    /// Reads a file that diffusers, peft or this library's trainer wrote.
    ///
    /// The strength of a layer is `alpha / rank`, by a tensor `alpha` beside it or by peft's
    /// configuration in the metadata, and 1 where neither is there.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Checkpoint`] where a tensor is no part of a LoRA of this kind.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let weights = Weights::open(path)?;
        let facts = weights.metadata();
        let scaling = facts.get(METADATA).map(|text| Scaling::parse(path, text)).transpose()?.unwrap_or_default();
        let mut modules = BTreeMap::new();
        for name in weights.names() {
            let Some(module) = name.strip_suffix(DOWN).map(|m| m.trim_end_matches('.')) else { continue };
            let (down, up) = (weights.raw(&name)?, weights.raw(&format!("{module}.{UP}"))?);
            let alpha = format!("{module}.{ALPHA}");
            let short = module.strip_prefix(PREFIX).unwrap_or(module);
            let rank = down.size().first().copied().unwrap_or(1) as f64;
            let scale = match weights.contains(&alpha) {
                true => weights.raw(&alpha)?.f_double_value(&[])? / rank,
                false => scaling.of(short, rank),
            };
            modules.insert(short.to_owned(), Factors { down, up, scale });
        }
        weights.finish()?;
        if modules.is_empty() {
            let reason = format!("it holds no LoRA of diffusers' naming: no tensor ends with `{DOWN}`");
            return Err(Error::config(path, reason));
        }
        Ok(Self { path: path.to_owned(), modules, facts })
    }

    /// The free text in the file's header: how it was trained, where its writer says so.
    #[must_use]
    pub fn facts(&self) -> &BTreeMap<String, String> {
        &self.facts
    }

    /// Number of layers that change.
    #[must_use]
    pub fn len(&self) -> usize {
        self.modules.len()
    }

    /// Whether no layer changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// The changes for a transformer of these sizes, at `strength` (1 as trained).
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for a layer that the transformer does not have, or of another shape.
    pub fn adapters(&self, config: &DitConfig, strength: f64) -> Result<Adapters> {
        let parts = linear_parts(config)?;
        let parts: BTreeMap<&str, &LinearPart> = parts.iter().map(|part| (part.module.as_str(), part)).collect();
        let mut adapters = Adapters::new();
        for (module, factors) in &self.modules {
            let Some(part) = parts.get(module.as_str()) else {
                let reason = format!("the transformer has no layer `{module}`; it is a LoRA of another model");
                return Err(Error::config(&self.path, reason));
            };
            let wrong = |name: &str, expected: [i64; 2], got: Vec<i64>| {
                let name = format!("{PREFIX}{module}.{name}");
                Error::checkpoint(&self.path)(CheckpointError::Shape { name, expected: expected.to_vec(), got })
            };
            let (down, up) = (factors.down.size(), factors.up.size());
            let rank = down.first().copied().unwrap_or_default();
            if down != [rank, part.input] {
                return Err(wrong(DOWN, [rank, part.input], down));
            }
            if up != [part.rows, rank] {
                return Err(wrong(UP, [part.rows, rank], up));
            }
            let up = if part.swapped {
                let halves = factors.up.f_chunk(2, 0)?;
                Tensor::f_cat(&halves.iter().rev().collect::<Vec<_>>(), 0)?
            } else {
                factors.up.shallow_clone()
            };
            let scale = factors.scale * strength;
            adapters.add(part.layer.clone(), LowRank::new(factors.down.shallow_clone(), up, scale, part.start)?);
        }
        Ok(adapters)
    }
}

/// Writes a LoRA: for each of diffusers' layers `down` [rank, in] and `up` [rows, rank] in f32, whose
/// product is the whole change (strength 1, which every program takes where no `alpha` is given).
///
/// `facts` go into the header.
///
/// # Errors
/// [`Error::Io`] where the file cannot be written.
pub fn save_lora(
    path: impl AsRef<Path>,
    modules: &[(String, Tensor, Tensor)],
    facts: BTreeMap<String, String>,
) -> Result<()> {
    let mut tensors = Vec::with_capacity(2 * modules.len());
    for (module, down, up) in modules {
        tensors.push((format!("{PREFIX}{module}.{DOWN}"), down.f_to_kind(Kind::Float)?));
        tensors.push((format!("{PREFIX}{module}.{UP}"), up.f_to_kind(Kind::Float)?));
    }
    let mut text: HashMap<String, String> = facts.into_iter().collect();
    text.insert("format".to_owned(), "pt".to_owned());
    weights::save(path, &tensors, Some(text))
}

/// Strengths by peft's configuration.
#[derive(Debug, Default)]
struct Scaling {
    alpha: Option<f64>,
    alphas: BTreeMap<String, f64>,
    rank_stabilized: bool,
}

impl Scaling {
    fn parse(path: &Path, text: &str) -> Result<Self> {
        let wrong = |reason: String| Error::config(path, format!("`{METADATA}` in its header {reason}"));
        let all: BTreeMap<String, Value> = serde_json::from_str(text).map_err(|e| wrong(format!("is no JSON: {e}")))?;
        let field = |name: &str| all.get(&format!("{PREFIX}{name}")).or_else(|| all.get(name));
        let on = |name: &str| field(name).and_then(Value::as_bool).unwrap_or(false);
        if on("use_dora") {
            return Err(wrong("names DoRA, which this library does not compute; take a LoRA without it".to_owned()));
        }
        let pattern = field("alpha_pattern").and_then(Value::as_object);
        let alphas = pattern.into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), v.as_f64()?))).collect();
        let alpha = field("lora_alpha").and_then(Value::as_f64);
        Ok(Self { alpha, alphas, rank_stabilized: on("use_rslora") })
    }

    fn of(&self, module: &str, rank: f64) -> f64 {
        // peft's patterns are ends of names.
        let own = self.alphas.iter().find(|(name, _)| module == name.as_str() || module.ends_with(&format!(".{name}")));
        match own.map(|(_, alpha)| *alpha).or(self.alpha) {
            Some(alpha) if self.rank_stabilized => alpha / rank.sqrt(),
            Some(alpha) => alpha / rank,
            None => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use kontext_core::{Device, noise};

    use super::*;

    fn draw(shape: &[i64], seed: u64) -> Tensor {
        noise::randn(shape, seed, Kind::Float, Device::Cpu).unwrap()
    }

    fn config() -> DitConfig {
        DitConfig { heads: 1, head_dim: 8, axes_dim: [4, 2, 2], mlp_width: 32, ..DitConfig::kontext_dev() }
    }

    #[test]
    fn what_is_saved_is_read_again_and_lands_on_its_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lora.safetensors");
        let module = "single_transformer_blocks.3.attn.to_v".to_owned();
        save_lora(&path, &[(module, draw(&[2, 8], 1), draw(&[8, 2], 2))], BTreeMap::new()).unwrap();
        let lora = Lora::open(&path).unwrap();
        let adapters = lora.adapters(&config(), 1.0).unwrap();
        assert_eq!(adapters.layers().collect::<Vec<_>>(), ["single_blocks.3.linear1"]);
        assert_eq!(lora.len(), 1);
    }

    #[test]
    fn alpha_is_found_beside_the_layer_and_in_the_metadata() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lora.safetensors");
        let of = |suffix: &str| format!("transformer.x_embedder.{suffix}");
        let mut tensors = vec![(of(DOWN), draw(&[2, 64], 1)), (of(UP), draw(&[8, 2], 2))];
        let text = r#"{"transformer.lora_alpha": 6, "transformer.r": 2}"#;
        let text = HashMap::from([(METADATA.to_owned(), text.to_owned())]);
        weights::save(&path, &tensors, Some(text.clone())).unwrap();
        assert_eq!(Lora::open(&path).unwrap().modules["x_embedder"].scale, 3.0);
        tensors.push((of(ALPHA), Tensor::from(1.0_f32)));
        weights::save(&path, &tensors, Some(text)).unwrap();
        assert_eq!(Lora::open(&path).unwrap().modules["x_embedder"].scale, 0.5);
    }

    #[test]
    fn a_lora_of_another_model_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lora.safetensors");
        save_lora(&path, &[("x_embedder".to_owned(), draw(&[2, 63], 1), draw(&[8, 2], 2))], BTreeMap::new()).unwrap();
        let error = Lora::open(&path).unwrap().adapters(&config(), 1.0).unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("x_embedder"));
        save_lora(&path, &[("down.0".to_owned(), draw(&[2, 63], 1), draw(&[8, 2], 2))], BTreeMap::new()).unwrap();
        let error = Lora::open(&path).unwrap().adapters(&config(), 1.0).unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("no layer `down.0`"));
    }
}
