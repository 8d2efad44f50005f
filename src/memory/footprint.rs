//! A model's sizes, and which placements they leave.

use kontext_core::weights::{LeftInFile, Quantize};
use kontext_core::{Error, Kind, Result, Weights};
use kontext_dit::{DitConfig, names};
use kontext_text::{ClipEncoder, T5Config, T5Encoder};

use super::part::{Part, size_of};
use super::{DECODING, DENOISING, Machine, MemoryPlan, REFERENCES, StageMemory, TEXT};
use crate::{Checkpoint, Placement, Plan};

/// The weights of a model's parts in bytes, and the sizes that activations depend on.
#[derive(Debug, Clone)]
pub(crate) struct Footprint {
    pub(super) machine: Machine,
    pub(super) text: Part,
    pub(super) dit: Part,
    pub(super) modulation: Part,
    pub(super) vae: u64,
    pub(super) t5: T5Config,
    pub(super) config: DitConfig,
    /// Channels of the autoencoder at the picture's size.
    pub(super) vae_channels: u64,
}

impl Footprint {
    pub(crate) fn of(
        checkpoint: &Checkpoint,
        weights: &Weights,
        config: &DitConfig,
        machine: Machine,
        quantize: Option<Quantize>,
        quantize_t5: Option<Quantize>,
    ) -> Result<Self> {
        let Machine { dtype, compute, .. } = machine;
        let (t5, clip) = (T5Encoder::weights(&checkpoint.t5)?, ClipEncoder::weights(&checkpoint.clip)?);
        let vae = Weights::open(&checkpoint.vae)?;
        // In f16 the last layer of T5's MLP is f32.
        let of_t5 =
            |name: &str| if compute == Kind::Half && name.ends_with("wo.weight") { Kind::Float } else { compute };
        let of_t5 = Part::of(&t5, quantize_t5, of_t5, |_| true);
        let of_clip = Part::of(&clip, None, |_| compute, |_| true);
        let last = vae.shapes().into_iter().find(|(name, _)| name.ends_with("decoder.conv_out.weight"));
        Ok(Self {
            machine,
            // CLIP is small, and always held.
            text: Part { rest: of_t5.rest + of_clip.all(), ..of_t5 },
            dit: Part::of(weights, quantize, |_| dtype, |name| !names::is_modulation(name)),
            modulation: Part::of(weights, None, |_| dtype, names::is_modulation),
            vae: size_of(Kind::Float) * vae.account().parameters,
            t5: T5Encoder::config_of(&t5, &checkpoint.t5)?,
            config: config.clone(),
            vae_channels: last.and_then(|(_, shape)| shape.get(1).copied()).unwrap_or(128).unsigned_abs(),
        })
    }

    /// The first placement whose peak fits, or the last.
    pub(crate) fn placement(&self, plan: &Plan, available: u64) -> Placement {
        let fits = |placement: &Placement| self.plan(plan, *placement).fits(available);
        Placement::ALL.into_iter().find(fits).unwrap_or(Placement::Streamed)
    }

    /// Refuses a run whose stages take more than is free, beside what is held already.
    pub(crate) fn check(&self, plan: &Plan, placement: Placement, available: u64) -> Result<()> {
        let memory = self.plan(plan, placement);
        let (stage, peak) = memory.peak();
        let needed = peak.saturating_sub(self.held(placement));
        if needed <= available { Ok(()) } else { Err(short(stage, needed, available, smaller(placement, stage))) }
    }

    /// What to say where libtorch found too little memory for a stage of a run; other errors as they are.
    pub(crate) fn shortage(
        &self,
        error: Error,
        plan: &Plan,
        placement: Placement,
        stage: &'static str,
        available: u64,
    ) -> Error {
        let own = self.plan(plan, placement).stages.into_iter().find(|s| s.stage == stage);
        let needed = own.map_or(0, |stage| stage.bytes()).saturating_sub(self.held(placement));
        told(error, stage, needed, available, smaller(placement, stage))
    }

