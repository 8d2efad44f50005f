//! LoRAs of a pipeline: their files, their scales, and their adapters for each part.

mod set;

use std::path::PathBuf;
use std::sync::Arc;

use kontext_core::pattern::matches;
use kontext_core::{CheckpointError, Error, Result, printable};
use kontext_dit::DitConfig;
use kontext_lora::{Lora, LoraDefaults, LoraOptions};
use serde::{Deserialize, Serialize};

pub(crate) use self::set::{LoraKey, LoraSet};
use crate::frozen::Frozen;

/// A LoRA with its scale, for the whole of it or by layer.
///
/// # Example
/// ```
/// use kontext::LoraUse;
/// let faint = LoraUse::new("watercolour.safetensors").scale(0.6).layer_scale("single_blocks.*", 0.0);
/// assert_eq!(faint.name(), "watercolour");
/// ```
///
/// A folder of a LoRA is as good as its file; see [`Lora::find`].
#[derive(Debug, Clone)]
#[must_use]
pub struct LoraUse {
    source: Source,
    name: Option<String>,
    /// `None` for that of the file.
    scale: Option<f64>,
    layers: Vec<(String, f64)>,
    unmatched: Vec<String>,
    no_effect: bool,
}

#[derive(Debug, Clone)]
enum Source {
    File(PathBuf),
    Open(Box<Lora>),
}

impl LoraUse {
    /// Takes a LoRA from a file or its folder. It is read when added to a pipeline.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::with_source(Source::File(path.into()))
    }

    /// Takes an open LoRA.
    pub fn of(lora: Lora) -> Self {
        Self::with_source(Source::Open(Box::new(lora)))
    }

    fn with_source(source: Source) -> Self {
        Self {
            source,
            name: None,
            scale: None,
            layers: Vec::new(),
            unmatched: Vec::new(),
            no_effect: false,
        }
    }

    /// Sets the LoRA scale, a number in the range of f32. Default: that which the file asks for
    /// ([`LoraDefaults::scale`]), else 1, as trained; 0 disables it.
    pub fn scale(self, scale: f64) -> Self {
        Self {
            scale: Some(scale),
            ..self
        }
    }

    /// Loads it without activating it, for requests that name it ([`crate::Request::lora`]). The same as a
    /// scale of 0.
    pub fn inactive(self) -> Self {
        self.scale(0.0)
    }

    /// Multiplies the scale of the layers whose names match this pattern: `double_blocks.3.*`,
    /// `*.img_attn.*`, or for text encoders `clip.encoder.layers.0.*`, `t5.encoder.block.0.*`. `*` matches
    /// anything; of several patterns, the last match counts, and the same pattern replaces its earlier scale.
    /// Default: 1 for all.
    ///
    /// A pattern that decides for no layer of this LoRA is an error when it is added to a pipeline: it matches
    /// none, or patterns after it match all of its layers.
    pub fn layer_scale(mut self, pattern: impl Into<String>, scale: f64) -> Self {
        let pattern = pattern.into();
        // CLIP's names lack it in some files.
        let bare = pattern.strip_prefix("clip.text_model.");
        let pattern = bare.map(|rest| format!("clip.{rest}")).unwrap_or(pattern);
        self.layers.retain(|(earlier, _)| *earlier != pattern);
        self.layers.push((pattern, scale));
        self
    }

    /// Sets the name used by [`crate::Request::lora`] and [`crate::Pipeline::set_lora_scale`]. Default: that
    /// of [`Lora::name_of`].
    pub fn named(self, name: impl Into<String>) -> Self {
        Self {
            name: Some(name.into()),
            ..self
        }
    }

    /// Ignores tensors and layers that match nothing in the model if their names match this pattern; see
    /// [`LoraOptions::allow_unmatched`]. May be called several times; one that is not needed changes nothing.
    /// Default: none.
    pub fn allow_unmatched(mut self, pattern: impl Into<String>) -> Self {
        self.unmatched.push(pattern.into());
        self
    }

    /// Accepts a file without effect; see [`LoraOptions::allow_no_effect`]. Default: it is an error. An open
    /// LoRA has an effect, or was allowed to have none.
    pub fn allow_no_effect(self) -> Self {
        Self {
            no_effect: true,
            ..self
        }
    }

    /// Returns `true` if it applies to requests that name no LoRAs.
    pub(crate) fn is_active(&self) -> bool {
        self.scale != Some(0.0)
    }

    /// Returns the settings that the file asks for; of one that is not open only the header is read.
    pub(crate) fn defaults(&self) -> Result<LoraDefaults> {
        match &self.source {
            Source::File(path) => LoraDefaults::in_file(path),
            Source::Open(lora) => Ok(lora.defaults()),
        }
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> String {
        let path = match &self.source {
            Source::File(path) => path,
            Source::Open(lora) => lora.path(),
        };
        self.name.clone().unwrap_or_else(|| Lora::name_of(path))
    }
}

