//! The recipe of a run, one TOML file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kontext_core::range::within;
use kontext_core::{Error, Result};
use kontext_sampler::Size;
use serde::{Deserialize, Serialize};

use crate::bounds::{ACCUMULATE, BATCH, CLIP, DECAY, SEED, STEPS};
use crate::dataset::{WEIGHTS, is_weight};
use crate::objective::{AdversarialObjective, Objective};
use crate::optim::{AdamWConfig, LrSchedule};
use crate::run::recipe_changes::{Comparable, check_accepted, text};
use crate::run::{Intervals, read_toml};

use super::method::Method;

/// The complete configuration of a run. Two runs of one recipe on one machine give the same bits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Folder of the base model, in any layout supported by the pipeline.
    pub model: PathBuf,
    /// Folder of the run: state, curves, samples and the result.
    pub out: PathBuf,
    /// Optimizer steps of the whole run, from 1 to 10^9.
    pub steps: u64,
    /// Seed of all random numbers, from 0 to 2^63 - 1. Default 0.
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
    /// The training objective, by its `kind`. Default: flow.
    #[serde(default)]
    pub objective: Objective,
    /// Constants of the optimizer.
    #[serde(default)]
    pub optimizer: AdamWConfig,
    /// Learning-rate schedule.
    #[serde(default)]
    pub rate: LrSchedule,
    /// Maximum norm of the gradient, from 1e-6 to 10^9; longer ones are clipped. Default 1.
    #[serde(default = "clip")]
    pub clip: f64,
    /// EMA decay of the trained values, from 0 to 0.9999999; 0 disables it. Default 0.999.
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
    /// names all fields of its table, `model files` and `data files` name the contents of the files. A name that
    /// has no effect is refused. See [`crate::Trainer`]. Default: none. The key `resume` is read, too.
    #[serde(default, alias = "resume", skip_serializing_if = "Vec::is_empty")]
    pub accept_changes: Vec<String>,
}

/// Names of the digests of the model's and the data's files.
pub(super) const MODEL_FILES: &str = "model files";
pub(super) const DATA_FILES: &str = "data files";

