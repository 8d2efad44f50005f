//! How much memory a run takes, told from headers alone.

use std::fmt;

use kontext_core::weights::Quantize;
use kontext_core::{Error, Result, Weights};
use kontext_dit::{DitConfig, names};
use kontext_text::{ClipEncoder, T5Config, T5Encoder};

use crate::{Checkpoint, Placement, Plan};

/// One part in so many of the free memory is left to other programs.
const SPARE: u64 = 20;
/// Bytes of an f32, in which a CPU computes.
const F32: u64 = 4;
/// The codec's bound, and the area of its tiles with their overlap.
const UNTILED_AREA: u64 = crate::encode::UNTILED_AREA as u64;
const TILE_AREA: u64 = 1024 * 1024;
/// Values of a pixel of a whole picture: as pixels, as their sum of tiles, and its weights.
const PICTURES: u64 = 9;
/// Values that are alive at once, by experiment (a model of full width, edits at 256x256 and 512x512, two cores): of the
/// autoencoder's largest activation, and of tensors of all tokens by the transformer's width.
const ALIVE_IN_ENCODER: f64 = 2.0;
const ALIVE_IN_DECODER: f64 = 2.4;
const ALIVE_IN_BLOCK: f64 = 18.4;
/// Bytes of a stage that do not grow with the picture, by the same experiment: the unpacked piece of a weight, buffers of
/// libtorch's threads, and gaps in the heap. Parts whose weights are fewer take no more than those.
const BESIDE_TEXT: u64 = 185_000_000;
const BESIDE_ENCODER: u64 = 150_000_000;
const BESIDE_BLOCK: u64 = 243_000_000;
const BESIDE_DECODER: u64 = 329_000_000;

/// Peak memory of a run, stage by stage.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryPlan {
    /// When the parts are in memory.
    pub placement: Placement,
    /// The stages in their order.
    pub stages: Vec<StageMemory>,
    /// Bytes of files that are read in place: the system's cache, which it gives up when memory is short.
    pub file_pages: u64,
}

/// What one stage of a run takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StageMemory {
    /// What happens, as a gerund.
    pub stage: &'static str,
    /// Bytes of weights that are in memory during the stage.
    pub weights: u64,
    /// Bytes of activations at its peak.
    pub work: u64,
}

impl StageMemory {
    /// Weights and work.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.weights + self.work
    }
}

impl MemoryPlan {
    /// The stage that takes the most, and its bytes, without the program itself and without pages of files.
    #[must_use]
    pub fn peak(&self) -> (&'static str, u64) {
        let most = self.stages.iter().max_by_key(|stage| stage.bytes());
        most.map_or(("running", 0), |stage| (stage.stage, stage.bytes()))
    }
}

impl MemoryPlan {
    /// Whether the peak fits this much memory, with a little left for all else.
    #[must_use]
    pub fn fits(&self, available: u64) -> bool {
        self.peak().1 <= available - available / SPARE
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stage, bytes) = self.peak();
        let (placement, peak, pages) = (self.placement, Bytes(bytes), Bytes(self.file_pages));
        write!(f, "{placement}: {peak} while {stage}, and up to {pages} of files in the system's cache")?;
        for StageMemory { stage, weights, work } in &self.stages {
            write!(f, "\n  {stage}: {} weights + {} activations", Bytes(*weights), Bytes(*work))?;
        }
        Ok(())
    }
}

/// Bytes for people.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1_000_000_000 {
            write!(f, "{} MB", self.0.div_ceil(1_000_000))
        } else {
            write!(f, "{:.2} GB", self.0 as f64 / 1e9)
        }
    }
}

/// The weights of a model's parts in bytes, and the sizes that activations depend on.
#[derive(Debug, Clone)]
pub(crate) struct Footprint {
    text: Part,
    dit: Part,
    modulation: u64,
    vae: u64,
    t5: T5Config,
    config: DitConfig,
    /// Channels of the autoencoder at the picture's size.
    vae_channels: u64,
}

/// Bytes of a part: matrices, which may be left in their file, and the rest.
#[derive(Debug, Clone, Copy, Default)]
struct Part {
    matrices: u64,
    rest: u64,
}

impl Part {
    fn of(weights: &Weights, to: Option<Quantize>, wanted: impl Fn(&str) -> bool) -> Self {
        let mut part = Self::default();
        for (_, (shape, bytes)) in weights.stored_sizes().into_iter().filter(|(name, _)| wanted(name)) {
            let elements = shape.iter().product::<i64>().unsigned_abs();
            match shape.as_slice() {
                [_, columns] => part.matrices += packed(to, *columns, elements, bytes),
                // What is stored wider than f32 shrinks.
                _ => part.rest += bytes.min(F32 * elements),
            }
        }
        part
    }

    fn all(self) -> u64 {
        self.matrices + self.rest
    }
}

/// Bytes of a matrix in memory: as it is stored, or packed at load where it is not packed already.
fn packed(to: Option<Quantize>, columns: i64, elements: u64, stored: u64) -> u64 {
    const HALF: u64 = 2;
    match to.filter(|to| to.fits(columns) && stored >= HALF * elements) {
        Some(to) => elements / to.format().block() as u64 * to.format().bytes() as u64,
        None => stored.min(F32 * elements),
    }
}

