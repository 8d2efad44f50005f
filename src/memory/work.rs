//! The parts' own footprints, applied to the sizes of a plan.

use kontext_core::Kind;
use kontext_dit::{DitFootprint, DitWeights, KeptKv, KeptTokens, RunSizes};
use kontext_nn::Offload;
use kontext_nn::footprint::Execution;
use kontext_text::TextFootprint;
use kontext_vae::{Tiling, VaeFootprint};

use super::Footprint;
use crate::Plan;
use crate::encode::default_tiling;

impl Footprint {
    fn execution(&self, kind: Kind) -> Execution {
        Execution {
            device: self.machine.device,
            kind,
        }
    }

    pub(super) fn text_encoders(&self, offload: Offload, compute: Kind) -> TextFootprint<'_> {
        TextFootprint {
            t5: &self.t5,
            weights: self.text,
            offload,
            execution: self.execution(compute),
        }
    }

    pub(super) fn transformer(&self, offload: Offload, compute: Kind, fp8: bool) -> DitFootprint<'_> {
        DitFootprint {
            config: &self.config,
            weights: DitWeights {
                blocks: self.dit,
                modulation: self.modulation,
            },
            offload,
            execution: self.execution(compute),
            fp8,
        }
    }

    pub(super) fn autoencoder(&self) -> VaeFootprint {
        VaeFootprint {
            weights: self.vae,
            channels: self.vae_channels,
        }
    }

    pub(super) fn text_work(&self, plan: &Plan, offload: Offload) -> u64 {
        let encoders = self.text_encoders(offload, plan.compute.text);
        encoders.activations(plan.text_tokens.unsigned_abs())
    }

    pub(super) fn step_work(&self, plan: &Plan, offload: Offload) -> u64 {
        let runs = plan.runs_per_step as u64;
        let kept = self.kept(plan);
        self.transformer(offload, plan.compute.transformer, plan.fp8)
            .activations(RunSizes {
                tokens: plan.tokens().unsigned_abs(),
                batch: (plan.batch as u64).saturating_mul(if runs == 2 { 2 } else { 1 }),
                vectors: (plan.schedule.steps() as u64).saturating_mul(runs),
            })
            .saturating_add(kept)
    }

    /// Returns the bytes that a step cache and the reuse of references keep, for all images and prompts.
    fn kept(&self, plan: &Plan) -> u64 {
        let element = plan.compute.transformer.elt_size_in_bytes() as u64;
        let tokens = [plan.target.tokens(), plan.reference_tokens()].map(i64::unsigned_abs);
        let rows = plan.step_cache.kept_rows(tokens[0], tokens[1]);
        [
            self.config.width().unsigned_abs(),
            element,
            plan.batch as u64,
            plan.runs_per_step as u64,
        ]
        .into_iter()
        .fold(rows, u64::saturating_mul)
        .saturating_add(self.kept_keys(plan))
    }

    /// Returns the bytes of the keys and values that are reused, of all images and prompts.
    pub(super) fn kept_keys(&self, plan: &Plan) -> u64 {
        let Some(reuse) = plan.reference_reuse.as_ref().filter(|_| plan.reads_kept_keys()) else {
            return 0;
        };
        let references = plan.reference_tokens().unsigned_abs();
        let tokens = match reuse.kept_tokens() {
            KeptTokens::Image => references.saturating_add(plan.target.tokens().unsigned_abs()),
            _ => references,
        };
        let samples = (plan.batch as u64).saturating_mul(plan.runs_per_step as u64);
        KeptKv::bytes(&self.config, plan.compute.transformer, tokens, samples)
    }

    pub(super) fn encoder_work(&self, plan: &Plan, area: u64) -> u64 {
        let execution = self.execution(plan.compute.autoencoder);
        self.autoencoder().encoder(area, self.tiles(area), execution)
    }

    pub(super) fn decoder_work(&self, plan: &Plan, area: u64) -> u64 {
        let execution = self.execution(plan.compute.autoencoder);
        self.autoencoder().decoder(area, self.tiles(area), execution)
    }

    /// Returns the tiling of an image of `area` pixels.
    fn tiles(&self, area: u64) -> Option<Tiling> {
        self.tiling.or_else(|| default_tiling(area))
    }
}
