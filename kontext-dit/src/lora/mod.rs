//! LoRA files, in every naming that trainers for FLUX.1 write, for the transformer and the text encoders.
//!
//! Source: huggingface/diffusers 0.38 `src/diffusers/loaders/lora_pipeline.py`, `FluxLoraLoaderMixin`, and
//! `lora_conversion_utils.py`.

mod apply;
mod factors;
mod families;
mod report;
mod save;
mod scaling;
mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kontext_core::{CheckpointError, Error, Result};
use kontext_nn::Change;
use kontext_nn::Weights;

use self::factors::Factors;
pub use self::factors::LoraForm;
pub use self::families::LoraFamily;
use self::families::{Key, Leaf, NoKey};
pub use self::report::{LoraReport, Unmatched};
pub use self::save::{LoraLayer, save_lora};
use self::scaling::Scaling;
pub use self::table::LoraTarget;
use self::table::{Layer, Naming, Table};

/// Changes of linear layers of the transformer and the text encoders, read from a file.
///
/// Names may be those of diffusers and PEFT, early diffusers, kohya, ComfyUI, OneTrainer, XLabs, BFL, fal and LyCORIS;
/// the changes low-rank (LoRA), LoKr, LoHa, with or without DoRA, or whole differences of weights and biases.
///
/// The strength of a layer is `alpha / rank`, by a tensor `alpha` beside it, by PEFT's configuration in the metadata
/// (or in the file that PEFT puts beside), and 1 where neither is there.
#[derive(Debug, Clone)]
pub struct Lora {
    path: PathBuf,
    layers: Vec<(Layer, Vec<Change>)>,
    report: LoraReport,
    options: LoraOptions,
}

/// What is allowed of a LoRA that fits in part only, or not at all.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct LoraOptions {
    unmatched: Vec<String>,
    no_effect: bool,
}

impl LoraOptions {
    /// Leaves out tensors that fit nothing in the model, and whose names have this form; `*` stands for anything. May
    /// be called several times. Default: none, so a part that does not fit is an error.
    pub fn allow_unmatched(mut self, pattern: impl Into<String>) -> Self {
        self.unmatched.push(pattern.into());
        self
    }

