//! The recipe of the text encoders: their architecture and their training.

use kontext_core::range::within;
use kontext_core::{Device, Error, ModelPart, Result, Stage};
use kontext_nn::Weights;
use serde::{Deserialize, Serialize};

use crate::bounds::{BATCH, SEED, SHARE, STEPS};
use crate::memory::{Need, elements};
use crate::optim::LrSchedule;
use crate::warning::RecipeWarning;

/// Architecture and training of the text encoders.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TextRecipe {
    /// Width of both encoders, a multiple of 32 from 32 to 8192. Default 128.
    pub width: i64,
    /// Layers of each, from 1 to 100. Default 2.
    pub layers: i64,
    /// Sequence length of T5, including padding, from 4 to 4096. Default 20.
    pub t5_tokens: usize,
    /// Maximum sequence length of CLIP, from 4 to 4096. Default 24.
    pub clip_tokens: usize,
    /// Batch size, from 1 to 4096. Default 64.
    pub batch: usize,
    /// Steps of each encoder, from 1 to 10^9. Default 1000.
    pub steps: u64,
    /// Learning-rate schedule.
    pub rate: LrSchedule,
    /// Share of masked words, from 0 to 1. Default 0.2. The recipe key stays `blotted`, so that existing
    /// recipes remain valid.
    #[serde(rename = "blotted")]
    pub masked: f64,
    /// Seed of all random numbers, from 0 to 2^63 - 1.
    pub seed: u64,
}

impl TextRecipe {
    /// Checks the values.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the field and its range.
    pub fn validate(&self) -> Result<()> {
        within("width", self.width, 32..=8192)?;
        if self.width % 32 != 0 {
            return Err(Error::invalid("width", "a multiple of 32", self.width));
        }
        within("layers", self.layers, 1..=100)?;
        within("t5_tokens", self.t5_tokens, 4..=4096)?;
        within("clip_tokens", self.clip_tokens, 4..=4096)?;
        within("batch", self.batch, BATCH)?;
        within("steps", self.steps, STEPS)?;
        self.rate.validate()?;
        within("blotted", self.masked, SHARE)?;
        within("seed", self.seed, SEED).map(drop)
    }

    /// Returns the settings that have no effect.
    #[must_use]
    pub fn warnings(&self) -> Vec<RecipeWarning> {
        RecipeWarning::of_rate(&self.rate, self.steps).into_iter().collect()
    }

    /// Refuses a recipe that takes more memory than is free: for an encoder of these tensors and `tokens`
    /// tokens, its values, its attention, and the logits of the vocabulary.
    pub(super) fn check_memory(&self, encoder: ModelPart, blank: &Weights, tokens: usize, vocab: i64) -> Result<()> {
        let (batch, tokens) = (self.batch as u128, tokens as u128);
        let heads = u128::from(self.width.unsigned_abs() / 32);
        let rows = tokens * heads + u128::from(vocab.unsigned_abs());
        let need = Need {
            values: elements(blank.shapes().values()),
            average: false,
            work: size_of::<f32>() as u128 * batch * tokens * rows,
        };
        let stage = Stage::Train { part: encoder, step: 1 };
        let remedies = [
            "take a smaller width or fewer layers",
            "take a smaller batch or fewer tokens",
        ];
        need.check(Device::Cpu, stage, remedies)
    }
}

impl Default for TextRecipe {
    fn default() -> Self {
        Self {
            width: 128,
            layers: 2,
            t5_tokens: 20,
            clip_tokens: 24,
            batch: 64,
            steps: 1000,
            rate: LrSchedule {
                peak: 2e-3,
                warmup: 50,
                floor: 0.02,
            },
            masked: 0.2,
            seed: 0,
        }
    }
}
