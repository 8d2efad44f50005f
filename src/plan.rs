//! The geometry and the schedule of a run, before any heavy work.

mod arrays;
mod check;
mod chosen;
mod display;
mod facts;
mod flops;
mod masked;
mod sizes;
mod warnings;

use kontext_core::{Kind, Result};
use kontext_dit::{ReferenceReuse, StepCache, StepWork};
use kontext_lora::LoraDefaults;
use kontext_nn::AttentionKernel;
use kontext_sampler::ids::{Origin, origins};
use kontext_sampler::{CfgMode, Conformance, Grid, GuidanceSchedule, References, Sampler, Schedule, Shift, Size};

use crate::threads::Load;
use crate::{Compute, Request, RunThreads, Warning};
pub(crate) use arrays::check_values;
use arrays::{check_image_latents, check_noise};
pub(crate) use check::check_numbers;
use check::{check_guidance, check_request, check_reuse};
use chosen::Chosen;
pub(crate) use facts::ModelFacts;
pub use flops::RunFlops;
pub use masked::MaskPlan;
pub(crate) use sizes::stitched_width;
use sizes::{input_sizes, reference_size, target_size};

/// The plan of a run: every size, token count and noise level. Printable.
///
/// By default (in [`Conformance::Native`]) the edited image is stretched to the preferred size nearest in
/// ratio, the target has the same grid, and the result is mapped back to the input's exact size, which undoes
/// the stretch. With `width` and `height` the target has that size.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Plan {
    /// Conventions of the run.
    pub conformance: Conformance,
    /// The part of an image that a run with a mask works on; `None` without a mask.
    pub mask: Option<MaskPlan>,
    /// Set if results are registered with the edited image, and moved into its place.
    pub registers: bool,
    /// The reference images that the model sees.
    pub references: Vec<ReferencePlan>,
    /// Placement of the references.
    pub reference_mode: References,
    /// The target's grid of tokens.
    pub target: Grid,
    /// Size of the returned image, which is resized if it differs from the target's.
    pub output: Size,
    /// Tokens of text.
    pub text_tokens: i64,
    /// Set if parentheses in the prompts weigh words.
    pub prompt_weights: bool,
    /// Noise levels.
    pub schedule: Schedule,
    /// Fixed shift that the request or a LoRA sets; `None` for the model's.
    pub shift: Option<f64>,
    /// The rule of a step.
    pub sampler: Sampler,
    /// Names of the settings that the metadata of a LoRA decided: `steps`, `guidance`, `sampler`, `shift`; see
    /// [`LoraDefaults`].
    pub by_loras: Vec<&'static str>,
    /// The embedded guidance value, that of the first step if each has its own; `None` for a model without guidance.
    pub guidance: Option<f64>,
    /// The guidance values of all steps, if each has its own.
    pub guidance_schedule: Option<GuidanceSchedule>,
    /// The kernel of the transformer's attention: the builder's, else the automatic choice for the device and the dtype;
    /// `None` before a load for a device that this machine does not have.
    pub attention: Option<AttentionKernel>,
    /// Steps that reuse what barely changes.
    pub step_cache: StepCache,
    /// Steps that compute fewer tokens; `None` without references.
    pub reference_reuse: Option<ReferenceReuse>,
    /// Work of each step, or of each evaluation of the model without any reuse; `None` if the step cache
    /// decides while running ([`Output::work`](crate::Output::work)), or edited tokens are chosen then.
    pub work: Option<Vec<StepWork>>,
    /// Floating-point operations of the transformer.
    pub flops: RunFlops,
    /// Model runs per evaluation of the velocity: 2 with true classifier-free guidance.
    pub runs_per_step: usize,
    /// Kinds of arithmetic.
    pub compute: Compute,
    /// Set if fp8 weights of the transformer's blocks are multiplied in fp8; always `false` for a pipeline assembled from
    /// given parts, which multiply as they were built.
    pub fp8: bool,
    /// Number of images.
    pub batch: usize,
    /// Threads of the stages; `None` if they are left as they are, on a GPU.
    pub threads: Option<RunThreads>,
    /// Settings of the request that have no effect, and sizes that may surprise.
    pub warnings: Vec<Warning>,
}

/// The preparation of a reference image for the model.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReferencePlan {
    /// Its size as given (of the joined image, for [`References::Stitch`]).
    pub input: Size,
    /// Its size after stretching, by Lanczos.
    pub fitted: Size,
    /// Its grid of tokens.
    pub grid: Grid,
    /// Origin of its positions.
    pub origin: Origin,
}

impl Plan {
    /// Plans a run without LoRAs that ask for settings.
    pub(crate) fn new(request: &Request, facts: &ModelFacts) -> Result<Self> {
        Self::with_loras(request, facts, &[])
    }

