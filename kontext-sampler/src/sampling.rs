//! Sampling of the rectified flow from noise to an image: the loop around the step rules.

use std::ops::ControlFlow;

use kontext_core::{Device, During, Error, Kind, Result, Stage, Tensor, check};

use crate::sampler::{Evaluation, Model, Span};
use crate::{Inpainting, Sampler, Schedule};

/// The state passed to an observer after a step.
#[derive(Debug)]
pub struct Step<'a> {
    /// Number of finished steps, from 1.
    pub done: usize,
    /// Total number of steps.
    pub total: usize,
    /// Noise level after the step, in [0, 1].
    pub sigma: f32,
    /// Latents at that level, as tokens [B, L, 4 C].
    pub latents: &'a Tensor,
    /// The last one of the step.
    pub(crate) evaluation: Option<&'a Evaluation>,
}

impl Step<'_> {
    /// Computes the latents of the image that the step predicted, `x - sigma v` of its last evaluation, as tokens
    /// [B, L, 4 C] in f32. Under a mask it is the blended one, in the conventions of
    /// [`Conformance::Diffusers`](crate::Conformance::Diffusers) the model's own.
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails.
    pub fn estimate(&self) -> Result<Tensor> {
        self.evaluation
            .map_or_else(|| Ok(self.latents.f_to_kind(Kind::Float)?), Evaluation::image)
    }
}

/// Integrates `dx / dsigma = velocity(x, time)` over a schedule by [`Sampler::Euler`]; see [`Sampling::run`].
///
/// # Errors
/// Those of [`Sampling::run`].
pub fn integrate(
    latents: &Tensor,
    schedule: &Schedule,
    kind: Kind,
    velocity: impl FnMut(&Tensor, usize) -> Result<Tensor>,
    observe: impl FnMut(&Step<'_>) -> ControlFlow<()>,
) -> Result<Tensor> {
    let no_noise = |_| Err(Error::bug("an Euler step with noise"));
    Sampling::new(schedule, kind).run(latents, no_noise, velocity, observe)
}

/// The way from noise to an image: the levels, the rule of a step, and what of a source stays.
///
/// # Example
/// ```
/// use std::ops::ControlFlow;
/// use kontext_core::{Device, Kind, Tensor, noise};
/// use kontext_sampler::{Conformance, Sampler, Sampling, Schedule, Shift};
///
/// let schedule = Schedule::new(4, 256, Shift::dev(), Conformance::Native)?;
/// let mut generator = noise::Generator::new(7);
/// let mut draw = || generator.randn(&[1, 256, 64], Kind::Float, Device::Cpu);
/// let start = draw()?;
/// // A flow towards an image of zeros: the velocity is x / sigma.
/// let sigmas = schedule.sigmas().to_vec();
/// let velocity = |x: &Tensor, time: usize| Ok(x / f64::from(sigmas[time]));
/// let sampling = Sampling::new(&schedule, Kind::Float).sampler(Sampler::Consistency);
/// let end = sampling.run(&start, |_step| draw(), velocity, |_| ControlFlow::Continue(()))?;
/// assert!(end.abs().max().double_value(&[]) < 1e-5);
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Sampling<'a> {
    schedule: &'a Schedule,
    kind: Kind,
    sampler: Sampler,
    inpainting: Option<&'a Inpainting>,
}

impl<'a> Sampling<'a> {
    /// Creates a sampling of a model whose dtype is `kind`, by [`Sampler::Euler`] and without a mask.
    pub fn new(schedule: &'a Schedule, kind: Kind) -> Self {
        Self {
            schedule,
            kind,
            sampler: Sampler::Euler,
            inpainting: None,
        }
    }

    /// Sets the rule of a step.
    pub fn sampler(self, sampler: Sampler) -> Self {
        Self { sampler, ..self }
    }

    /// Sets the mask outside of which the latents follow a source. Default: none.
    pub fn inpainting(self, inpainting: Option<&'a Inpainting>) -> Self {
        Self { inpainting, ..self }
    }

    /// Samples from noise to an image.
    ///
    /// `velocity` receives the latents [B, L, 4 C] in the model's dtype and the index of their time in
    /// [`Schedule::embedded_times`]; it is called [`Sampler::evaluations`] times. `noise` receives the index of a step
    /// and returns the normal noise [B, L, 4 C] that the step adds; only a sampler with [`Sampler::adds_noise`] asks for
    /// it, in every step but the last. `observe` is called after each step and may cancel the run.
    ///
    /// Non-finite values are detected without a device synchronisation: each step writes a flag, which on a GPU
    /// is read one step later.
    ///
    /// # Errors
    /// Any error of `velocity` and `noise`, [`Error::Cancelled`] if `observe` breaks, [`Error::NotFinite`] with the step.
    pub fn run(
        self,
        latents: &Tensor,
        mut noise: impl FnMut(usize) -> Result<Tensor>,
        mut velocity: impl FnMut(&Tensor, usize) -> Result<Tensor>,
        mut observe: impl FnMut(&Step<'_>) -> ControlFlow<()>,
    ) -> Result<Tensor> {
        let (kind, conformance) = (self.kind, self.schedule.conformance());
        let total = self.schedule.steps();
        let mut latents = latents.f_to_kind(conformance.latents_kind(kind))?;
        let mut rule = self.sampler.rule();
        let mut model = Model {
            kind,
            conformance,
            sigmas: self.schedule.sigmas(),
            inpainting: self.inpainting,
            velocity: &mut velocity,
            noise: &mut noise,
            last: None,
        };
        let mut flag: Option<Tensor> = None;
        for (step, pair) in self.schedule.sigmas().windows(2).enumerate() {
            let span = Span {
                step,
                sigma: pair[0],
                next: pair[1],
                kind,
                conformance,
            };
            latents = rule.step(&latents, &span, &mut model)?;
            if let Some(inpainting) = self.inpainting {
                let stepped = inpainting.stepped(&latents, span.next, kind, conformance);
                latents = stepped.during(span.stage())?;
            }
            // On the CPU the flag is ready at once; on a GPU the previous step's is read while this one runs.
            let fresh = check::finite_flag(&latents)?;
            if latents.device() == Device::Cpu {
                read_flag(step + 1, &fresh)?;
            } else if let Some(flag) = flag.replace(fresh) {
                read_flag(step, &flag)?;
            }
            let observed = observe(&Step {
                done: step + 1,
                total,
                sigma: pair[1],
                latents: &latents,
                evaluation: model.last.as_ref(),
            });
            if observed.is_break() {
                return Err(Error::Cancelled { done: step + 1, total });
            }
        }
        if let Some(flag) = flag {
            read_flag(total, &flag)?;
        }
        Ok(latents)
    }
}

fn read_flag(step: usize, flag: &Tensor) -> Result<()> {
    check::read_finite_flag(Stage::DenoiseStep { step }, flag)
}

/// Mixes an image's latents with noise at the first level of a schedule:
/// `(1 - sigma) * latents + sigma * noise`.
///
/// # Errors
/// [`Error::Torch`] if their shapes differ.
pub fn add_noise(latents: &Tensor, noise: &Tensor, schedule: &Schedule) -> Result<Tensor> {
    let sigma = schedule.sigmas().first().copied().map_or(1.0, f64::from);
    Ok(latents.f_mul_scalar(1.0 - sigma)?.f_add(&noise.f_mul_scalar(sigma)?)?)
}
