//! Sampling under a mask: where it is 0 the latents follow the source, where it is 1 the model.

use kontext_core::{Kind, Result, Tensor, check};

use crate::schedule::rounding;
use crate::{Conformance, pack};

/// The mask of a run, the latents of its source, and its noise, all as tokens.
///
/// In [`Conformance::Native`] the image that a step predicts is blended with the source, by the velocity
/// `v' = m v + (1 - m) (x - source) / sigma`, so that every sampler keeps its rule and values between 0 and 1 are soft;
/// at the end the latents under 0 are the source's to the bit. In the other conventions the latents after each step are
/// `(1 - m) (sigma noise + (1 - sigma) source) + m x`, with the noise of the start and a clean source after the last
/// step.
///
/// Source: huggingface/diffusers 0.38 `pipelines/flux/pipeline_flux_kontext_inpaint.py`,
/// `FluxKontextInpaintPipeline.__call__`; the blend of the prediction as in comfyanonymous/ComfyUI
/// `comfy/samplers.py`, `KSamplerX0Inpaint`.
///
/// # Example
/// ```
/// use std::ops::ControlFlow;
/// use kontext_core::{Device, Kind, Tensor};
/// use kontext_sampler::{Conformance, Inpainting, Sampling, Schedule, Shift, pack};
///
/// let schedule = Schedule::new(4, 4, Shift::schnell(), Conformance::Native)?;
/// let source = Tensor::full([1, 16, 4, 4], 0.5, (Kind::Float, Device::Cpu));
/// let noise = pack(&Tensor::ones([1, 16, 4, 4], (Kind::Float, Device::Cpu)))?;
/// // The right half is repainted, by a model whose image is 2 everywhere.
/// let mask = Tensor::from_slice(&[0.0_f32, 0.0, 1.0, 1.0]).expand([1, 1, 4, 4], false);
/// let inpainting = Inpainting::new(&mask, &source, &noise)?;
/// let sigmas = schedule.sigmas().to_vec();
/// let velocity = |x: &Tensor, time: usize| Ok((x - 2.0) / f64::from(sigmas[time]));
/// let sampling = Sampling::new(&schedule, Kind::Float).inpainting(Some(&inpainting));
/// let end = sampling.run(&noise, |_| unreachable!(), velocity, |_| ControlFlow::Continue(()))?;
/// let of_token = |token| Vec::<f32>::try_from(end.get(0).get(token)).unwrap();
/// assert!(of_token(0).iter().all(|&value| value == 0.5));
/// assert!(of_token(1).iter().all(|&value| (value - 2.0).abs() < 1e-6));
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Inpainting {
    /// [1, L, 4 C], f32.
    mask: Tensor,
    /// [1, L, 4 C].
    source: Tensor,
    /// [B, L, 4 C].
    noise: Tensor,
}

impl Inpainting {
    /// Creates it from a mask [1, 1, H, W] with values from 0 (the source) to 1 (repainted), the source's latents
    /// [1, C, H, W], and the noise of the run's start as tokens [B, L, 4 C].
    ///
    /// # Errors
    /// [`Error::Shape`](kontext_core::Error::Shape) if a shape does not fit.
    pub fn new(mask: &Tensor, source: &Tensor, noise: &Tensor) -> Result<Self> {
        let [_, channels, height, width] = check::dims("source", source, "[1, C, H, W]")?;
        let sizes = [1, 1, height, width].map(Some);
        check::shape("mask", mask, "[1, 1, H, W]", &sizes)?;
        let mask = pack(
            &mask
                .f_to_kind(Kind::Float)?
                .f_expand([1, channels, height, width], false)?,
        )?;
        let source = pack(source)?;
        let sizes = [None, Some(source.size()[1]), Some(source.size()[2])];
        check::shape("noise", noise, "[B, L, 4 C]", &sizes)?;
        let noise = noise.shallow_clone();
        Ok(Self { mask, source, noise })
    }

    /// Blends the velocity `v` at latents `x` of level `sigma`, in f32.
    pub(crate) fn velocity(&self, x: &Tensor, v: &Tensor, sigma: f32, conformance: Conformance) -> Result<Tensor> {
        if conformance != Conformance::Native {
            return Ok(v.shallow_clone());
        }
        let wide = |tensor: &Tensor| tensor.f_to_kind(Kind::Float);
        let (x, v, source) = (wide(x)?, wide(v)?, wide(&self.source)?);
        let to_source = x.f_sub(&source)?.f_div_scalar(f64::from(sigma))?;
        // From the velocity towards the source, of which nothing must be left under 1.
        let kept = self.mask.f_neg()?.f_add_scalar(1.0)?;
        Ok(v.f_mul(&self.mask)?.f_add(&to_source.f_mul(&kept)?)?)
    }

    /// Returns the latents after a step to level `next`, whose dtype is `kind`.
    pub(crate) fn stepped(&self, x: &Tensor, next: f32, kind: Kind, conformance: Conformance) -> Result<Tensor> {
        if conformance == Conformance::Native {
            if next > 0.0 {
                return Ok(x.shallow_clone());
            }
            let kept = self.mask.f_eq(0.0)?.f_expand(x.size(), false)?;
            return Ok(self.source.f_to_kind(x.kind())?.f_where_self(&kept, x)?);
        }
        let source = if next > 0.0 {
            let round = rounding(kind);
            let sigma = round(next);
            let signal = self.source.f_mul_scalar(f64::from(round(1.0 - sigma)))?;
            self.noise.f_mul_scalar(f64::from(sigma))?.f_add(&signal)?
        } else {
            self.source.shallow_clone()
        };
        let mask = self.mask.f_to_kind(x.kind())?;
        let kept = mask.f_neg()?.f_add_scalar(1.0)?.f_mul(&source)?;
        Ok(kept.f_add(&mask.f_mul(x)?)?)
    }
}
