//! The parts of a random model, built once for all cases that time them, and the inputs of the cases.

use std::cell::{Ref, RefCell, RefMut};
use std::time::Instant;

use anyhow::anyhow;
use kontext::image::{Rgb, RgbImage};
use kontext::{Conditioning, Device, Dit, Kind, ModelSizes, Parts, Pipeline, Request, Tensor, Tokens};
use kontext_core::noise;
use kontext_dit::{Run, RunInput};
use kontext_kernels::Kernels;
use kontext_sampler::ids::{Origin, grid_ids};
use kontext_sampler::{Grid, Size};

use crate::{device, own};

const SEED: u64 = 7;
/// Number of T5 tokens in FLUX.1 Kontext dev.
const TEXT: i64 = 512;

/// Sizes of the model and of the images.
#[derive(Debug, Clone)]
pub(super) struct Scale {
    pub(super) sizes: ModelSizes,
    /// Divisor of the images' sides.
    pub(super) divisor: u32,
    /// Number of steps of a whole run.
    pub(super) steps: usize,
}

/// An image to denoise.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    pub(super) name: &'static str,
    pub(super) side: u32,
    pub(super) edit: bool,
}

/// A size that no other case has computed.
pub(super) const NEW_SIZE: Work = Work {
    name: "edit 768, a new size",
    side: 768,
    edit: true,
};

/// Cases for which others publish timings too.
pub(super) const WORKS: [Work; 3] = [
    Work {
        name: "edit 1024",
        side: 1024,
        edit: true,
    },
    Work {
        name: "t2i 1024",
        side: 1024,
        edit: false,
    },
    Work {
        name: "edit 512",
        side: 512,
        edit: true,
    },
];

/// The model's parts, built on first use.
pub(super) struct Shared {
    pub(super) device: Device,
    pub(super) kind: Kind,
    pub(super) scale: Scale,
    parts: RefCell<Option<Parts>>,
    kernels: RefCell<Option<Kernels>>,
}

/// Inputs of the transformer in a run.
pub(super) struct Entrance {
    pub(super) conditioning: Conditioning,
    pub(super) target_ids: Tensor,
    pub(super) context: Option<Tokens>,
    /// Noise, or any other tensor of the target's shape [1, L, 4 C].
    pub(super) target: Tensor,
    times: Vec<f32>,
}

impl Scale {
    /// Returns the width and height of an image with sides of `side` pixels at the published size.
    pub(super) fn side(&self, side: u32) -> u32 {
        side / self.divisor
    }
}

impl Shared {
    pub(super) fn new(device: Device, scale: Scale) -> Self {
        let kind = if device.is_cuda() { Kind::BFloat16 } else { Kind::Float };
        Self {
            device,
            kind,
            scale,
            parts: RefCell::new(None),
            kernels: RefCell::new(None),
        }
    }

    /// Builds the parts if necessary, and returns the seconds taken.
    pub(super) fn make(&self) -> anyhow::Result<f64> {
        let begun = Instant::now();
        if self.parts.borrow().is_none() {
            let builder = Pipeline::builder().device(self.device).dtype(self.kind);
            let parts = builder.random_parts(&self.scale.sizes, SEED)?;
            device::synchronize(self.device)?;
            *self.parts.borrow_mut() = Some(parts);
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Returns the parts, built if necessary.
    pub(super) fn parts(&self) -> anyhow::Result<Ref<'_, Parts>> {
        self.make()?;
        Ref::filter_map(self.parts.borrow(), Option::as_ref).map_err(|_| anyhow!("no parts"))
    }

    /// Gives transformer and autoencoder own kernels, or takes them away. Returns the seconds of their compilation,
    /// zero if they were there, and `None` without kernels: on a CPU both compute in f32, which has none.
    pub(super) fn use_kernels(&self, wanted: bool) -> anyhow::Result<Option<f64>> {
        self.make()?;
        let (wanted, begun) = (wanted && self.device.is_cuda(), Instant::now());
        let mut kernels = self.kernels.borrow_mut();
        if wanted && kernels.is_none() {
            *kernels = Some(own::kernels(&own::shape_of(&self.scale.sizes.dit)?, self.device)?);
        }
        let seconds = begun.elapsed().as_secs_f64();
        if let Some(parts) = self.parts.borrow_mut().as_mut() {
            parts.dit.set_kernels(kernels.clone().filter(|_| wanted));
            parts.vae.set_kernels(kernels.clone().filter(|_| wanted));
        }
        Ok(wanted.then_some(seconds))
    }

    /// Takes the parts; the next case that needs them builds them again.
    pub(super) fn take(&self) -> anyhow::Result<Parts> {
        self.make()?;
        let mut parts: RefMut<'_, Option<Parts>> = self.parts.borrow_mut();
        parts.take().ok_or_else(|| anyhow!("no parts"))
    }

    pub(super) fn draw(&self, shape: &[i64], seed: u64) -> anyhow::Result<Tensor> {
        Ok(noise::randn(shape, seed, Kind::Float, self.device)?.f_to_kind(self.kind)?)
    }

    /// Draws the transformer's inputs for this work.
    pub(super) fn entrance(&self, work: Work) -> anyhow::Result<Entrance> {
        let (config, steps, side) = (&self.scale.sizes.dit, self.scale.steps, self.scale.side(work.side));
        let grid: Grid = Size::new(side, side).grid()?;
        let features = [1, grid.tokens(), config.in_channels];
        let ids = |t| grid_ids(grid, Origin { t, y: 0, x: 0 });
        Ok(Entrance {
            conditioning: Conditioning {
                prompt_embeds: self.draw(&[1, TEXT, config.context_dim], 1)?,
                pooled: self.draw(&[1, config.pooled_dim], 2)?,
            },
            target_ids: ids(0)?,
            context: if work.edit {
                Some(Tokens::new(self.draw(&features, 3)?, ids(1)?)?)
            } else {
                None
            },
            target: self.draw(&features, 4)?,
            times: (0..steps)
                .map(|step| 1000.0 * (1.0 - step as f32 / steps as f32))
                .collect(),
        })
    }
}

impl Entrance {
    /// Prepares all steps of a run.
    pub(super) fn prepare(&self, dit: &Dit) -> anyhow::Result<Run> {
        Ok(dit.prepare(&RunInput {
            conditioning: &self.conditioning,
            target_ids: &self.target_ids,
            context: self.context.as_ref(),
            times: &self.times,
            guidance: Some(2500.0),
        })?)
    }

    /// Returns the number of tokens of a step: text, target and context.
    pub(super) fn tokens(&self) -> i64 {
        TEXT + self.target_ids.size()[0] + self.context.as_ref().map_or(0, Tokens::len)
    }
}

/// Returns a run of this work.
pub(super) fn request(work: Work, scale: &Scale, steps: usize) -> Request {
    let side = scale.side(work.side);
    if work.edit {
        return edit(side, steps, 1);
    }
    let request = Request::generate("a lighthouse at dusk, with a boat on its way home");
    request.size(side, side).steps(steps).seed(1)
}

/// Returns an edit of a square image of one level.
pub(super) fn edit(side: u32, steps: usize, level: u8) -> Request {
    let prompt = format!("make it winter, with snow on the roofs and {level} people in warm coats");
    Request::edit(RgbImage::from_pixel(side, side, Rgb([level; 3])), prompt)
        .size(side, side)
        .steps(steps)
        .seed(1)
}
