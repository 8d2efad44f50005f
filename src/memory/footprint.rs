//! A model's sizes, and which placements they leave.

use kontext_core::formats::Quantize;
use kontext_core::{Error, Kind, Result};
use kontext_dit::{DitConfig, names};
use kontext_nn::Weights;
use kontext_nn::{LeftInFile, PREFETCH_BUFFERS};
use kontext_text::{ClipEncoder, T5Config, T5Encoder};

use super::part::{Part, size_of};
use super::{DECODING, DENOISING, Machine, MemoryPlan, REFERENCES, StageMemory, TEXT};
use crate::placement::{Arrangement, Placement};
use crate::{Checkpoint, Plan};

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
        let (t5, clip) = (
            T5Encoder::weights(&checkpoint.t5)?,
            ClipEncoder::weights(&checkpoint.clip)?,
        );
        let vae = Weights::open(&checkpoint.vae)?;
        // In f16 the last layer of T5's MLP is f32.
        let of_t5 = |name: &str| {
            if compute == Kind::Half && name.ends_with("wo.weight") {
                Kind::Float
            } else {
                compute
            }
        };
        let of_t5 = Part::of(&t5, quantize_t5, of_t5, |_| true);
        let of_clip = Part::of(&clip, None, |_| compute, |_| true);
        let last = vae
            .shapes()
            .into_iter()
            .find(|(name, _)| name.ends_with("decoder.conv_out.weight"));
        Ok(Self {
            machine,
            // CLIP is small, and always held.
            text: Part {
                rest: of_t5.rest + of_clip.all(),
                ..of_t5
            },
            dit: Part::of(weights, quantize, |_| dtype, |name| !names::is_modulation(name)),
            modulation: Part::of(weights, None, |_| dtype, names::is_modulation),
            vae: size_of(Kind::Float) * vae.store().account().parameters,
            t5: T5Encoder::config_of(&t5, &checkpoint.t5)?,
            config: config.clone(),
            vae_channels: last
                .and_then(|(_, shape)| shape.get(1).copied())
                .unwrap_or(128)
                .unsigned_abs(),
        })
    }

    /// The first of these whose peak fits, or the last.
    pub(crate) fn first_that_fits(&self, plan: &Plan, of: &[Arrangement], available: u64) -> Option<Arrangement> {
        let fits = |arrangement: &&Arrangement| self.plan(plan, **arrangement).fits(available);
        of.iter().find(fits).or(of.last()).copied()
    }

    /// Refuses a run whose stages take more than is free, beside what is held already.
    pub(crate) fn check(&self, plan: &Plan, arrangement: Arrangement, available: u64) -> Result<()> {
        let memory = self.plan(plan, arrangement);
        let (stage, peak) = memory.peak();
        let needed = peak.saturating_sub(self.held(arrangement));
        let smaller = smaller(arrangement.placement, stage);
        if needed <= available {
            Ok(())
        } else {
            Err(short(stage, needed, available, smaller))
        }
    }

    /// What to say where libtorch found too little memory for a stage of a run; other errors as they are.
    pub(crate) fn shortage(
        &self,
        error: Error,
        plan: &Plan,
        arrangement: Arrangement,
        stage: &'static str,
        available: u64,
    ) -> Error {
        let own = self
            .plan(plan, arrangement)
            .stages
            .into_iter()
            .find(|s| s.stage == stage);
        let needed = own
            .map_or(0, |stage| stage.bytes())
            .saturating_sub(self.held(arrangement));
        told(error, stage, needed, available, smaller(arrangement.placement, stage))
    }

    /// What to say where libtorch found too little memory for the parts that a placement holds.
    pub(crate) fn shortage_at_load(&self, error: Error, arrangement: Arrangement, available: u64) -> Error {
        let smaller = match arrangement.placement {
            Placement::Resident => "load with Placement::Staged, or with weights of fewer bits",
            _ => "free some of it, or load on another device",
        };
        told(error, "loading the model", self.held(arrangement), available, smaller)
    }

    /// Weights that are in memory between runs.
    fn held(&self, arrangement: Arrangement) -> u64 {
        match arrangement.placement {
            Placement::Staged => 0,
            _ => self.text(arrangement.left) + self.transformer(arrangement.left) + self.vae,
        }
    }

    /// The text encoders' weights that are in memory while they work.
    fn text(&self, left: LeftInFile) -> u64 {
        if left == LeftInFile::All {
            self.text.rest
        } else {
            self.text.all()
        }
    }

    /// The transformer's weights that are in memory while it works.
    fn transformer(&self, left: LeftInFile) -> u64 {
        match left {
            LeftInFile::None => self.dit.all() + self.modulation.all(),
            LeftInFile::UsedOnce => self.dit.all() + self.modulation.rest,
            LeftInFile::All => self.dit.rest + self.modulation.rest + self.prefetch(),
        }
    }

    /// The buffers that matrices come to a CUDA device through.
    fn prefetch(&self) -> u64 {
        let largest = self.dit.largest.stored.max(self.modulation.largest.stored);
        if self.machine.device.is_cuda() {
            PREFETCH_BUFFERS as u64 * largest
        } else {
            0
        }
    }

    /// What a run takes on the model's device.
    pub(crate) fn plan(&self, plan: &Plan, arrangement: Arrangement) -> MemoryPlan {
        let Arrangement { placement, left } = arrangement;
        let (text, dit, all) = (self.text(left), self.transformer(left), self.held(arrangement));
        let alone = |own: u64| if placement == Placement::Staged { own } else { all };
        let mut stages = vec![StageMemory {
            stage: TEXT,
            weights: alone(text),
            work: self.text_work(plan, left),
        }];
        if let Some(largest) = plan.references.iter().map(|r| r.fitted.area()).max() {
            let work = self.encoder_work(plan, largest);
            stages.push(StageMemory {
                stage: REFERENCES,
                weights: alone(self.vae),
                work,
            });
        }
        stages.push(StageMemory {
            stage: DENOISING,
            weights: alone(dit),
            work: self.step_work(plan, left),
        });
        let work = self.decoder_work(plan, plan.target.size().area());
        stages.push(StageMemory {
            stage: DECODING,
            weights: alone(self.vae),
            work,
        });
        let of = |part: &Part, is_left: bool| if is_left { part.stored } else { 0 };
        let file_pages = of(&self.text, left == LeftInFile::All) + of(&self.dit, left == LeftInFile::All);
        let file_pages = file_pages + of(&self.modulation, left != LeftInFile::None);
        MemoryPlan {
            device: self.machine.device,
            placement,
            stages,
            file_pages,
        }
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
    Error::Memory {
        stage,
        needed_mb,
        available_mb,
        remedy: remedy.into(),
    }
}

/// libtorch's shortage of memory in our words, and in its own where the plan says that there is enough.
fn told(error: Error, stage: &'static str, needed: u64, available: u64, smaller: &str) -> Error {
    let Error::Torch { source, .. } = &error else {
        return error;
    };
    if !error.is_out_of_memory() {
        return error;
    }
    if needed > available {
        return short(stage, needed, available, smaller);
    }
    // The first sentences tell how much was asked for; the others are advice for Python.
    let words = source.to_string().split_inclusive(". ").take(2).collect::<String>();
    let words = words.trim_end_matches(['.', ' ']);
    short(
        stage,
        needed,
        available,
        format!("all the same libtorch found too little ({words}); {smaller}"),
    )
}
