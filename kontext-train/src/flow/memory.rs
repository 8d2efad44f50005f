//! The memory that a recipe's training takes at least.

use kontext_core::{Device, Kind, ModelPart, Result, Stage};
use kontext_dit::{Dit, DitConfig, LinearPart};
use kontext_nn::Weights;
use kontext_nn::footprint::{Execution, element_bytes};
use kontext_sampler::Size;

use super::method::{LoraMethod, Method};
use super::recipe::Recipe;
use super::turn::Critic;
use crate::base::Base;
use crate::memory::{Need, elements};

/// Tensors by the model's width that a block holds for each token next to its MLP: queries, keys and values.
const ATTENTION: u128 = 3;

impl Recipe {
    /// Refuses a recipe that takes more memory than is free: its trained values with their optimizer, the
    /// activations of a batch, and an image in the autoencoder. `parts` are the adapted layers.
    pub(super) fn check_memory(&self, base: &Base, parts: &[LinearPart], device: Device, kind: Kind) -> Result<()> {
        let sizes = self.sizes(base);
        let (values, fewer) = match &self.method {
            Method::Full => (of_all(&self.student(base))?, "train a LoRA (method.kind = \"lora\")"),
            Method::Lora(lora) => (
                of_adapters(parts, lora),
                "take a lower method.rank or fewer method.targets",
            ),
        };
        let (heads, teacher) = (self.of_critic(base)?, self.of_teacher(base, kind)?);
        let need = Need {
            values: values + heads,
            average: self.ema > 0.0,
            work: self.work(&base.config, &sizes, kind) + teacher,
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
        let compares = self.every.validate > 0 && self.objective.adversarial().is_some();
        let (work, stage) = if self.every.sample > 0 || compares {
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

    /// Returns the number of values of a critic's heads.
    fn of_critic(&self, base: &Base) -> Result<u128> {
        let objective = self.objective.adversarial();
        let Some(objective) = objective.filter(|objective| objective.has_critic()) else {
            return Ok(0);
        };
        let count = objective.blocks(Critic::blocks_of(base))?.len();
        let values = Critic::sizes(count, base).values(objective.head_width);
        Ok(u128::from(values.unsigned_abs()))
    }

    /// Returns the bytes of a frozen teacher next to the trained values; adapters have it as their base.
    fn of_teacher(&self, base: &Base, kind: Kind) -> Result<u128> {
        let is_second = self.objective.has_teacher() && self.method == Method::Full;
        let values = if is_second { of_all(&base.config)? } else { 0 };
        Ok(values * u128::from(element_bytes(kind)))
    }

    /// Returns the sizes to which images are resized.
    pub(super) fn sizes(&self, base: &Base) -> Vec<Size> {
        match &self.data.sizes {
            Some(sizes) => sizes.iter().map(|[width, height]| Size::new(*width, *height)).collect(),
            None => base.sizes(),
        }
    }

    /// Returns the bytes that the targets' tokens of a batch take in one block, or in all blocks where all
    /// keep their activations for the backward pass.
    fn work(&self, config: &DitConfig, sizes: &[Size], kind: Kind) -> u128 {
        let least = sizes
            .iter()
            .filter_map(|size| size.grid().ok())
            .map(kontext_sampler::Grid::tokens);
        let tokens = self.data.batch as u128 * u128::from(least.min().unwrap_or_default().unsigned_abs());
        let kept = (self.method == Method::Full || self.objective.has_teacher()) && !self.recompute;
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

#[cfg(test)]
mod tests {
    use kontext_core::Error;
    use kontext_dit::linear_parts;

    use super::*;

    #[test]
    fn a_frozen_teacher_counts_next_to_a_whole_student() {
        let folder = tempfile::tempdir().unwrap();
        kontext::random_model(folder.path(), 7, kontext::Layout::Diffusers).unwrap();
        let base = Base::open(folder.path()).unwrap();
        let of = |objective: &str, method: &str| {
            let text = "model = 'm'\nout = 'o'\nsteps = 10\n[data]\nfolder = 'd'\n";
            let text = format!("{text}[objective]\n{objective}\n[method]\nkind = '{method}'\n");
            let recipe: Recipe = toml::from_str(&text).unwrap();
            recipe.of_teacher(&base, Kind::BFloat16).unwrap()
        };
        let whole = 2 * of_all(&base.config).unwrap();
        let control = "kind = 'adversarial'\nadversarial_weight = 0\nmse_weight = 1";
        for (objective, expected) in [
            ("kind = 'guided'", whole),
            ("kind = 'adversarial'", whole),
            (control, 0),
            ("kind = 'flow'", 0),
        ] {
            assert_eq!(of(objective, "full"), expected, "{objective}");
            assert_eq!(of(objective, "lora"), 0, "{objective}");
        }
    }

    #[test]
    fn adapters_of_a_high_rank_are_refused_before_their_memory_is_taken() {
        let config = DitConfig::kontext_dev();
        let all = linear_parts(&config).unwrap();
        let lora = LoraMethod {
            rank: 65_536,
            ..LoraMethod::default()
        };
        let values = of_adapters(&lora.layers(&all).unwrap(), &lora);
        let need = Need {
            values,
            average: false,
            work: 0,
        };
        let error = need.check_in(1_000_000_000_000, Stage::Compute, ["take a lower method.rank", ""]);
        let error = error.unwrap_err();
        assert!(
            matches!(error, Error::Memory { .. }) && error.to_string().contains("method.rank"),
            "{error}"
        );
        // The factors of a layer of 3 rows and 2 columns, and its norms.
        let part = LinearPart {
            rows: 3,
            input: 2,
            ..all[0].clone()
        };
        let dora = LoraMethod {
            rank: 4,
            dora: true,
            ..LoraMethod::default()
        };
        assert_eq!(of_adapters(&[part], &dora), 4 * (3 + 2) + 3);
        assert_eq!(of_all(&config).unwrap() / 1_000_000, 11_901);
    }
}
