//! LoRAs of a pipeline: their files, their scales, and their adapters for each part.

use std::path::{Path, PathBuf};

use kontext_core::pattern::matches;
use kontext_core::{CheckpointError, Error, Result};
use kontext_dit::{Dit, DitConfig};
use kontext_lora::{Lora, LoraOptions, LoraTarget};
use kontext_nn::Adapters;
use kontext_nn::{AdapterSlots, PendingAdapters};
use kontext_text::TextEncoder;

/// A LoRA with its scale, for the whole of it or by layer.
///
/// # Example
/// ```
/// use kontext::LoraUse;
/// let faint = LoraUse::new("watercolour.safetensors").scale(0.6).layer_scale("single_blocks.*", 0.0);
/// assert_eq!(faint.name(), "watercolour");
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct LoraUse {
    source: Source,
    name: Option<String>,
    scale: f64,
    layers: Vec<(String, f64)>,
    options: LoraOptions,
}

#[derive(Debug, Clone)]
enum Source {
    File(PathBuf),
    Open(Box<Lora>),
}

impl LoraUse {
    /// Takes a LoRA from a file, at scale 1. It is read when added to a pipeline.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::with_source(Source::File(path.into()))
    }

    /// Takes an open LoRA, at scale 1.
    pub fn of(lora: Lora) -> Self {
        Self::with_source(Source::Open(Box::new(lora)))
    }

    fn with_source(source: Source) -> Self {
        Self {
            source,
            name: None,
            scale: 1.0,
            layers: Vec::new(),
            options: Lora::options(),
        }
    }

    /// Sets the LoRA scale. Default: 1, as trained; 0 disables it.
    pub fn scale(self, scale: f64) -> Self {
        Self { scale, ..self }
    }

    /// Multiplies the scale of the layers whose names match this pattern: `double_blocks.3.*`,
    /// `*.img_attn.*`, or for text encoders `clip.*`, `t5.encoder.block.0.*`. `*` matches anything; of
    /// several patterns, the last match counts. Default: 1 for all.
    pub fn layer_scale(mut self, pattern: impl Into<String>, scale: f64) -> Self {
        self.layers.push((pattern.into(), scale));
        self
    }

    /// Sets the name used by [`crate::Pipeline::set_lora_scale`]. Default: the file's name without its
    /// extension.
    pub fn named(self, name: impl Into<String>) -> Self {
        Self {
            name: Some(name.into()),
            ..self
        }
    }

    /// Forwards to [`LoraOptions::allow_unmatched`].
    pub fn allow_unmatched(self, pattern: impl Into<String>) -> Self {
        Self {
            options: self.options.allow_unmatched(pattern),
            ..self
        }
    }

    /// Forwards to [`LoraOptions::allow_no_effect`].
    pub fn allow_no_effect(self) -> Self {
        Self {
            options: self.options.allow_no_effect(),
            ..self
        }
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> String {
        let path = match &self.source {
            Source::File(path) => path,
            Source::Open(lora) => lora.path(),
        };
        self.name.clone().unwrap_or_else(|| stem(path))
    }
}

impl<P: Into<PathBuf>> From<P> for LoraUse {
    fn from(path: P) -> Self {
        Self::new(path)
    }
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// A LoRA of a pipeline.
#[derive(Debug, Clone)]
pub struct ActiveLora {
    name: String,
    scale: f64,
    layers: Vec<(String, f64)>,
    lora: Lora,
}

impl ActiveLora {
    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the scale.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Returns the file's content.
    #[must_use]
    pub fn lora(&self) -> &Lora {
        &self.lora
    }

    fn open(usage: LoraUse) -> Result<Self> {
        let name = usage.name();
        let lora = match usage.source {
            Source::File(path) => usage.options.open(path)?,
            Source::Open(lora) => *lora,
        };
        let opened = Self {
            name,
            scale: usage.scale,
            layers: usage.layers,
            lora,
        };
        match opened
            .layers
            .iter()
            .map(|(_, scale)| *scale)
            .chain([opened.scale])
            .find(|scale| !scale.is_finite())
        {
            Some(scale) => Err(Error::invalid("strength of a LoRA", "a number", scale)),
            None => Ok(opened),
        }
    }

    fn strength(&self, layer: &str) -> f64 {
        let own = self.layers.iter().rev().find(|(pattern, _)| matches(pattern, layer));
        self.scale * own.map_or(1.0, |(_, scale)| *scale)
    }

