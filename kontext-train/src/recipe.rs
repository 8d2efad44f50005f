//! A run, described by one TOML file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kontext_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::{AdamWConfig, Objective, Rate};

/// Everything that decides a run. Two runs of one recipe on one machine give the same bits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Folder of the model to start from, in any layout that the pipeline loads.
    pub model: PathBuf,
    /// Folder of the run: state, curves, samples and the result.
    pub out: PathBuf,
    /// Optimizer steps of the whole run.
    pub steps: u64,
    /// Seed of everything random. Default 0.
    #[serde(default)]
    pub seed: u64,
    /// `cpu`, `cuda` or `cuda:N`. Default: the best there is.
    #[serde(default)]
    pub device: Option<String>,
    /// What is trained. Default: all of the transformer.
    #[serde(default)]
    pub method: Method,
    /// The examples.
    pub data: Data,
    /// What is minimised.
    #[serde(default)]
    pub objective: Objective,
    /// The optimizer's constants.
    #[serde(default)]
    pub optimizer: AdamWConfig,
    /// The learning rate.
    #[serde(default)]
    pub rate: Rate,
    /// Largest norm of a gradient; longer ones are shortened to it. Default 1.
    #[serde(default = "clip")]
    pub clip: f64,
    /// Memory of the moving average of the trained values, in [0, 1); 0 for none. Default 0.999.
    #[serde(default = "ema")]
    pub ema: f64,
    /// Whether activations within blocks are computed again in the backward pass instead of kept:
    /// a third more time, a fraction of the memory. Default: no.
    #[serde(default)]
    pub recompute: bool,
    /// How often what is written.
    #[serde(default)]
    pub every: Every,
}

/// What is trained.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Method {
    /// Every tensor of the transformer.
    #[default]
    Full,
    /// Low-rank adapters beside its linear layers.
    Lora(LoraMethod),
}

/// Which layers get adapters, and of what rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraMethod {
    /// Rank of the adapters. Default 16.
    pub rank: i64,
    /// Their strength is `alpha / rank`. Default: the rank.
    pub alpha: Option<f64>,
    /// Whether the lengths of the changed weights' rows are trained, too (DoRA, arXiv 2402.09353). Every changed weight is
    /// then measured anew for each batch. Default: no.
    pub dora: bool,
    /// Linear layers by their names in the transformer (BFL's), where `*` stands for anything.
    /// Default: attention and MLP of all blocks.
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

/// The examples, and how they are met.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Folder with `metadata.jsonl`; see [`crate::dataset::Dataset::open`].
    pub folder: PathBuf,
    /// Where encoded pictures and prompts are kept. Default: `cache` in the run's folder.
    #[serde(default)]
    pub cache: Option<PathBuf>,
    /// Items of a batch. Default 16.
    #[serde(default = "batch")]
    pub batch: usize,
    /// Batches whose gradients are added up before a step. Default 1.
    #[serde(default = "accumulate")]
    pub accumulate: usize,
    /// Width and height that pictures may be brought to, each to the nearest ratio. Default: the
    /// sizes that the model prefers.
    #[serde(default)]
    pub sizes: Option<Vec<[u32; 2]>>,
    /// The split that is trained on. Default `train`.
    #[serde(default = "train")]
    pub split: String,
    /// The split that is validated and sampled from. Default `test`.
    #[serde(default = "test")]
    pub validation: String,
    /// Items that are validated. Default 64.
    #[serde(default = "validation_items")]
    pub validation_items: usize,
    /// How often items come in an epoch, by the beginning of their category. Default once.
    #[serde(default)]
    pub weights: BTreeMap<String, f64>,
}

/// Steps between what is written; 0 for never. The state is saved at the end, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Every {
    /// The state, from which the run goes on. Default 500.
    pub save: u64,
    /// Loss on held-out items. Default 250.
    pub validate: u64,
    /// A grid of pictures. Default 1000.
    pub sample: u64,
}

impl Default for Every {
    fn default() -> Self {
        Self {
            save: 500,
            validate: 250,
            sample: 1000,
        }
    }
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
    /// Reads a recipe. Relative paths in it are relative to the present folder.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be read, a checkpoint error with line and field where it
    /// is no recipe, and those of [`Recipe::validate`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let recipe: Self = toml::from_str(&text).map_err(|e| Error::config(path, e.to_string().trim().to_owned()))?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// The recipe as the TOML that [`Recipe::open`] reads.
    ///
    /// # Errors
    /// A checkpoint error where a path in it is not text.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).map_err(|e| Error::config(&self.out, e.to_string()))
    }

    /// Says what is wrong with the values.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field.
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
