//! The base model of a run.

use std::path::{Path, PathBuf};

use kontext::Checkpoint;
use kontext_core::{Device, Kind, Result, Tensor};
use kontext_dit::{Dit, DitConfig};
use kontext_nn::Weights;
use kontext_sampler::{Sampler, SchedulerConfig, Shift, Size};
use kontext_text::{ClipEncoder, T5Encoder, TextEncoder, Tokenizer};
use kontext_vae::{Autoencoder, VaeFootprint};

/// A model folder with its configuration.
#[derive(Debug)]
pub struct Base {
    checkpoint: Checkpoint,
    defaults: kontext::ModelDefaults,
    /// Configuration of the transformer.
    pub config: DitConfig,
    /// Shift of the noise levels.
    pub shift: Shift,
    /// The model's sampler.
    pub sampler: Sampler,
}

impl Base {
    /// Finds the parts of a model in a folder. Reads headers only.
    ///
    /// # Errors
    /// Those of [`Checkpoint::find`].
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let checkpoint = Checkpoint::find(folder.as_ref())?;
        let (_, config) = checkpoint.open_transformer()?;
        let SchedulerConfig { shift, sampler } = checkpoint.sampling(&config)?;
        let defaults = kontext::ModelDefaults::of(&checkpoint.folder)?;
        let shift = defaults.shift.map_or(shift, Shift::Fixed);
        let sampler = defaults.sampler.unwrap_or(sampler);
        Ok(Self {
            checkpoint,
            defaults,
            config,
            shift,
            sampler,
        })
    }

    /// Returns a digest of all files of the model.
    pub(crate) fn digest(&self) -> Result<String> {
        self.checkpoint.digest(&[])
    }

    /// Returns the folder of the model.
    pub(crate) fn folder(&self) -> &Path {
        &self.checkpoint.folder
    }

    /// Returns the files and folders of the model's parts.
    pub(crate) fn parts(&self) -> [&Path; 6] {
        let Checkpoint {
            transformer,
            vae,
            clip,
            t5,
            clip_tokenizer,
            t5_tokenizer,
            ..
        } = &self.checkpoint;
        [transformer, vae, clip, t5, clip_tokenizer, t5_tokenizer].map(PathBuf::as_path)
    }

    /// Returns the model's own defaults.
    pub(crate) fn defaults(&self) -> &kontext::ModelDefaults {
        &self.defaults
    }

    /// Returns the model's preferred image sizes.
    #[must_use]
    pub fn sizes(&self) -> Vec<Size> {
        self.defaults.sizes()
    }

    /// Returns the model's default number of sampling steps.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.defaults
            .steps
            .unwrap_or(kontext::Conformance::Native.default_steps())
    }

    /// Loads the autoencoder, in f32.
    ///
    /// # Errors
    /// Those of [`Autoencoder::open`].
    pub fn vae(&self, device: Device) -> Result<Autoencoder> {
        Autoencoder::open(&self.checkpoint.vae, Kind::Float, device)
    }

    /// Reads the memory footprint of the autoencoder from its headers.
    ///
    /// # Errors
    /// Those of [`Weights::open`].
    pub(crate) fn vae_footprint(&self) -> Result<VaeFootprint> {
        Ok(VaeFootprint::of(&Weights::open(&self.checkpoint.vae)?, Kind::Float))
    }

    /// Loads the text encoders.
    ///
    /// # Errors
    /// Those of opening the encoders and tokenizers.
    pub fn text(&self, compute: Kind, device: Device) -> Result<TextEncoder> {
        let clip = ClipEncoder::open(&self.checkpoint.clip, compute, device)?;
        let t5 = T5Encoder::open(&self.checkpoint.t5, compute, device)?;
        let tokenizer = |path: &Path| Tokenizer::open(path);
        let clip_tokenizer = tokenizer(&self.checkpoint.clip_tokenizer)?;
        let text = TextEncoder::new(clip, clip_tokenizer, t5, tokenizer(&self.checkpoint.t5_tokenizer)?)?;
        let length = self
            .defaults
            .max_sequence_length
            .unwrap_or(TextEncoder::SEQUENCE_LENGTH);
        Ok(text.max_sequence_length(length))
    }

    /// Opens the transformer's weights, under this library's names.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open_transformer`].
    pub fn transformer(&self) -> Result<Weights> {
        Ok(self.checkpoint.open_transformer()?.0)
    }

    /// Reads all tensors of the transformer, under this library's names.
    ///
    /// # Errors
    /// Those of [`Weights::tensor`].
    pub fn transformer_tensors(&self) -> Result<Vec<(String, Tensor)>> {
        all(&self.transformer()?, &self.config)
    }

    /// As [`Base::transformer_tensors`], of a folder that only holds a `transformer` as diffusers saves it.
    ///
    /// # Errors
    /// Those of [`Weights::open`] and [`Weights::tensor`].
    pub fn transformer_of(folder: &Path, config: &DitConfig) -> Result<Vec<(String, Tensor)>> {
        all(
            &Weights::open(folder.join("transformer"))?.named(kontext_dit::names::diffusers),
            config,
        )
    }
}

fn all(weights: &Weights, config: &DitConfig) -> Result<Vec<(String, Tensor)>> {
    let blank = Weights::blank();
    Dit::new(&blank, config, |_| ())?;
    let read = |(name, shape): (String, Vec<i64>)| -> Result<(String, Tensor)> {
        let value = weights.tensor(&name, &shape)?;
        Ok((name, value))
    };
    let tensors = blank.shapes().into_iter().map(read).collect::<Result<_>>()?;
    weights.finish()?;
    Ok(tensors)
}