    /// Checks that each pattern matches a layer; one without a match is taken for a typo.
    fn check_patterns(&self, names: &[String]) -> Result<()> {
        match self
            .layers
            .iter()
            .find(|(pattern, _)| !names.iter().any(|name| matches(pattern, name)))
        {
            Some((pattern, _)) => {
                let expected = format!("a form that a layer of `{}` has, as `double_blocks.3.*`", self.name);
                Err(Error::invalid("layer_scale", expected, format!("`{pattern}`")))
            }
            None => Ok(()),
        }
    }
}

/// All LoRAs of a pipeline.
#[derive(Debug, Clone, Default)]
pub(crate) struct LoraSet(Vec<ActiveLora>);

impl LoraSet {
    /// Opens the files.
    pub(crate) fn open(uses: impl IntoIterator<Item = LoraUse>) -> Result<Self> {
        let mut set = Self::default();
        for usage in uses {
            set.add(usage)?;
        }
        Ok(set)
    }

    pub(crate) fn add(&mut self, usage: LoraUse) -> Result<()> {
        let lora = ActiveLora::open(usage)?;
        if self.0.iter().any(|other| other.name == lora.name) {
            let expected = "a name for each (`LoraUse::named`)";
            return Err(Error::invalid(
                "names of LoRAs",
                expected,
                format!("`{}` twice", lora.name),
            ));
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
        if !scale.is_finite() {
            return Err(Error::invalid("strength of a LoRA", "a number", scale));
        }
        let at = self.position(name)?;
        if let Some(lora) = self.0.get_mut(at) {
            lora.scale = scale;
        }
        Ok(())
    }

    fn position(&self, name: &str) -> Result<usize> {
        let names = || {
            self.0
                .iter()
                .map(|lora| format!("`{}`", lora.name))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let found = self.0.iter().position(|lora| lora.name == name);
        found.ok_or_else(|| {
            let all = if self.0.is_empty() {
                "one that was added; there are none".to_owned()
            } else {
                names()
            };
            Error::invalid("name of a LoRA", all, format!("`{name}`"))
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &ActiveLora> {
        self.0.iter()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the adapters of all LoRAs for a transformer of these sizes.
    pub(crate) fn transformer(&self, config: &DitConfig) -> Result<Adapters> {
        let mut adapters = Adapters::new();
        for lora in &self.0 {
            adapters.extend(lora.lora.adapters(config, |layer| lora.strength(layer))?);
        }
        Ok(adapters)
    }

    /// Returns the adapters of all LoRAs for a text encoder with these layers.
    fn text(&self, target: LoraTarget, layers: &[String]) -> Result<Adapters> {
        let prefix = if target == LoraTarget::Clip { "clip" } else { "t5" };
        let mut adapters = Adapters::new();
        for lora in &self.0 {
            let strength = |layer: &str| lora.strength(&format!("{prefix}.{layer}"));
            adapters.extend(lora.lora.text_adapters(target, layers, strength)?);
        }
        Ok(adapters)
    }

    /// Checks that every layer pattern matches a layer of these parts.
    pub(crate) fn check_patterns(&self, text: &TextEncoder, dit: &Dit) -> Result<()> {
        let named = |prefix: &str, slots: &AdapterSlots| -> Vec<String> {
            slots.layers().iter().map(|layer| format!("{prefix}{layer}")).collect()
        };
        let (clip, t5) = (text.clip().slots(), text.t5().slots());
        let names = [named("", dit.slots()), named("clip.", clip), named("t5.", t5)].concat();
        self.0.iter().try_for_each(|lora| lora.check_patterns(&names))
    }

    /// Validates all adapters of the text encoders and moves them to the device.
    pub(crate) fn prepare_text(&self, text: &TextEncoder) -> Result<Vec<PendingAdapters>> {
        let (clip, t5) = (text.clip().slots(), text.t5().slots());
        Ok(vec![
            clip.prepare(&self.text(LoraTarget::Clip, &clip.layers())?)?,
            t5.prepare(&self.text(LoraTarget::T5, &t5.layers())?)?,
        ])
    }

    /// Validates those of the transformer and moves them to the device.
    pub(crate) fn prepare_dit(&self, dit: &Dit) -> Result<PendingAdapters> {
        dit.slots().prepare(&self.transformer(dit.config())?)
    }
}

/// Returns the error for changing the LoRAs of a fused pipeline.
pub(crate) fn fused_error() -> Error {
    let reason = "they were added to the weights; load the model again without `fuse_loras` to change them".to_owned();
    Error::checkpoint("the pipeline's LoRAs")(CheckpointError::Lora { reason })
}
