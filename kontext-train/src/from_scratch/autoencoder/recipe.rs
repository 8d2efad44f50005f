//! The recipe of an autoencoder: its architecture and its training.

use std::path::Path;

use kontext_core::range::within;
use kontext_core::{Error, Result};
use kontext_vae::VaeConfig;
use serde::{Deserialize, Serialize};

use crate::bounds::{BATCH, CLIP, DECAY, SEED, STEPS, STEPS_OR_NONE, TERM};
use crate::optim::{AdamWConfig, LrSchedule};
use crate::run::read_toml;
use crate::run::recipe_changes::{Comparable, check_accepted};
use crate::warning::RecipeWarning;

/// Name of the digest of the images.
pub(super) const IMAGE_FILES: &str = "image files";

/// Architecture and training of an autoencoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutoencoderRecipe {
    /// Channels of the latents, from 1 to 65536. Default 16.
    pub latent_channels: i64,
    /// Channels at full size, half, quarter and eighth, each from 1 to 65536. Default 16, 32, 64, 64.
    pub channels: [i64; 4],
    /// Residual blocks per level in the encoder, from 1 to 100; the decoder has one more. Default 1.
    pub layers: i64,
    /// Groups of the group norms; must divide all channel counts. Default 8.
    pub groups: i64,
    /// Batch size, from 1 to 4096. Default 32.
    pub batch: usize,
    /// Width and height to which images are resized first, from 8 to 8192 pixels. Default: not resized.
    pub size: Option<[u32; 2]>,
    /// Side of the random square crop, a multiple of 8 from 8 to 8192. Default 64.
    pub crop: u32,
    /// Steps, from 1 to 10^9. Default 4000.
    pub steps: u64,
    /// Learning-rate schedule. Default: a peak of 2e-3.
    pub rate: LrSchedule,
    /// Constants of the optimizer. Default: a second-moment decay of 0.99, since all steps are alike, and no
    /// weight decay.
    pub optimizer: AdamWConfig,
    /// Maximum norm of the gradient, from 1e-6 to 10^9. Default 1.
    pub clip: f64,
    /// EMA decay of the weights, from 0 to 0.9999999. Default 0.998.
    pub ema: f64,
    /// Weight of the KL divergence of the latents from a normal distribution, averaged over values; from 0 to
    /// 1000. Default 1e-4.
    pub kl_weight: f64,
    /// Weight of the differences of neighbouring pixels, from 0 to 1000. Default 1.
    pub edge_weight: f64,
    /// Seed of all random numbers, from 0 to 2^63 - 1.
    pub seed: u64,
    /// Steps between saves, at most 10^9; 0 saves only at the end. Default 500.
    pub save: u64,
    /// Fields that may differ from those of the state in the run's folder, as `steps` or `rate.peak`;
    /// `image files` names the contents of the files. The architecture cannot change, and `save` always can; a name
    /// that has no effect is refused. Default: none. The key `resume` is read, too.
    #[serde(alias = "resume", skip_serializing_if = "Vec::is_empty")]
    pub accept_changes: Vec<String>,
}

impl Comparable for AutoencoderRecipe {
    const FREE: &'static [&'static str] = &["save", "accept_changes"];
    const FIXED: &'static [&'static str] = &["latent_channels", "channels", "layers", "groups"];
    const OPEN: &'static [&'static str] = &[];
    const FILES: &'static [&'static str] = &[IMAGE_FILES];
    const LOSS: &'static [&'static str] = &["size", "crop", "kl_weight", "edge_weight"];

    fn accepted(&self) -> &[String] {
        &self.accept_changes
    }
}

impl Default for AutoencoderRecipe {
    fn default() -> Self {
        Self {
            latent_channels: 16,
            channels: [16, 32, 64, 64],
            layers: 1,
            groups: 8,
            batch: 32,
            size: None,
            crop: 64,
            steps: 4000,
            rate: LrSchedule {
                peak: 2e-3,
                warmup: 100,
                floor: 0.02,
            },
            optimizer: AdamWConfig {
                beta2: 0.99,
                weight_decay: 0.0,
                ..AdamWConfig::default()
            },
            clip: 1.0,
            ema: 0.998,
            kl_weight: 1e-4,
            edge_weight: 1.0,
            seed: 0,
            save: 500,
            accept_changes: Vec::new(),
        }
    }
}

impl AutoencoderRecipe {
    /// Reads a recipe from a TOML file.
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

    /// Checks the values.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the field and its range.
    pub fn validate(&self) -> Result<()> {
        const CHANNELS: std::ops::RangeInclusive<i64> = 1..=65_536;
        const SIDE: std::ops::RangeInclusive<u32> = 8..=8192;
        within("latent_channels", self.latent_channels, CHANNELS)?;
        within("layers", self.layers, 1..=100)?;
        within("groups", self.groups, CHANNELS)?;
        for channels in self.channels {
            within("channels", channels, CHANNELS)?;
            if channels % self.groups != 0 {
                let expected = format!("multiples of groups, which is {}", self.groups);
                return Err(Error::invalid("channels", expected, channels));
            }
        }
        self.config().validate()?;
        within("batch", self.batch, BATCH)?;
        if let Some([width, height]) = self.size {
            within("width of size", width, SIDE)?;
            within("height of size", height, SIDE)?;
        }
        within("crop", self.crop, SIDE)?;
        if !self.crop.is_multiple_of(8) {
            return Err(Error::invalid("crop", "a multiple of 8", self.crop));
        }
        within("steps", self.steps, STEPS)?;
        self.rate.validate()?;
        self.optimizer.validate()?;
        if self.optimizer.muon {
            let expected = "false: it updates only the blocks of a transformer";
            return Err(Error::invalid("optimizer.muon", expected, true));
        }
        within("clip", self.clip, CLIP)?;
        within("ema", self.ema, DECAY)?;
        within("kl_weight", self.kl_weight, TERM)?;
        within("edge_weight", self.edge_weight, TERM)?;
        within("seed", self.seed, SEED)?;
        within("save", self.save, STEPS_OR_NONE)?;
        check_accepted(self)
    }

    /// Returns the settings that have no effect.
    #[must_use]
    pub fn warnings(&self) -> Vec<RecipeWarning> {
        RecipeWarning::of_rate(&self.rate, self.steps).into_iter().collect()
    }

    /// Returns the configuration of the autoencoder, with unscaled latents.
    pub(super) fn config(&self) -> VaeConfig {
        VaeConfig {
            latent_channels: self.latent_channels,
            block_out_channels: self.channels,
            layers_per_block: self.layers,
            norm_num_groups: self.groups,
            scaling_factor: 1.0,
            shift_factor: 0.0,
            ..VaeConfig::flux()
        }
    }
}