impl Footprint {
    pub(crate) fn of(
        checkpoint: &Checkpoint,
        weights: &Weights,
        config: &DitConfig,
        quantize: Option<Quantize>,
        quantize_t5: Option<Quantize>,
    ) -> Result<Self> {
        let (t5, clip) = (T5Encoder::weights(&checkpoint.t5)?, ClipEncoder::weights(&checkpoint.clip)?);
        let vae = Weights::open(&checkpoint.vae)?;
        let (of_t5, of_clip) = (Part::of(&t5, quantize_t5, |_| true), Part::of(&clip, None, |_| true));
        let modulation = Part::of(weights, None, names::is_modulation);
        let last = vae.shapes().into_iter().find(|(name, _)| name.ends_with("decoder.conv_out.weight"));
        Ok(Self {
            // CLIP is small, and always held.
            text: Part { matrices: of_t5.matrices, rest: of_t5.rest + of_clip.all() },
            dit: Part::of(weights, quantize, |name| !names::is_modulation(name)),
            modulation: modulation.all(),
            vae: F32 * vae.account().parameters,
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
        let held = if placement == Placement::Staged { 0 } else { self.held(placement) };
        let (stage, peak) = memory.peak();
        let needed = peak.saturating_sub(held);
        if needed <= available {
            return Ok(());
        }
        let smaller = match placement {
            Placement::Resident => "load with Placement::Staged, make the picture smaller or run fewer at once",
            Placement::Staged if stage == "denoising" => {
                "load with Placement::Streamed, make the picture smaller or run fewer at once"
            }
            _ => "make the picture smaller, run fewer at once, or let the autoencoder work in tiles",
        };
        let (needed_mb, available_mb) = (needed.div_ceil(1_000_000), available / 1_000_000);
        Err(Error::Memory { stage, needed_mb, available_mb, remedy: smaller.to_owned() })
    }

    /// Weights that are in memory between runs.
    fn held(&self, placement: Placement) -> u64 {
        match placement {
            Placement::Staged => 0,
            Placement::Streamed => self.text.rest + self.dit.rest + self.vae,
            _ => self.text.all() + self.dit.all() + self.vae,
        }
    }

    /// What a run takes on a CPU.
    pub(crate) fn plan(&self, plan: &Plan, placement: Placement) -> MemoryPlan {
        let streamed = placement == Placement::Streamed;
        let own = |part: Part| if streamed { part.rest } else { part.all() };
        let (text, dit, all) = (own(self.text), own(self.dit), self.held(placement));
        let alone = |own: u64| if placement == Placement::Staged { own } else { all };
        let mut stages =
            vec![StageMemory { stage: "encoding the prompt", weights: alone(text), work: self.text_work(plan) }];
        if let Some(largest) = plan.references.iter().map(|r| r.fitted.area()).max() {
            let work = self.picture_work(largest, ALIVE_IN_ENCODER) + BESIDE_ENCODER.min(self.vae);
            stages.push(StageMemory { stage: "encoding the reference pictures", weights: alone(self.vae), work });
        }
        stages.push(StageMemory { stage: "denoising", weights: alone(dit), work: self.step_work(plan) });
        let area = plan.target.size().area();
        let work = self.picture_work(area, ALIVE_IN_DECODER) + BESIDE_DECODER.min(self.vae);
        stages.push(StageMemory { stage: "decoding the picture", weights: alone(self.vae), work });
        let file_pages = if streamed { self.text.matrices + self.dit.matrices } else { 0 } + self.modulation;
        MemoryPlan { placement, stages, file_pages }
    }

    fn text_work(&self, plan: &Plan) -> u64 {
        let (tokens, inner) = (plan.text_tokens.unsigned_abs(), (self.t5.num_heads * self.t5.d_kv).unsigned_abs());
        let (width, hidden) = (self.t5.d_model.unsigned_abs(), self.t5.d_ff.unsigned_abs());
        let scores = self.t5.num_heads.unsigned_abs() * tokens * tokens;
        // The bias, and scores before and behind it or before and behind the softmax; or both halves of the MLP.
        let attention = 3 * scores + 4 * tokens * inner;
        let mlp = scores + 3 * tokens * hidden;
        F32 * (attention.max(mlp) + 3 * tokens * width) + BESIDE_TEXT.min(self.text.all())
    }

    fn step_work(&self, plan: &Plan) -> u64 {
        let width = self.config.width().unsigned_abs();
        let batch = plan.batch as u64 * if plan.runs_per_step == 2 { 2 } else { 1 };
        let tokens = plan.tokens().unsigned_abs() * batch;
        let vectors = 12 * self.config.double_blocks + 3 * self.config.single_blocks + 2;
        let tables = vectors.unsigned_abs() * width * plan.schedule.steps() as u64 * plan.runs_per_step as u64;
        let activations = ALIVE_IN_BLOCK * (tokens * width) as f64;
        F32 * (activations as u64 + tables) + BESIDE_BLOCK.min(self.dit.all())
    }

    fn picture_work(&self, area: u64, alive: f64) -> u64 {
        // Above this the codec works tile by tile, and keeps the whole picture beside the tile.
        let (tile, picture) = if area > UNTILED_AREA { (TILE_AREA, PICTURES * area) } else { (area, 0) };
        let largest = F32 * (2 * self.vae_channels * tile + picture);
        (largest as f64 * alive) as u64
    }
}