impl<P: Into<PathBuf>> From<P> for LoraUse {
    fn from(path: P) -> Self {
        Self::new(path)
    }
}

/// A LoRA in a pipeline's memory. A clone shares it.
#[derive(Debug, Clone)]
pub struct LoadedLora {
    file: Arc<Frozen<OpenLora>>,
    scale: f64,
}

/// The parts of a loaded LoRA that never change.
#[derive(Debug)]
struct OpenLora {
    name: String,
    layers: Vec<(String, f64)>,
    lora: Lora,
}

impl LoadedLora {
    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.file.name
    }

    /// Returns the scale in runs of requests that name no LoRAs; 0 if it is not active.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Returns the file's content.
    #[must_use]
    pub fn lora(&self) -> &Lora {
        &self.file.lora
    }

    /// Reads the file.
    pub(crate) fn open(usage: LoraUse) -> Result<Self> {
        let name = usage.name();
        usage.layers.iter().try_for_each(|(_, scale)| check_scale(*scale))?;
        let lora = match usage.source {
            Source::File(path) => {
                let options = usage
                    .unmatched
                    .into_iter()
                    .fold(Lora::options(), LoraOptions::allow_unmatched);
                let options = if usage.no_effect {
                    options.allow_no_effect()
                } else {
                    options
                };
                options.open(path)?
            }
            Source::Open(lora) => usage.unmatched.into_iter().fold(*lora, Lora::allow_unmatched),
        };
        let layers = usage.layers;
        let scale = usage.scale.or(lora.defaults().scale).unwrap_or(1.0);
        Self {
            file: Arc::new(Frozen::new(OpenLora { name, layers, lora })),
            scale: 0.0,
        }
        .scaled(scale)
    }

    /// Returns the same LoRA at another scale.
    fn scaled(&self, scale: f64) -> Result<Self> {
        check_scale(scale)?;
        self.file
            .layers
            .iter()
            .try_for_each(|(_, own)| check_scale(scale * own))?;
        let file = Arc::clone(&self.file);
        Ok(Self { file, scale })
    }

    /// Returns the scale of a layer.
    fn layer_scale(&self, layer: &str) -> f64 {
        let layers = &self.file.layers;
        let own = layers.iter().rev().find(|(pattern, _)| matches(pattern, layer));
        self.scale * own.map_or(1.0, |(_, scale)| *scale)
    }

    /// Checks that each pattern decides the scale of a layer that the LoRA changes; one that does not is taken
    /// for a mistake.
    fn check_patterns(&self, config: &DitConfig) -> Result<()> {
        let layers = &self.file.layers;
        if layers.is_empty() {
            return Ok(());
        }
        let names = self.lora().layer_names(config)?;
        let decides = |at: usize| {
            let later = |name: &&String| layers[at + 1..].iter().all(|(pattern, _)| !matches(pattern, name));
            let matched = |name: &&String| matches(&layers[at].0, name);
            names.iter().filter(matched).any(|name| later(&name))
        };
        let Some(idle) = (0..layers.len()).find(|at| !decides(*at)) else {
            return Ok(());
        };
        let (pattern, name) = (&layers[idle].0, printable(self.name()));
        let expected = match names.iter().find(|layer| matches(pattern, layer)) {
            Some(_) => "patterns from the general to the special, as the last match counts; those after it match all \
                        of its layers"
                .to_owned(),
            None => match names.first() {
                Some(first) => format!("a pattern of layers that `{name}` changes, as `{first}`"),
                None => format!("none for `{name}`, which changes no layer"),
            },
        };
        Err(Error::invalid("layer_scale", expected, format!("`{pattern}`")))
    }
}

/// A LoRA of a request: its name among those that the pipeline has loaded, and its scale.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraScale {
    /// The name; see [`LoraUse::named`].
    pub name: String,
    /// The LoRA scale: 1 as trained, 0 disables it. It replaces that of [`LoraUse::scale`]; those of
    /// [`LoraUse::layer_scale`] multiply it.
    pub scale: f64,
}

fn check_scale(scale: f64) -> Result<()> {
    // Adapters are computed in f32.
    if (scale as f32).is_finite() {
        Ok(())
    } else {
        let got = format!("{scale:e}");
        Err(Error::invalid("scale of a LoRA", "a number in the range of f32", got))
    }
}

/// Returns the error for other LoRAs in a fused pipeline.
pub(crate) fn fused_error() -> Error {
    let reason = "they were added to the weights; load the model again without `fuse_loras` to change them".to_owned();
    Error::checkpoint("the pipeline's LoRAs")(CheckpointError::Lora { reason })
}
