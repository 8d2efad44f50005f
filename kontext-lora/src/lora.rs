//! LoRA files for the transformer and the text encoders, in every naming that FLUX.1 trainers write.
//!
//! Source: huggingface/diffusers 0.38 `src/diffusers/loaders/lora_pipeline.py`, `FluxLoraLoaderMixin`, and
//! `lora_conversion_utils.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kontext_core::{CheckpointError, Error, Result};
use kontext_nn::{LinearAdapter, Weights};

use crate::defaults::LoraDefaults;
use crate::factors::{AdapterFactors, LoraForm};
use crate::family::LoraFamily;
use crate::key::{self, Key, NoKey};
use crate::leaf::Leaf;
use crate::report::{LoraReport, Unmatched};
use crate::scaling::Scaling;
use crate::table::{Layer, LoraTarget, Naming, Table};

/// Adapters for linear layers of the transformer and the text encoders, read from a LoRA file.
///
/// Supported namings: diffusers and PEFT (with the name of an adapter, too), early diffusers, kohya, ComfyUI,
/// OneTrainer (also with BFL's layers), XLabs, BFL, fal and LyCORIS. Prefix, layer and factor of a name may
/// be of different programs; dots, underscores and dashes between words are equal, and one too many does not
/// count. Of several adapters in a file the first is used. Supported forms: low-rank (LoRA), LoKr and LoHa,
/// each with or without DoRA, and full differences of weights and biases.
///
/// The scale of a layer is `alpha / rank`, with alpha from the layer's `alpha` tensor or from PEFT's
/// configuration in the metadata (or in the file that PEFT saves next to the weights); 1 without either. An
/// empty entry of the metadata is none, a value of another kind an error.
#[derive(Debug, Clone)]
pub struct Lora {
    pub(crate) path: PathBuf,
    pub(crate) layers: Vec<(Layer, Vec<LinearAdapter>)>,
    pub(crate) report: LoraReport,
    pub(crate) options: LoraOptions,
    pub(crate) defaults: LoraDefaults,
}

/// Options for opening a LoRA that fits the model only in part, or not at all.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct LoraOptions {
    pub(crate) unmatched: Vec<String>,
    pub(crate) no_effect: bool,
}

impl LoraOptions {
    /// Ignores tensors that match nothing in the model if their names match this pattern, in which `*`
    /// matches any text. May be called several times. Default: no pattern, so any unmatched tensor is an
    /// error.
    pub fn allow_unmatched(mut self, pattern: impl Into<String>) -> Self {
        self.unmatched.push(pattern.into());
        self
    }

    /// Accepts files without effect. Default: they are errors.
    pub fn allow_no_effect(self) -> Self {
        Self {
            no_effect: true,
            ..self
        }
    }

