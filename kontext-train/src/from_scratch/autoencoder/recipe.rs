//! The recipe of an autoencoder: its architecture and its training.

use serde::{Deserialize, Serialize};

use crate::optim::{AdamWConfig, LrSchedule};
use crate::run::recipe_changes::Comparable;

/// Architecture and training of an autoencoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutoencoderRecipe {
    /// Channels of the latents. Default 16.
    pub latent_channels: i64,
    /// Channels at full size, half, quarter and eighth. Default 16, 32, 64, 64.
    pub channels: [i64; 4],
    /// Residual blocks per level in the encoder; the decoder has one more. Default 1.
    pub layers: i64,
    /// Groups of the group norms; must divide all channel counts. Default 8.
    pub groups: i64,
    /// Batch size. Default 32.
    pub batch: usize,
    /// Width and height to which images are resized first. Default: not resized.
    pub size: Option<[u32; 2]>,
    /// Side of the random square crop, a multiple of 8. Default 64.
    pub crop: u32,
    /// Steps. Default 4000.
    pub steps: u64,
    /// Learning-rate schedule. Default: a peak of 2e-3.
    pub rate: LrSchedule,
    /// Constants of the optimizer. Default: a second-moment decay of 0.99, since all steps are alike, and no
    /// weight decay.
    pub optimizer: AdamWConfig,
    /// Maximum norm of the gradient. Default 1.
    pub clip: f64,
    /// EMA decay of the weights. Default 0.998.
    pub ema: f64,
    /// Weight of the KL divergence of the latents from a normal distribution, averaged over values. Default
    /// 1e-4.
    pub kl_weight: f64,
    /// Weight of the differences of neighbouring pixels. Default 1.
    pub edge_weight: f64,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Steps between saves; 0 saves only at the end. Default 500.
    pub save: u64,
    /// Fields that may differ from those of the state in the run's folder, as `steps` or `rate.peak`; `images`
    /// names the files. The architecture cannot change, and `save` always can. Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resume: Vec<String>,
}

impl Comparable for AutoencoderRecipe {
    const FREE: &'static [&'static str] = &["save", "resume"];
    const FIXED: &'static [&'static str] = &["latent_channels", "channels", "layers", "groups"];

    fn accepted(&self) -> &[String] {
        &self.resume
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
            resume: Vec::new(),
        }
    }
}
