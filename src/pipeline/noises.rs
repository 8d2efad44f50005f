//! The seeded noise of a run: that at its start, and that of the steps that add some.

use kontext_core::noise::Generator;
use kontext_core::{Device, Kind, Result, Tensor, array};
use kontext_sampler::pack;

use super::Pipeline;
use crate::{Plan, Request};

/// The generators of a run, one for each image of the batch, seeded with s, s + 1, …
///
/// Each draws latents [1, C, H, W] on the CPU, on every device the same: first the starting noise, then in f32 the
/// noise of each step in turn, as `torch.randn` does from one `torch.Generator("cpu")`. So an image of a batch is
/// that of a run with its seed.
pub(super) struct Noises {
    generators: Vec<Generator>,
    shape: [i64; 4],
    device: Device,
}

impl Noises {
    /// Draws the starting noise as tokens [batch, L, 4 C], unless the request gives it.
    pub(super) fn begin(pipeline: &Pipeline, request: &Request, plan: &Plan, seed: u64) -> Result<(Self, Tensor)> {
        let items = 0..plan.batch as u64;
        let mut noises = Self {
            generators: items.map(|item| Generator::new(seed.wrapping_add(item))).collect(),
            shape: [
                1,
                pipeline.facts.latent_channels,
                2 * plan.target.rows,
                2 * plan.target.cols,
            ],
            device: pipeline.device,
        };
        let kind = plan.conformance.latents_kind(pipeline.precision.dtype);
        let Some(given) = &request.noise else {
            let start = noises.draw(kind)?;
            return Ok((noises, start));
        };
        if plan.sampler.adds_noise() {
            // The steps' noise is the same with the start drawn or given.
            drop(noises.draw(kind)?);
        }
        let tokens = array::from_array(&given.view())?;
        Ok((noises, tokens.f_to_kind(kind)?.f_to_device(pipeline.device)?))
    }

    /// Draws the noise of the next step, as tokens [batch, L, 4 C] in f32.
    pub(super) fn next(&mut self) -> Result<Tensor> {
        self.draw(Kind::Float)
    }

    fn draw(&mut self, kind: Kind) -> Result<Tensor> {
        let (shape, device) = (self.shape, self.device);
        let draw = |generator: &mut Generator| pack(&generator.randn(&shape, kind, device)?);
        let items = self.generators.iter_mut().map(draw).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_cat(&items, 0)?)
    }
}