impl Comparable for Recipe {
    const FREE: &'static [&'static str] = &[
        "model",
        "out",
        "device",
        "recompute",
        "method.default_scale",
        "every",
        "accept_changes",
        "data.folder",
        "data.cache",
        "data.validation_items",
        "objective.patience",
    ];
    const FIXED: &'static [&'static str] = &["method", "objective.kind", "objective.blocks", "objective.head_width"];
    const OPEN: &'static [&'static str] = &[
        "data.weights",
        "objective.density",
        "objective.critic_density",
        "objective.real",
    ];
    const FILES: &'static [&'static str] = &[MODEL_FILES, DATA_FILES];
    const LOSS: &'static [&'static str] = &["objective", "data"];

    fn accepted(&self) -> &[String] {
        &self.accept_changes
    }

    /// The state of a run with a critic has its heads and its part of the curve.
    fn fixed_after(&self, before: &Self) -> &'static [&'static str] {
        let has_critic = |recipe: &Self| {
            let adversarial = recipe.objective.adversarial();
            adversarial.is_some_and(AdversarialObjective::has_critic)
        };
        if has_critic(self) == has_critic(before) {
            &[]
        } else {
            &["objective.adversarial_weight"]
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
    /// Batch size, from 1 to 4096. Default 16.
    #[serde(default = "batch")]
    pub batch: usize,
    /// Gradient accumulation: batches per optimizer step, from 1 to 1024. Default 1.
    #[serde(default = "accumulate")]
    pub accumulate: usize,
    /// Width and height of the sizes to which images can be resized, each to the nearest aspect ratio; from 1
    /// to 1000 of them, multiples of 16 of at most 8192. Default: the model's preferred sizes.
    #[serde(default)]
    pub sizes: Option<Vec<[u32; 2]>>,
    /// Training split. Default `train`.
    #[serde(default = "train")]
    pub split: String,
    /// Split for validation and samples. Default `test`.
    #[serde(default = "test")]
    pub validation: String,
    /// Number of validation items, from 1 to 1000000. Default 64.
    #[serde(default = "validation_items")]
    pub validation_items: usize,
    /// Sampling weights by prefix of the category: 0, or from 0.001 to 100. Default 1.
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
    /// Returns the folder of the encoding cache.
    pub(super) fn cache(&self) -> PathBuf {
        self.data.cache.clone().unwrap_or_else(|| self.out.join("cache"))
    }

    /// Reads a recipe. Relative paths in it are relative to the current directory.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, a checkpoint error with line and field if it is not a
    /// recipe, or a value is out of its range.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let recipe: Self = read_toml(path)?;
        recipe.validate().map_err(Error::in_config(path))?;
        Ok(recipe)
    }

    /// Returns the recipe as the TOML that [`Recipe::open`] reads.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a path in it is not valid text.
    pub fn to_toml(&self) -> Result<String> {
        text(self)
    }

    /// Checks the values, without reading any file. [`Recipe::check`] checks more.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the field and its range; also if a path is not valid text, since the
    /// recipe is saved with the state, for a setting that has no effect with this method, and for a name in
    /// `accept_changes` that has none.
    pub fn validate(&self) -> Result<()> {
        let paths = [("model", Some(&self.model)), ("out", Some(&self.out))];
        let data = [
            ("data.folder", Some(&self.data.folder)),
            ("data.cache", self.data.cache.as_ref()),
        ];
        for (name, path) in paths.into_iter().chain(data) {
            // It would mean the current directory.
            if path.is_some_and(|path| path.as_os_str().is_empty()) {
                return Err(Error::invalid(
                    name,
                    "a path; `.` is the current directory",
                    "an empty one",
                ));
            }
        }
        within("steps", self.steps, STEPS)?;
        within("seed", self.seed, SEED)?;
        within("clip", self.clip, CLIP)?;
        within("ema", self.ema, DECAY)?;
        self.method.validate()?;
        self.data.validate()?;
        self.objective.validate()?;
        self.optimizer.validate()?;
        self.rate.validate()?;
        self.every.validate()?;
        if self.optimizer.muon && self.method != Method::Full {
            let got = "set next to method.kind = \"lora\", whose factors it does not update";
            return Err(Error::invalid("optimizer.muon", "method.kind = \"full\"", got));
        }
        check_accepted(self)?;
        self.to_toml().map(drop)
    }
}

impl Data {
    fn validate(&self) -> Result<()> {
        within("data.batch", self.batch, BATCH)?;
        within("data.accumulate", self.accumulate, ACCUMULATE)?;
        within("data.validation_items", self.validation_items, 1..=1_000_000)?;
        if let Some(sizes) = &self.sizes {
            within("number of data.sizes", sizes.len(), 1..=1000)?;
            for &[width, height] in sizes {
                Size::new(width, height).grid().map_err(|error| match error {
                    Error::InvalidArgument { expected, got, .. } => Error::invalid("data.sizes", expected, got),
                    error => error,
                })?;
            }
        }
        match self.weights.iter().find(|(_, weight)| !is_weight(**weight)) {
            None => Ok(()),
            Some((category, weight)) => {
                let got = format!("{weight} for {category:?}");
                Err(Error::invalid("data.weights", WEIGHTS, got))
            }
        }
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
    fn the_names_of_a_change_of_the_real_images_are_accepted() {
        let recipe = |real: &str| -> Recipe {
            let text = "model = 'm'\nout = 'o'\nsteps = 10\n[data]\nfolder = 'd'\n";
            let objective = format!("[objective]\nkind = 'adversarial'\nreal = {{ kind = '{real}' }}\n");
            toml::from_str(&format!("{text}{objective}")).unwrap()
        };
        let (teacher, mut data) = (recipe("teacher"), recipe("data"));
        let changes = crate::run::differences(&teacher, &data).unwrap();
        data.accept_changes = changes.into_iter().map(|change| change.field).collect();
        let fields = ["kind", "guidance", "steps"].map(|field| format!("objective.real.{field}"));
        assert!(fields.iter().all(|field| data.accept_changes.contains(field)));
        check_accepted(&data).unwrap();
    }

    #[test]
    fn a_misspelt_field_is_named() {
        let error = toml::from_str::<Recipe>("model = 'm'\nout = 'o'\nsteps = 10\nsede = 1\n[data]\nfolder = 'd'\n");
        assert!(error.unwrap_err().to_string().contains("sede"));
    }
}