    /// What to say where libtorch found too little memory for the parts that a placement holds.
    pub(crate) fn shortage_at_load(&self, error: Error, placement: Placement, available: u64) -> Error {
        let smaller = match placement {
            Placement::Resident => "load with Placement::Staged, or with weights of fewer bits",
            _ => "free some of it, or load on another device",
        };
        told(error, "loading the model", self.held(placement), available, smaller)
    }

    /// Weights that are in memory between runs.
    fn held(&self, placement: Placement) -> u64 {
        match placement {
            Placement::Staged => 0,
            Placement::Streamed => self.text.rest + self.dit.rest + self.modulation.rest + self.vae,
            _ => self.text.all() + self.transformer(placement) + self.vae,
        }
    }

    /// The transformer's weights that are in memory while it works.
    fn transformer(&self, placement: Placement) -> u64 {
        match placement.left_in_file(self.machine.device) {
            LeftInFile::None => self.dit.all() + self.modulation.all(),
            LeftInFile::UsedOnce => self.dit.all() + self.modulation.rest,
            LeftInFile::All => self.dit.rest + self.modulation.rest,
        }
    }

    /// What a run takes on the model's device.
    pub(crate) fn plan(&self, plan: &Plan, placement: Placement) -> MemoryPlan {
        let streamed = placement == Placement::Streamed;
        let text = if streamed { self.text.rest } else { self.text.all() };
        let (dit, all) = (self.transformer(placement), self.held(placement));
        let alone = |own: u64| if placement == Placement::Staged { own } else { all };
        let mut stages = vec![StageMemory { stage: TEXT, weights: alone(text), work: self.text_work(plan, placement) }];
        if let Some(largest) = plan.references.iter().map(|r| r.fitted.area()).max() {
            let work = self.encoder_work(plan, largest);
            stages.push(StageMemory { stage: REFERENCES, weights: alone(self.vae), work });
        }
        stages.push(StageMemory { stage: DENOISING, weights: alone(dit), work: self.step_work(plan, placement) });
        let work = self.decoder_work(plan, plan.target.size().area());
        stages.push(StageMemory { stage: DECODING, weights: alone(self.vae), work });
        let left = placement.left_in_file(self.machine.device);
        let of = |part: &Part, is_left: bool| if is_left { part.stored } else { 0 };
        let file_pages = of(&self.text, streamed) + of(&self.dit, streamed);
        let file_pages = file_pages + of(&self.modulation, left != LeftInFile::None);
        MemoryPlan { device: self.machine.device, placement, stages, file_pages }
    }
}

/// The next smaller setting.
fn smaller(placement: Placement, stage: &str) -> &'static str {
    match placement {
        Placement::Resident => "load with Placement::Staged, make the picture smaller or run fewer at once",
        Placement::Staged if stage == DENOISING || stage == TEXT => {
            "load with Placement::Streamed, make the picture smaller or run fewer at once"
        }
        _ => "make the picture smaller, run fewer at once, or let the autoencoder work in tiles",
    }
}

fn short(stage: &'static str, needed: u64, available: u64, remedy: impl Into<String>) -> Error {
    let (needed_mb, available_mb) = (needed.div_ceil(1_000_000), available / 1_000_000);
    Error::Memory { stage, needed_mb, available_mb, remedy: remedy.into() }
}

/// libtorch's shortage of memory in our words, and in its own where the plan says that there is enough.
fn told(error: Error, stage: &'static str, needed: u64, available: u64, smaller: &str) -> Error {
    let Error::Torch { source, .. } = &error else { return error };
    if !error.is_out_of_memory() {
        return error;
    }
    if needed > available {
        return short(stage, needed, available, smaller);
    }
    // The first sentences tell how much was asked for; the others are advice for Python.
    let words = source.to_string().split_inclusive(". ").take(2).collect::<String>();
    let words = words.trim_end_matches(['.', ' ']);
    short(stage, needed, available, format!("all the same libtorch found too little ({words}); {smaller}"))
}
