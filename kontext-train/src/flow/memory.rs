//! The memory that a recipe's training takes at least.

use kontext_core::{Device, Kind, ModelPart, Result, Stage};
use kontext_dit::{Dit, DitConfig, LinearPart};
use kontext_nn::Weights;
use kontext_nn::footprint::{Execution, element_bytes};
use kontext_sampler::Size;

use super::method::{LoraMethod, Method};
use super::recipe::Recipe;
use crate::base::Base;
use crate::memory::{Need, elements};

/// Tensors by the model's width that a block holds for each token next to its MLP: queries, keys and values.
const ATTENTION: u128 = 3;

impl Recipe {
    /// Refuses a recipe that takes more memory than is free: its trained values with their optimizer, the activations
    /// of a batch, and an image in the autoencoder. `parts` are the adapted layers.
    pub(super) fn check_memory(&self, base: &Base, parts: &[LinearPart], device: Device, kind: Kind) -> Result<()> {
        let sizes = self.sizes(base);
        let (values, fewer) = match &self.method {
            Method::Full => (of_all(&base.config)?, "train a LoRA (method.kind = \"lora\")"),
            Method::Lora(lora) => (
                of_adapters(parts, lora),
                "take a lower method.rank or fewer method.targets",
            ),
        };
        let need = Need {
            values,
            average: self.ema > 0.0,
            work: self.work(&base.config, &sizes, kind),
        };
        let stage = Stage::Train {
            part: ModelPart::Transformer,
            step: 1,
        };
        need.check(
            device,
            stage,
            [fewer, "take a smaller data.batch or smaller data.sizes"],
        )?;
        let largest = sizes.iter().map(|size| size.area()).max().unwrap_or_default();
        let footprint = base.vae_footprint()?;
        let execution = Execution {
            device,
            kind: Kind::Float,
        };
        let (work, stage) = if self.every.sample > 0 {
            (footprint.decoder(largest, None, execution), Stage::Decode)
        } else {
            (footprint.encoder(largest, None, execution), Stage::Encode)
        };
        let need = Need {
            values: 0,
            average: false,
            work: u128::from(work),
        };
        need.check(device, stage, ["", "take smaller data.sizes"])
    }

    /// Returns the sizes to which images are resized.
    pub(super) fn sizes(&self, base: &Base) -> Vec<Size> {
        match &self.data.sizes {
            Some(sizes) => sizes.iter().map(|[width, height]| Size::new(*width, *height)).collect(),
            None => base.sizes(),
        }
    }

    /// Returns the bytes that the targets' tokens of a batch take in one block, or in all blocks where all keep their
    /// activations for the backward pass.
    fn work(&self, config: &DitConfig, sizes: &[Size], kind: Kind) -> u128 {
        let least = sizes
            .iter()
            .filter_map(|size| size.grid().ok())
            .map(|grid| grid.tokens());
        let tokens = self.data.batch as u128 * u128::from(least.min().unwrap_or_default().unsigned_abs());
        let kept = self.method == Method::Full && !self.recompute;
        let blocks = if kept {
            config.double_blocks + config.single_blocks
        } else {
            1
        };
        let width = u128::from(config.heads.unsigned_abs()) * u128::from(config.head_dim.unsigned_abs());
        let block = ATTENTION * width + u128::from(config.mlp_width.unsigned_abs());
        let elements = tokens * u128::from(blocks.unsigned_abs()) * block;
        elements.saturating_mul(u128::from(element_bytes(kind)))
    }
}

/// Counts all values of a transformer.
fn of_all(config: &DitConfig) -> Result<u128> {
    let blank = Weights::blank();
    Dit::new(&blank, config, |_| ())?;
    Ok(elements(blank.shapes().values()))
}

/// Counts the values of adapters.
fn of_adapters(parts: &[LinearPart], lora: &LoraMethod) -> u128 {
    let (rank, norms) = (u128::from(lora.rank.unsigned_abs()), u128::from(lora.dora));
    let values = |part: &LinearPart| {
        let (rows, input) = (
            u128::from(part.rows.unsigned_abs()),
            u128::from(part.input.unsigned_abs()),
        );
        rank * (rows + input) + norms * rows
    };
    parts.iter().map(values).sum()
}