    /// Plans a run with LoRAs that ask for these settings.
    pub(crate) fn with_loras(request: &Request, facts: &ModelFacts, loras: &[LoraDefaults]) -> Result<Self> {
        check_request(request)?;
        let chosen = Chosen::new(request, facts, loras);
        let mask = MaskPlan::new(request, facts)?;
        let inputs = input_sizes(request, mask.as_ref())?;
        let target = target_size(request, inputs.first().copied(), facts);
        let grid = target.grid()?;
        let seen = |index: usize| mask.is_none_or(|mask| mask.context.has(index));
        let inputs: Vec<Size> = inputs
            .into_iter()
            .enumerate()
            .filter_map(|(index, input)| seen(index).then_some(input))
            .collect();
        let fitted: Vec<Size> = inputs
            .iter()
            .map(|input| reference_size(request, *input, target, facts))
            .collect();
        let grids = fitted.iter().map(|size| size.grid()).collect::<Result<Vec<_>>>()?;
        let origins = origins(&grids, request.references);
        let references = inputs.iter().zip(&fitted).zip(grids.iter().zip(origins));
        let references = references
            .map(|((&input, &fitted), (&grid, origin))| ReferencePlan {
                input,
                fitted,
                grid,
                origin,
            })
            .collect::<Vec<_>>();
        let back = request.conformance == Conformance::Native
            && request.references != References::Stitch
            && request.width.is_none()
            && request.height.is_none();
        // The edited image's size, to which the result is mapped.
        let input = match mask.filter(|_| MaskPlan::mixes(request.conformance)) {
            Some(mask) => Some(mask.canvas),
            None => references.first().filter(|_| back).map(|r| r.input),
        };
        check_image_latents(request, &references, facts)?;
        check_noise(request, grid, facts)?;
        check_reuse(request, grid, &references, mask.as_ref())?;
        let edits = !references.is_empty();
        let plan = Self {
            conformance: request.conformance,
            mask,
            registers: request.register && in_place(request, mask.as_ref(), grid, &references),
            reference_mode: request.references,
            target: grid,
            output: input
                .filter(|_| !request.native_size || mask.is_some())
                .unwrap_or(target),
            references,
            text_tokens: facts.text_tokens,
            prompt_weights: request.weighs_words(),
            schedule: levels(request, chosen.steps, grid.tokens(), chosen.shift)?,
            shift: chosen.own_shift,
            sampler: chosen.sampler,
            by_loras: chosen.by_loras,
            guidance: facts.guidance_embed.then_some(chosen.guidance),
            guidance_schedule: request.guidance_schedule.clone().filter(|_| facts.guidance_embed),
            attention: match facts.compute.of(request.conformance).transformer {
                Kind::BFloat16 => facts.attention_in_bf16,
                _ => facts.attention,
            },
            step_cache: request.step_cache,
            reference_reuse: request.reference_reuse.clone().filter(|_| edits),
            work: None,
            flops: RunFlops::default(),
            runs_per_step: 1 + usize::from(request.negative().is_some()),
            compute: facts.compute.of(request.conformance),
            fp8: facts.fp8.of(request.conformance),
            batch: request.batch,
            threads: None,
            warnings: Vec::new(),
        };
        check_guidance(request, plan.schedule.steps())?;
        let plan = plan.with_work(facts, request.cfg_mode)?;
        let threads = facts.computation.threads(plan.load(request.cfg_mode));
        let mut warnings = warnings::warnings(request, &plan, facts);
        warnings.extend(chosen.warnings);
        if request.native_size && input.is_none() {
            warnings.push(Warning::NativeSizeIgnored);
        } else if request.native_size && mask.is_some() {
            warnings.push(Warning::NativeSizeMasked);
        }
        Ok(Self {
            threads,
            warnings,
            ..plan
        })
    }

    /// Returns the size of the image that is decoded: with a mask, of the part that the model sees.
    pub(crate) fn decoded(&self) -> Size {
        match self.mask.filter(|_| MaskPlan::mixes(self.conformance)) {
            Some(mask) => mask.region.size,
            None => self.output,
        }
    }

    /// Returns `true` if the first reference is the edited image.
    pub(crate) fn sees_source(&self) -> bool {
        self.mask.is_none_or(|mask| mask.context.has_source())
    }

    /// Returns the sizes that the numbers of threads depend on.
    fn load(&self, cfg_mode: CfgMode) -> Load {
        let sequence = self.tokens().unsigned_abs();
        let both = if cfg_mode == CfgMode::Batched {
            self.runs_per_step
        } else {
            1
        };
        let images = (self.batch as u64).saturating_mul(both as u64);
        let areas = self.references.iter().map(|reference| reference.fitted.area());
        Load {
            tokens: sequence.saturating_mul(images),
            sequence,
            text_tokens: self.text_tokens.unsigned_abs(),
            pixels: areas.fold(self.target.size().area(), u64::max),
        }
    }

    /// Returns the number of times that the run evaluates the transformer: once or twice a step
    /// ([`Sampler::evaluations`]), times [`Plan::runs_per_step`].
    #[must_use]
    pub fn evaluations(&self) -> usize {
        self.sampler.evaluations(self.schedule.steps()) * self.runs_per_step
    }

    /// Returns the tokens of all references.
    #[must_use]
    pub fn reference_tokens(&self) -> i64 {
        self.references.iter().map(|r| r.grid.tokens()).sum()
    }

    /// Returns the sequence length of the transformer.
    #[must_use]
    pub fn tokens(&self) -> i64 {
        self.target
            .tokens()
            .saturating_add(self.reference_tokens())
            .saturating_add(self.text_tokens)
    }
}

/// Returns `true` if the result shows what the edited image shows, in its place.
fn in_place(request: &Request, mask: Option<&MaskPlan>, target: Grid, references: &[ReferencePlan]) -> bool {
    let same_grid = references.first().is_some_and(|first| first.grid == target);
    request.conformance == Conformance::Native
        && request.references != References::Stitch
        && (mask.is_some() || same_grid)
}

/// Returns the noise levels of a request of `steps` steps.
fn levels(request: &Request, steps: usize, tokens: i64, shift: Shift) -> Result<Schedule> {
    let conformance = request.conformance;
    let schedule = match &request.sigmas {
        Some(sigmas) => Schedule::from_sigmas(sigmas, tokens, shift, conformance)?,
        None => Schedule::new(steps, tokens, shift, conformance)?,
    };
    schedule.strength(request.strength)
}
