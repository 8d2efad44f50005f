//! The parts of a random model, made once for all cases that time them, and the requests that they are timed with.

use std::cell::{Ref, RefCell, RefMut};
use std::time::Instant;

use anyhow::anyhow;
use kontext::image::RgbImage;
use kontext::{Conditioning, Device, Kind, ModelSizes, Parts, Pipeline, Request, Tensor, Tokens};
use kontext_core::noise;
use kontext_dit::{Run, RunInput};
use kontext_sampler::ids::{Origin, grid_ids};
use kontext_sampler::{Grid, Size};

use crate::device;

const SEED: u64 = 7;
/// T5's tokens in FLUX.1 Kontext dev.
const TEXT: i64 = 512;

/// Sizes of the model and of the pictures.
#[derive(Debug, Clone)]
pub(super) struct Scale {
    pub(super) sizes: ModelSizes,
    /// Sides of pictures are divided by this.
    pub(super) divisor: u32,
    /// Steps of a whole run.
    pub(super) steps: usize,
}

/// A picture to be denoised.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    pub(super) name: &'static str,
    pub(super) side: u32,
    pub(super) edit: bool,
}

/// The cases that others publish, too.
pub(super) const WORKS: [Work; 3] = [
    Work { name: "edit 1024", side: 1024, edit: true },
    Work { name: "t2i 1024", side: 1024, edit: false },
    Work { name: "edit 512", side: 512, edit: true },
];

/// The parts, made when they are first wanted.
pub(super) struct Shared {
    pub(super) device: Device,
    pub(super) kind: Kind,
    pub(super) scale: Scale,
    parts: RefCell<Option<Parts>>,
}

/// Everything that enters the transformer.
pub(super) struct Entrance {
    pub(super) run: Run,
    pub(super) target: Tensor,
    pub(super) tokens: i64,
    conditioning: Conditioning,
    target_ids: Tensor,
    context: Option<Tokens>,
    times: Vec<f32>,
}

impl Shared {
    pub(super) fn new(device: Device, scale: Scale) -> Self {
        let kind = if device.is_cuda() { Kind::BFloat16 } else { Kind::Float };
        Self { device, kind, scale, parts: RefCell::new(None) }
    }

    /// Makes the parts, if they are not there; the seconds that it took.
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

    pub(super) fn parts(&self) -> anyhow::Result<Ref<'_, Parts>> {
        self.make()?;
        Ref::filter_map(self.parts.borrow(), Option::as_ref).map_err(|_| anyhow!("no parts"))
    }

    /// The parts, which are made anew for who comes next.
    pub(super) fn take(&self) -> anyhow::Result<Parts> {
        self.make()?;
        let mut parts: RefMut<'_, Option<Parts>> = self.parts.borrow_mut();
        parts.take().ok_or_else(|| anyhow!("no parts"))
    }

    /// Width and height of a picture.
    pub(super) fn side(&self, side: u32) -> u32 {
        side / self.scale.divisor
    }

    pub(super) fn draw(&self, shape: &[i64], seed: u64) -> anyhow::Result<Tensor> {
        Ok(noise::randn(shape, seed, Kind::Float, self.device)?.f_to_kind(self.kind)?)
    }

    /// Makes what a step of this work takes, prepared for a whole run.
    pub(super) fn entrance(&self, work: Work) -> anyhow::Result<Entrance> {
        let config = &self.scale.sizes.dit;
        let side = self.side(work.side);
        let grid: Grid = Size::new(side, side).grid()?;
        let features = [1, grid.tokens(), config.in_channels];
        let ids = |t| grid_ids(grid, Origin { t, y: 0, x: 0 });
        let conditioning = Conditioning {
            prompt_embeds: self.draw(&[1, TEXT, config.context_dim], 1)?,
            pooled: self.draw(&[1, config.pooled_dim], 2)?,
        };
        let context = if work.edit { Some(Tokens::new(self.draw(&features, 3)?, ids(1)?)?) } else { None };
        let steps = self.scale.steps;
        let times: Vec<f32> = (0..steps).map(|step| 1000.0 * (1.0 - step as f32 / steps as f32)).collect();
        let tokens = TEXT + grid.tokens() * if work.edit { 2 } else { 1 };
        let target = self.draw(&features, 4)?;
        let target_ids = ids(0)?;
        let run = self.parts()?.dit.prepare(&input(&conditioning, &target_ids, context.as_ref(), &times))?;
        Ok(Entrance { run, target, tokens, conditioning, target_ids, context, times })
    }

    /// A request of this work, of a whole run.
    pub(super) fn request(&self, work: Work) -> Request {
        let side = self.side(work.side);
        request(work.edit, side, self.scale.steps)
    }
}

impl Entrance {
    /// Prepares the run again.
    pub(super) fn prepare(&self, parts: &Parts) -> anyhow::Result<Run> {
        let context = self.context.as_ref();
        Ok(parts.dit.prepare(&input(&self.conditioning, &self.target_ids, context, &self.times))?)
    }
}

fn input<'a>(
    conditioning: &'a Conditioning,
    target_ids: &'a Tensor,
    context: Option<&'a Tokens>,
    times: &'a [f32],
) -> RunInput<'a> {
    RunInput { conditioning, target_ids, context, times, guidance: Some(2500.0) }
}

/// A request for a square picture.
pub(super) fn request(edit: bool, side: u32, steps: usize) -> Request {
    let prompt = "make it winter, with snow on the roofs and people in warm coats";
    let request = if edit { Request::edit(&RgbImage::new(side, side), prompt) } else { Request::generate(prompt) };
    request.size(side, side).steps(steps).seed(1)
}
