//! The recipe of a run, one TOML file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kontext_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::optim::{AdamWConfig, LrSchedule};
use crate::run::Intervals;
use crate::run::recipe_changes::Comparable;

use super::objective::Objective;

/// The complete configuration of a run. Two runs of one recipe on one machine give the same bits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Folder of the base model, in any layout supported by the pipeline.
    pub model: PathBuf,
    /// Folder of the run: state, curves, samples and the result.
    pub out: PathBuf,
    /// Optimizer steps of the whole run.
    pub steps: u64,
    /// Seed of all random numbers. Default 0.
    #[serde(default)]
    pub seed: u64,
    /// `cpu`, `cuda` or `cuda:N`. Default: the best available.
    #[serde(default)]
    pub device: Option<String>,
    /// The trained part. Default: the whole transformer.
    #[serde(default)]
    pub method: Method,
    /// The training data.
    pub data: Data,
    /// The training objective.
    #[serde(default)]
    pub objective: Objective,
    /// Constants of the optimizer.
    #[serde(default)]
    pub optimizer: AdamWConfig,
    /// Learning-rate schedule.
    #[serde(default)]
    pub rate: LrSchedule,
    /// Maximum norm of the gradient; longer ones are clipped. Default 1.
    #[serde(default = "clip")]
    pub clip: f64,
    /// EMA decay of the trained values, in [0, 1); 0 disables it. Default 0.999.
    #[serde(default = "ema")]
    pub ema: f64,
    /// If set, activations within blocks are recomputed in the backward pass instead of kept (activation
    /// checkpointing): a third more time, a fraction of the memory. Default: not set.
    #[serde(default)]
    pub recompute: bool,
    /// Intervals of saving, validating and sampling.
    #[serde(default)]
    pub every: Intervals,
    /// Fields that may differ from those of the state in the run's folder, as `steps` or `rate.peak`. `rate`
    /// names all fields of its table, `model` and `data` name the files. See [`crate::Trainer`]. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resume: Vec<String>,
}

impl Comparable for Recipe {
    const FREE: &'static [&'static str] = &[
        "model",
        "out",
        "device",
        "recompute",
        "every",
        "resume",
        "data.folder",
        "data.cache",
        "data.validation_items",
    ];
    const FIXED: &'static [&'static str] = &["method"];

    fn accepted(&self) -> &[String] {
        &self.resume
    }
}

/// The trained part of the model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Method {
    /// Every tensor of the transformer.
    #[default]
    Full,
    /// Low-rank adapters on its linear layers.
    Lora(LoraMethod),
}

/// Layers, rank and scale of the adapters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraMethod {
    /// Rank of the adapters. Default 16.
    pub rank: i64,
    /// Numerator of the LoRA scale `alpha / rank`. Default: the rank.
    pub alpha: Option<f64>,
    /// If set, trains the row norms of the adapted weights as well (DoRA, arXiv 2402.09353). Every adapted
    /// weight's norms are then recomputed for each batch. Default: not set.
    pub dora: bool,
    /// Patterns of the adapted linear layers, by their names in the transformer (BFL's), with `*` as a
    /// wildcard. Default: attention and MLP of all blocks.
    pub targets: Vec<String>,
}

impl Default for LoraMethod {
    fn default() -> Self {
        let targets = [
            "double_blocks.*.*_attn.qkv",
            "double_blocks.*.*_attn.proj",
            "double_blocks.*.*_mlp.*",
            "single_blocks.*.linear1",
            "single_blocks.*.linear2",
        ];
        Self {
            rank: 16,
            alpha: None,
            dora: false,
            targets: targets.map(str::to_owned).to_vec(),
        }
    }
}