    /// Takes files that change nothing. Default: they are errors.
    pub fn allow_no_effect(self) -> Self {
        Self {
            no_effect: true,
            ..self
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// Those of [`Lora::open`], but for what is allowed.
    pub fn open(self, path: impl AsRef<Path>) -> Result<Lora> {
        let lora = Lora {
            options: self,
            ..Lora::read(path.as_ref())?
        };
        let refused = |source| Err(Error::checkpoint(&lora.path)(source));
        let (report, total) = (&lora.report, lora.report.matched + lora.report.unmatched.len());
        let parts: Vec<&Unmatched> = report.unmatched.iter().filter(|u| !lora.allows(&u.name)).collect();
        if !parts.is_empty() {
            let parts = parts.iter().map(ToString::to_string).collect();
            return refused(CheckpointError::LoraUnmatched { parts, total });
        }
        if lora.options.no_effect {
            return Ok(lora);
        }
        if lora.layers.is_empty() {
            let reason = format!("none of its {total} tensors is of a layer of FLUX.1");
            return refused(CheckpointError::LoraWithoutEffect { reason });
        }
        if report.without_effect.len() == lora.layers.len() {
            let reason = format!("a factor of each of its {} layers is zero", lora.layers.len());
            return refused(CheckpointError::LoraWithoutEffect { reason });
        }
        Ok(lora)
    }
}

impl Lora {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Checkpoint`] for a file that is damaged, of which a part is for no layer of FLUX.1
    /// (named, with the nearest name), or which would change nothing.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::options().open(path)
    }

    /// Options of reading, by default all as [`Lora::open`] has them.
    pub fn options() -> LoraOptions {
        LoraOptions::default()
    }

    /// What a file holds, whether it can be used or not.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Checkpoint`] for a damaged file.
    pub fn inspect(path: impl AsRef<Path>) -> Result<LoraReport> {
        Ok(Self::read(path.as_ref())?.report)
    }

    fn read(path: &Path) -> Result<Self> {
        let weights = Weights::open(path)?;
        let mut report = LoraReport {
            facts: weights.store().metadata(),
            ..LoraReport::default()
        };
        let scaling = Scaling::of(path, &report.facts)?;
        let mut layers = Vec::new();
        for factors in sorted(&weights, &mut report)? {
            let layer = factors.key().layer.clone();
            let built = factors.build(&scaling).map_err(|e| broken(path, &layer.module, &e))?;
            let reason = "the other factors of its layer are not in the file";
            report.unmatched.extend(built.left.into_iter().map(|name| Unmatched {
                name,
                reason,
                nearest: None,
            }));
            if built.changes.is_empty() {
                continue;
            }
            report.add(&layer, &built.changes)?;
            layers.push((layer, built.changes.into_iter().map(|(_, change)| change).collect()));
        }
        report.matched = weights.names().len() - report.unmatched.len();
        let dora = report.forms.contains_key(&LoraForm::Dora);
        if let Some((layer, _)) = layers
            .iter()
            .find(|(layer, _)| !dora && scaling.says_dora(layer.target))
        {
            let reason = format!(
                "its metadata names DoRA, but `{}` has no `lora_magnitude_vector`; write the file again with all tensors",
                layer.module
            );
            return Err(Error::checkpoint(path)(CheckpointError::Lora { reason }));
        }
        Ok(Self {
            path: path.to_owned(),
            layers,
            report,
            options: LoraOptions::default(),
        })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file holds.
    #[must_use]
    pub fn report(&self) -> &LoraReport {
        &self.report
    }

    /// The free text in the file's header: how it was trained, where its writer says so.
    #[must_use]
    pub fn facts(&self) -> &BTreeMap<String, String> {
        &self.report.facts
    }

    /// Number of layers that it names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Whether it names no layer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }
}

/// The tensors of a file by layer. What is for none goes into the report.
fn sorted(weights: &Weights, report: &mut LoraReport) -> Result<Vec<Factors>> {
    let table = Table::new()?;
    let mut keys = Vec::new();
    for name in weights.names() {
        match families::read(&name, &table) {
            Ok(key) => keys.push((name, key)),
            Err(NoKey { reason, nearest }) => report.unmatched.push(Unmatched { name, reason, nearest }),
        }
    }
    // Some files hold the same LoRA twice: of the two, diffusers takes the one in its own names.
    let of_transformer = |family| {
        let own = |key: &Key| key.family == family && key.layer.target == LoraTarget::Transformer;
        keys.iter().any(|(_, key)| own(key))
    };
    let twice = of_transformer(LoraFamily::Diffusers) || of_transformer(LoraFamily::OneTrainer);
    let mut layers: BTreeMap<(LoraTarget, Naming, String), Factors> = BTreeMap::new();
    for (name, key) in keys {
        let second = matches!(key.family, LoraFamily::Kohya | LoraFamily::ComfyUi);
        if twice && second && key.layer.target == LoraTarget::Transformer {
            let reason = "the file holds the same in diffusers' names";
            report.unmatched.push(Unmatched {
                name,
                reason,
                nearest: None,
            });
            continue;
        }
        if key.leaf != Leaf::Alpha {
            *report.families.entry(key.family).or_default() += 1;
        }
        let (leaf, layer) = (key.leaf, (key.layer.target, key.layer.naming, key.layer.module.clone()));
        let factors = layers.entry(layer).or_insert_with(|| Factors::new(key));
        if let Some(name) = factors.insert(leaf, name.clone(), weights.raw(&name)?) {
            let reason = "another tensor of the file is the same factor of the same layer";
            report.unmatched.push(Unmatched {
                name,
                reason,
                nearest: None,
            });
        }
    }
    Ok(layers.into_values().collect())
}

/// An error in a layer's tensors.
fn broken(path: &Path, module: &str, error: &Error) -> Error {
    let reason = format!("the tensors of `{module}` make no change: {error}; the file is damaged, fetch it again");
    Error::checkpoint(path)(CheckpointError::Lora { reason })
}
