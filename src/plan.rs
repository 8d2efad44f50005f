//! The geometry and the schedule of a run, before any heavy work.

mod arrays;
mod sizes;
mod warnings;

use kontext_core::{Device, Error, Kind, Result, range};
use kontext_dit::DitConfig;
use kontext_nn::AttentionKernel;
use kontext_sampler::geometry::{LARGEST_SIDE, TOKEN_PIXELS};
use kontext_sampler::ids::{Origin, origins};
use kontext_sampler::{CfgMode, Conformance, Grid, References, Schedule, Shift, Size};
use kontext_text::Tokenizer;

use crate::compute::ComputeChoice;
use crate::defaults::LARGEST_GUIDANCE;
use crate::fp8::Fp8Choice;
use crate::threads::{Computation, Load};
use crate::{Compute, ModelDefaults, Request, RunThreads, Threads, Warning};
pub(crate) use arrays::check_values;
use arrays::{check_image_latents, check_noise};
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
    /// The reference images.
    pub references: Vec<ReferencePlan>,
    /// Placement of the references.
    pub reference_mode: References,
    /// The target's grid of tokens.
    pub target: Grid,
    /// Size of the returned image, which is resized if it differs from the target's.
    pub output: Size,
    /// Tokens of text.
    pub text_tokens: i64,
    /// Noise levels.
    pub schedule: Schedule,
    /// The embedded guidance value; `None` for a model without guidance.
    pub guidance: Option<f64>,
    /// The kernel of the transformer's attention: the builder's, else the automatic choice for the device and the dtype;
    /// `None` before a load for a device that this machine does not have.
    pub attention: Option<AttentionKernel>,
    /// Model runs per step: 2 with true classifier-free guidance.
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

/// Properties of the model that a plan depends on.
#[derive(Debug, Clone)]
pub(crate) struct ModelFacts {
    pub(crate) sizes: Vec<Size>,
    pub(crate) shift: Shift,
    pub(crate) guidance_embed: bool,
    pub(crate) text_tokens: i64,
    pub(crate) latent_channels: i64,
    pub(crate) defaults: ModelDefaults,
    attention: Option<AttentionKernel>,
    /// The same for runs in bf16.
    attention_in_bf16: Option<AttentionKernel>,
    pub(crate) compute: ComputeChoice,
    pub(crate) fp8: Fp8Choice,
    computation: Computation,
    /// Settings of the model's defaults and of the builder without effect.
    pub(crate) ignored: Vec<Warning>,
}

impl ModelFacts {
    pub(crate) fn new(config: &DitConfig, shift: Shift, text_tokens: usize, defaults: ModelDefaults) -> Self {
        let guidance = defaults.guidance.filter(|_| !config.guidance_embed);
        Self {
            sizes: defaults.sizes(),
            shift,
            guidance_embed: config.guidance_embed,
            text_tokens: text_tokens as i64,
            latent_channels: config.in_channels / 4,
            defaults,
            attention: None,
            attention_in_bf16: None,
            compute: ComputeChoice::all(Kind::Float),
            fp8: Fp8Choice::default(),
            computation: Computation::of(config),
            ignored: guidance
                .map(|guidance| Warning::DefaultGuidanceIgnored { guidance })
                .into_iter()
                .collect(),
        }
    }

    /// Sets the kernel of attention, in the pipeline's dtype and in bf16.
    pub(crate) fn attending(self, attention: Option<AttentionKernel>, in_bf16: Option<AttentionKernel>) -> Self {
        Self {
            attention,
            attention_in_bf16: in_bf16,
            ..self
        }
    }

    /// Sets the kinds of arithmetic. Default: f32.
    pub(crate) fn computing(self, compute: ComputeChoice) -> Self {
        Self { compute, ..self }
    }

    /// Sets the runs that multiply in fp8. Default: none.
    pub(crate) fn multiplying(self, fp8: Fp8Choice) -> Self {
        Self { fp8, ..self }
    }

    /// Sets the device that computes, and the number of threads.
    pub(crate) fn threading(mut self, device: Device, threads: Threads) -> Self {
        self.computation.on_cpu = device == Device::Cpu;
        self.computation.threads = threads;
        self
    }