/// The training data and its sampling.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Folder with `metadata.jsonl`; see [`crate::dataset::Dataset::open`].
    pub folder: PathBuf,
    /// Folder of the encoding cache. Default: `cache` in the run's folder.
    #[serde(default)]
    pub cache: Option<PathBuf>,
    /// Batch size. Default 16.
    #[serde(default = "batch")]
    pub batch: usize,
    /// Gradient accumulation: batches per optimizer step. Default 1.
    #[serde(default = "accumulate")]
    pub accumulate: usize,
    /// Width and height of the sizes to which images can be resized, each to the nearest aspect ratio.
    /// Default: the model's preferred sizes.
    #[serde(default)]
    pub sizes: Option<Vec<[u32; 2]>>,
    /// Training split. Default `train`.
    #[serde(default = "train")]
    pub split: String,
    /// Split for validation and samples. Default `test`.
    #[serde(default = "test")]
    pub validation: String,
    /// Number of validation items. Default 64.
    #[serde(default = "validation_items")]
    pub validation_items: usize,
    /// Sampling weights by prefix of the category. Default 1.
    #[serde(default)]
    pub weights: BTreeMap<String, f64>,
}

fn clip() -> f64 {
    1.0
}

fn ema() -> f64 {
    0.999
}

fn batch() -> usize {
    16
}

fn accumulate() -> usize {
    1
}

fn train() -> String {
    "train".to_owned()
}

fn test() -> String {
    "test".to_owned()
}

fn validation_items() -> usize {
    64
}

impl Recipe {
    /// Reads a recipe. Relative paths in it are relative to the current directory.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, a checkpoint error with line and field if it is not a
    /// recipe, and those of [`Recipe::validate`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let recipe: Self = toml::from_str(&text).map_err(|e| Error::config(path, e.to_string().trim().to_owned()))?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// Returns the recipe as the TOML that [`Recipe::open`] reads.
    ///
    /// # Errors
    /// A checkpoint error if a path in it is not valid text.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).map_err(|e| Error::config(&self.out, e.to_string()))
    }

    /// Checks the values.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], naming the field.
    pub fn validate(&self) -> Result<()> {
        self.objective.validate()?;
        let at_least = |name: &'static str, value: usize| match value {
            0 => Err(Error::invalid(name, "at least 1", 0)),
            _ => Ok(()),
        };
        at_least("data.batch", self.data.batch)?;
        at_least("data.accumulate", self.data.accumulate)?;
        at_least("steps", usize::try_from(self.steps).unwrap_or(usize::MAX))?;
        let positive = |name: &'static str, value: f64| match value > 0.0 && value.is_finite() {
            true => Ok(()),
            false => Err(Error::invalid(name, "a number above 0", value)),
        };
        positive("rate.peak", self.rate.peak)?;
        positive("clip", self.clip)?;
        if !(0.0..1.0).contains(&self.ema) {
            return Err(Error::invalid("ema", "0 for none, or a memory below 1", self.ema));
        }
        if let Method::Lora(lora) = &self.method
            && lora.rank < 1
        {
            return Err(Error::invalid("method.rank", "at least 1", lora.rank));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_recipe_has_the_documented_defaults_and_survives_being_written() {
        let text = "model = 'm'\nout = 'o'\nsteps = 10\n[data]\nfolder = 'd'\n[method]\nkind = 'lora'\nrank = 4\n";
        let recipe: Recipe = toml::from_str(text).unwrap();
        assert_eq!((recipe.clip, recipe.ema, recipe.data.batch), (1.0, 0.999, 16));
        assert!(matches!(&recipe.method, Method::Lora(lora) if lora.rank == 4 && lora.targets.len() == 5));
        let again: Recipe = toml::from_str(&recipe.to_toml().unwrap()).unwrap();
        assert_eq!(again, recipe);
    }

    #[test]
    fn a_misspelt_field_is_named() {
        let error = toml::from_str::<Recipe>("model = 'm'\nout = 'o'\nsteps = 10\nsede = 1\n[data]\nfolder = 'd'\n");
        assert!(error.unwrap_err().to_string().contains("sede"));
    }
}
