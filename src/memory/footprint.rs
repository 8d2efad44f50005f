//! Memory footprint of a model, and the placements that fit it.

use kontext_core::{Device, Error, Kind, Result, Stage};
use kontext_dit::{DitConfig, DitWeights};
use kontext_formats::Quantize;
use kontext_nn::footprint::WeightBytes;
use kontext_nn::{Offload, Weights};
use kontext_text::{ClipEncoder, T5Config, T5Encoder, TextFootprint};
use kontext_vae::{Tiling, VaeFootprint};

use super::{LoadedParts, Machine, MemoryPlan, StageMemory};
use crate::placement::{Arrangement, Placement};
use crate::{Checkpoint, Plan};

/// Byte sizes of a model's weights by part, and the dimensions that determine its activations.
#[derive(Debug, Clone)]
pub(crate) struct Footprint {
    pub(super) machine: Machine,
    pub(super) text: WeightBytes,
    pub(super) dit: WeightBytes,
    pub(super) modulation: WeightBytes,
    pub(super) vae: u64,
    pub(super) t5: T5Config,
    pub(super) config: DitConfig,
    /// Channels of the autoencoder at full image resolution.
    pub(super) vae_channels: u64,
    /// The requested tiling of the autoencoder.
    pub(super) tiling: Option<Tiling>,
}

impl Footprint {
    pub(crate) fn of(
        checkpoint: &Checkpoint,
        weights: &Weights,
        config: &DitConfig,
        machine: Machine,
        quantize: Option<Quantize>,
        quantize_t5: Option<Quantize>,
        tiling: Option<Tiling>,
    ) -> Result<Self> {
        let Machine { built, stored, .. } = machine;
        let (t5, clip) = (
            T5Encoder::weights(&checkpoint.t5)?,
            ClipEncoder::weights(&checkpoint.clip)?,
        );
        let vae = VaeFootprint::of(&Weights::open(&checkpoint.vae)?, Kind::Float);
        let dit = DitWeights::of(weights, quantize, stored);
        Ok(Self {
            machine,
            text: TextFootprint::weight_bytes(&t5, &clip, quantize_t5, built),
            dit: dit.blocks,
            modulation: dit.modulation,
            vae: vae.weights,
            t5: T5Encoder::config_of(&t5, &checkpoint.t5)?,
            config: config.clone(),
            vae_channels: vae.channels,
            tiling,
        })
    }

    /// Returns the first candidate whose peak fits, or the last.
    pub(crate) fn first_that_fits(
        &self,
        plan: &Plan,
        candidates: &[Arrangement],
        available: u64,
    ) -> Option<Arrangement> {
        let fits = |arrangement: &&Arrangement| self.plan(plan, **arrangement).fits(available);
        candidates.iter().find(fits).or(candidates.last()).copied()
    }

    /// Refuses a run whose stages take more than the free memory, not counting weights already held.
    pub(crate) fn check(
        &self,
        plan: &Plan,
        arrangement: Arrangement,
        loaded: LoadedParts,
        available: u64,
    ) -> Result<()> {
        let memory = self.plan(plan, arrangement);
        let (stage, peak) = memory.peak();
        let held = self.held(arrangement, loaded);
        let needed = peak.saturating_sub(held);
        if needed <= available {
            return Ok(());
        }
        let remedy = self.remedy(plan, arrangement, stage, available.saturating_add(held));
        Err(short(stage, needed, available, remedy))
    }

    /// Explains a libtorch OOM in a stage of a run; returns other errors unchanged.
    pub(crate) fn shortage(
        &self,
        error: Error,
        plan: &Plan,
        arrangement: Arrangement,
        loaded: LoadedParts,
        stage: Stage,
        available: u64,
    ) -> Error {
        let own = self
            .plan(plan, arrangement)
            .stages
            .into_iter()
            .find(|s| s.stage == stage);
        let held = self.held(arrangement, loaded);
        let needed = own.map_or(0, |stage| stage.bytes()).saturating_sub(held);
        let remedy = self.remedy(plan, arrangement, stage, available.saturating_add(held));
        with_remedy(error, stage, needed, available, &remedy)
    }

    /// Explains a libtorch OOM while the parts of a placement are loaded.
    pub(crate) fn shortage_at_load(&self, error: Error, arrangement: Arrangement, available: u64) -> Error {
        let smaller = match arrangement.placement {
            Placement::Resident => "load with Placement::Staged, or with weights of fewer bits",
            _ => "free some of it, or load on another device",
        };
        let held = self.held(arrangement, LoadedParts::ALL);
        with_remedy(error, Stage::Load, held, available, smaller)
    }