    /// Adds the settings of the builder without effect.
    pub(crate) fn ignoring(mut self, ignored: Vec<Warning>) -> Self {
        self.ignored.extend(ignored);
        self
    }

    /// Returns the features of a token: the channels of a patch of 2x2 latents.
    pub(crate) fn packed_channels(&self) -> i64 {
        4 * self.latent_channels
    }
}

/// Largest batch size, more than any device holds.
const LARGEST_BATCH: usize = 256;
/// Default steps of a model without guidance, which was distilled to few.
const FEW_STEPS: usize = 4;

impl Plan {
    pub(crate) fn new(request: &Request, facts: &ModelFacts) -> Result<Self> {
        check_request(request)?;
        let inputs = input_sizes(request)?;
        let target = target_size(request, inputs.first().copied(), facts);
        let grid = target.grid()?;
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
        let input = references.first().filter(|_| back).map(|r| r.input);
        check_image_latents(request, &references, facts)?;
        check_noise(request, grid, facts)?;
        let plan = Self {
            conformance: request.conformance,
            reference_mode: request.references,
            target: grid,
            output: input.filter(|_| !request.native_size).unwrap_or(target),
            references,
            text_tokens: facts.text_tokens,
            schedule: schedule(request, grid, facts)?,
            guidance: facts.guidance_embed.then(|| guidance(request, facts)),
            attention: match facts.compute.of(request.conformance).transformer {
                Kind::BFloat16 => facts.attention_in_bf16,
                _ => facts.attention,
            },
            runs_per_step: 1 + usize::from(request.negative().is_some()),
            compute: facts.compute.of(request.conformance),
            fp8: facts.fp8.of(request.conformance),
            batch: request.batch,
            threads: None,
            warnings: Vec::new(),
        };
        let threads = facts.computation.threads(plan.load(request.cfg_mode));
        let mut warnings = warnings::warnings(request, &plan, facts);
        if request.native_size && input.is_none() {
            warnings.push(Warning::NativeSizeIgnored);
        }
        Ok(Self {
            threads,
            warnings,
            ..plan
        })
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

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, r) in self.references.iter().enumerate() {
            let Origin { t, y, x } = r.origin;
            let resize = if r.input == r.fitted {
                "as it is".to_owned()
            } else {
                format!("stretched to {} by Lanczos", r.fitted)
            };
            writeln!(
                f,
                "reference {}: {}, {resize}, {}, {} tokens at (t {t}, y {y}, x {x})",
                index + 1,
                r.input,
                r.grid,
                r.grid.tokens()
            )?;
        }
        writeln!(
            f,
            "target:      {}, {}, {} tokens",
            self.target.size(),
            self.target,
            self.target.tokens()
        )?;
        if self.output == self.target.size() {
            writeln!(f, "output:      {}", self.output)?;
        } else {
            writeln!(
                f,
                "output:      {}, resized from {} by Lanczos",
                self.output,
                self.target.size()
            )?;
        }
        let tokens = (self.text_tokens, self.target.tokens(), self.reference_tokens());
        writeln!(
            f,
            "sequence:    {} tokens ({} text + {} target + {} reference)",
            self.tokens(),
            tokens.0,
            tokens.1,
            tokens.2
        )?;
        let (steps, first) = (
            self.schedule.steps(),
            self.schedule.sigmas().first().copied().unwrap_or_default(),
        );
        writeln!(
            f,
            "steps:       {steps} from sigma {first:.3}, {} model run(s) each",
            self.runs_per_step
        )?;
        match self.guidance {
            Some(guidance) => writeln!(f, "guidance:    {guidance}")?,
            None => writeln!(f, "guidance:    none (the model embeds none)")?,
        }
        if let Some(attention) = self.attention {
            writeln!(f, "attention:   {attention}")?;
        }
        writeln!(f, "arithmetic:  {}{}", self.compute, fp8_note(self.fp8))?;
        write!(f, "images:      {} ({:?} conventions)", self.batch, self.conformance)?;
        if let Some(threads) = self.threads {
            write!(f, "\nthreads:     {threads}")?;
        }
        self.warnings
            .iter()
            .try_for_each(|warning| write!(f, "\nwarning:     {warning}"))
    }
}