    /// Reads a file, or the one in a LoRA's folder ([`Lora::find`]).
    ///
    /// # Errors
    /// Those of [`Lora::open`], except for the cases that these options allow.
    pub fn open(self, path: impl AsRef<Path>) -> Result<Lora> {
        let lora = Lora {
            options: self,
            ..Lora::read(path.as_ref())?
        };
        let refused = |source| Err(Error::checkpoint(&lora.path)(source));
        let (report, total) = (&lora.report, lora.report.matched + lora.report.unmatched.len());
        if let [first, rest @ ..] = report.not_finite.as_slice() {
            let more = if rest.is_empty() {
                String::new()
            } else {
                format!(" and {} more", rest.len())
            };
            let reason = format!(
                "`{first}`{more} of its {total} tensors hold NaN or infinity: the training diverged, or the file is \
                 damaged; take another file of it"
            );
            return refused(CheckpointError::Lora { reason });
        }
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
    /// Reads a file, or the one in a LoRA's folder ([`Lora::find`]).
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Checkpoint`] if the file is damaged, has tensors for no layer of FLUX.1
    /// (named, with the nearest name), holds NaN or infinity in a factor or an alpha, or would have no
    /// effect.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::options().open(path)
    }

    /// Returns options for opening a file; the defaults are those of [`Lora::open`].
    pub fn options() -> LoraOptions {
        LoraOptions::default()
    }

    /// Reports the content of a file, even if it cannot be used.
    ///
    /// # Errors
    /// Those of [`Lora::find`], [`Error::Io`], and [`Error::Checkpoint`] for a damaged file.
    pub fn inspect(path: impl AsRef<Path>) -> Result<LoraReport> {
        Ok(Self::read(path.as_ref())?.report)
    }

    fn read(path: &Path) -> Result<Self> {
        let path = &Self::find(path)?;
        let weights = Weights::open(path)?;
        let mut report = LoraReport {
            facts: weights.store().metadata(),
            ..LoraReport::default()
        };
        let scaling = Scaling::of(path, &report.facts)?;
        let defaults = LoraDefaults::of_file(path, &report.facts)?;
        let mut layers = Vec::new();
        for factors in sorted(&weights, &mut report)? {
            let layer = factors.key().layer.clone();
            let built = factors.build(&scaling).map_err(|e| broken(path, &layer.module, &e))?;
            report.not_finite.extend(built.not_finite);
            let reason = "the factors of its layer that it goes with are not in the file";
            report.unmatched.extend(built.left.into_iter().map(|name| Unmatched {
                name,
                reason,
                nearest: None,
            }));
            if built.adapters.is_empty() {
                continue;
            }
            report.add(&layer, &built.adapters)?;
            layers.push((layer, built.adapters.into_iter().map(|(_, adapter)| adapter).collect()));
        }
        report.matched = weights.names().len() - report.unmatched.len();
        let dora = report.forms.contains_key(&LoraForm::Dora);
        let undone = layers
            .iter()
            .find(|(layer, _)| !dora && scaling.says_dora(layer.target));
        if let Some((layer, _)) = undone {
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
            defaults,
        })
    }

    /// Ignores more of what matches nothing in the model; see [`LoraOptions::allow_unmatched`].
    #[must_use]
    pub fn allow_unmatched(mut self, pattern: impl Into<String>) -> Self {
        self.options.unmatched.push(pattern.into());
        self
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the report on the file's content.
    #[must_use]
    pub fn report(&self) -> &LoraReport {
        &self.report
    }

    /// Returns the file's metadata, such as training details recorded by its writer.
    #[must_use]
    pub fn facts(&self) -> &BTreeMap<String, String> {
        &self.report.facts
    }

    /// Returns the settings that the file's metadata asks for.
    #[must_use]
    pub fn defaults(&self) -> LoraDefaults {
        self.defaults
    }

    /// Returns the number of layers in the file.
    #[must_use]
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Returns `true` if the file has no layers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }
}

/// Groups the tensors of a file by layer; unmatched ones are added to the report.
fn sorted(weights: &Weights, report: &mut LoraReport) -> Result<Vec<AdapterFactors>> {
    let table = Table::new()?;
    let mut keys = Vec::new();
    for name in weights.names() {
        match key::read(&name, &table, report.wants_hints()) {
            Ok(key) => keys.push((name, key)),
            Err(NoKey { reason, nearest }) => report.unmatched.push(Unmatched { name, reason, nearest }),
        }
    }
    // Some files contain the same LoRA twice; diffusers then uses the one in its own naming.
    let names_transformer = |family| {
        let own = |key: &Key| key.family == family && key.layer.target == LoraTarget::Transformer;
        keys.iter().any(|(_, key)| own(key))
    };
    let twice = names_transformer(LoraFamily::Diffusers) || names_transformer(LoraFamily::OneTrainer);
    let first_adapter = keys.iter().filter_map(|(_, key)| key.adapter.as_ref()).min().cloned();
    let mut layers: BTreeMap<(LoraTarget, Naming, String), AdapterFactors> = BTreeMap::new();
    for (name, key) in keys {
        if key.adapter.is_some() && key.adapter != first_adapter {
            let reason = "of another adapter of PEFT; the first of the file is used";
            report.unmatched.push(Unmatched {
                name,
                reason,
                nearest: None,
            });
            continue;
        }
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
        let factors = layers.entry(layer).or_insert_with(|| AdapterFactors::new(key));
        if factors.has(leaf) {
            let reason = "another tensor of the file is the same factor of the same layer";
            report.unmatched.push(Unmatched {
                name,
                reason,
                nearest: None,
            });
            continue;
        }
        factors.insert(leaf, name.clone(), weights.raw(&name)?);
    }
    Ok(layers.into_values().collect())
}

/// Wraps an error in a layer's tensors.
fn broken(path: &Path, module: &str, error: &Error) -> Error {
    let reason = format!("the tensors of `{module}` make no adapter: {error}; the file is damaged, fetch it again");
    Error::checkpoint(path)(CheckpointError::Lora { reason })
}