    /// Returns the bytes of address space that loading takes on the host: the mapped files, and on a CPU the weights
    /// held.
    pub(crate) fn address_space(&self, arrangement: Arrangement) -> u64 {
        let held = match self.machine.device {
            Device::Cpu => self.held(arrangement, LoadedParts::ALL),
            _ => 0,
        };
        let files = [&self.text, &self.dit, &self.modulation].map(|part| part.stored);
        files.into_iter().chain([self.vae]).fold(held, u64::saturating_add)
    }

    /// Returns the bytes of a budget that the loaded weights leave to a run.
    pub(crate) fn left_of(&self, budget: u64, arrangement: Arrangement, loaded: LoadedParts) -> u64 {
        budget.saturating_sub(self.held(arrangement, loaded))
    }

    /// Returns the bytes of weights held between runs.
    fn held(&self, arrangement: Arrangement, loaded: LoadedParts) -> u64 {
        let held_bytes = |loaded: bool, bytes: u64| if loaded { bytes } else { 0 };
        match arrangement.placement {
            Placement::Staged => 0,
            _ => {
                let text = held_bytes(
                    loaded.text,
                    self.text_encoders(arrangement.left, self.machine.built).held(),
                );
                let dit = held_bytes(
                    loaded.dit,
                    self.transformer(arrangement.left, self.machine.built, false).held(),
                );
                text.saturating_add(dit)
                    .saturating_add(held_bytes(loaded.vae, self.vae))
            }
        }
    }

    /// Plans a run's memory on the model's device.
    pub(crate) fn plan(&self, plan: &Plan, arrangement: Arrangement) -> MemoryPlan {
        let Arrangement { placement, left } = arrangement;
        let compute = plan.compute;
        let text = self.text_encoders(left, compute.text).held();
        let dit = self.transformer(left, compute.transformer, plan.fp8).held();
        let vae = self.autoencoder().held(compute.autoencoder);
        // The autoencoder keeps its copies in the dtype of runs from the first one on.
        let all = self.held(arrangement, LoadedParts::ALL).saturating_add(vae - self.vae);
        let stage_weights = |own: u64| if placement == Placement::Staged { own } else { all };
        let mut stages = vec![StageMemory {
            stage: Stage::Text,
            weights: stage_weights(text),
            work: self.text_work(plan, left),
        }];
        if let Some(largest) = plan.references.iter().map(|r| r.fitted.area()).max() {
            let [held, resizing] = self.reference_images(plan);
            let work = self.encoder_work(plan, largest).max(resizing).saturating_add(held);
            stages.push(StageMemory {
                stage: Stage::References,
                weights: stage_weights(vae),
                work,
            });
        }
        stages.push(StageMemory {
            stage: Stage::Denoise,
            weights: stage_weights(dit),
            work: self.step_work(plan, left),
        });
        let [held, resizing] = self.results(plan);
        let decoding = self.decoder_work(plan, plan.target.size().area());
        let work = decoding.max(resizing).saturating_add(held);
        stages.push(StageMemory {
            stage: Stage::Decode,
            weights: stage_weights(vae),
            work,
        });
        let pages = |part: &WeightBytes, is_left: bool| if is_left { part.stored } else { 0 };
        let file_pages = pages(&self.text, left == Offload::All)
            .saturating_add(pages(&self.dit, left == Offload::All))
            .saturating_add(pages(&self.modulation, left != Offload::None));
        MemoryPlan {
            device: self.machine.device,
            placement,
            stages,
            file_pages,
        }
    }
}

fn short(stage: Stage, needed: u64, available: u64, remedy: impl Into<String>) -> Error {
    let (needed_mb, available_mb) = (needed.div_ceil(1_000_000), available / 1_000_000);
    Error::Memory {
        stage,
        needed_mb,
        available_mb,
        remedy: remedy.into(),
    }
}

/// Turns a libtorch OOM into `Error::Memory`; keeps libtorch's message if the plan predicted a fit.
fn with_remedy(error: Error, stage: Stage, needed: u64, available: u64, smaller: &str) -> Error {
    let Error::Torch { source, .. } = &error else {
        return error;
    };
    if !error.is_out_of_memory() {
        return error;
    }
    if needed > available {
        return short(stage, needed, available, smaller);
    }
    // The first sentences state the requested size; the others are advice for Python.
    let words = source.to_string().split_inclusive(". ").take(2).collect::<String>();
    let words = words.trim_end_matches(['.', ' ']);
    short(
        stage,
        needed,
        available,
        format!("all the same libtorch found too little ({words}); {smaller}"),
    )
}