/// Returns the addition to the kinds of arithmetic of a run with products in fp8.
fn fp8_note(fp8: bool) -> &'static str {
    if fp8 { ", products of the blocks in fp8" } else { "" }
}

fn check_request(request: &Request) -> Result<()> {
    let optional = [&request.prompt_2, &request.negative_prompt, &request.negative_prompt_2];
    for prompt in optional.into_iter().flatten().chain([&request.prompt]) {
        Tokenizer::check_length(prompt)?;
    }
    check_numbers(request)?;
    if request.strength != 1.0 && request.images.is_empty() {
        return Err(Error::invalid(
            "strength",
            "1 where there is no image to start from",
            request.strength,
        ));
    }
    match request.images.iter().find(|i| i.width() == 0 || i.height() == 0) {
        Some(image) => Err(Error::invalid(
            "reference image",
            "at least one pixel",
            format!("{}x{}", image.width(), image.height()),
        )),
        None => Ok(()),
    }
}

/// Checks the numbers of a request, whatever its images and the model are.
pub(crate) fn check_numbers(request: &Request) -> Result<()> {
    for side in [request.width, request.height].into_iter().flatten() {
        if side == 0 || side > LARGEST_SIDE {
            return Err(Error::invalid(
                "image size",
                format!("1 to {LARGEST_SIDE} pixels on a side"),
                side,
            ));
        }
    }
    let largest = u64::from(LARGEST_SIDE) * u64::from(LARGEST_SIDE);
    let smallest = u64::from(TOKEN_PIXELS) * u64::from(TOKEN_PIXELS);
    if let Some(area) = request.max_area.filter(|a| !(smallest..=largest).contains(a)) {
        return Err(Error::invalid(
            "max_area",
            format!("{smallest} to {largest} pixels"),
            area,
        ));
    }
    if request.max_area.is_some() && request.conformance == Conformance::Bfl {
        return Err(Error::invalid(
            "max_area",
            "none in the conventions of Bfl; give width and height",
            "one",
        ));
    }
    if !(1..=LARGEST_BATCH).contains(&request.batch) {
        return Err(Error::invalid(
            "batch",
            format!("1 to {LARGEST_BATCH} images"),
            request.batch,
        ));
    }
    let values = [
        ("guidance", request.guidance.unwrap_or_default()),
        ("true_cfg", request.true_cfg),
    ];
    if let Some((name, value)) = values
        .into_iter()
        .find(|(_, v)| v.is_nan() || v.abs() > LARGEST_GUIDANCE)
    {
        return Err(Error::invalid(
            name,
            format!("a value from -{LARGEST_GUIDANCE} to {LARGEST_GUIDANCE}"),
            value,
        ));
    }
    for lora in request.loras.iter().flatten() {
        range::finite("scale of a LoRA", lora.scale)?;
    }
    // The target and the shift of the model change the levels, and not which are accepted.
    levels(request, 1, 1, Shift::schnell()).map(drop)
}

/// Returns the request's guidance value, else the model's, else that of the mode.
fn guidance(request: &Request, facts: &ModelFacts) -> f64 {
    request
        .guidance
        .or(facts.defaults.guidance)
        .unwrap_or(request.conformance.default_guidance())
}

fn schedule(request: &Request, target: Grid, facts: &ModelFacts) -> Result<Schedule> {
    let published = if facts.guidance_embed {
        request.conformance.default_steps()
    } else {
        FEW_STEPS
    };
    let default = facts.defaults.steps.unwrap_or(published);
    levels(request, default, target.tokens(), facts.shift)
}

fn levels(request: &Request, default: usize, tokens: i64, shift: Shift) -> Result<Schedule> {
    let conformance = request.conformance;
    let schedule = match &request.sigmas {
        Some(sigmas) => Schedule::from_sigmas(sigmas, tokens, shift, conformance)?,
        None => Schedule::new(request.steps.unwrap_or(default), tokens, shift, conformance)?,
    };
    schedule.strength(request.strength)
}
