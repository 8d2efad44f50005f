//! Edits in turns, with different ways of handing a result to the next turn.

use std::ops::ControlFlow;
use std::sync::Arc;

use kontext::image::RgbImage;
use kontext::session::{DifferenceMap, KeepUnchanged, Turn};
use kontext::{Autoencoder, Kind, Output, Pipeline, Request, Session, Tensor};
use kontext_core::{array, images};
use kontext_sampler::{pack, unpack};

use crate::notes::Notes;
use crate::round_trip::{autoencoder, decode};

/// The form in which a turn's result is the input of the next turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Its latents: the default of a session.
    Latents,
    /// Its image, encoded again.
    Pixels,
    /// Its latents, with the source's restored where nothing changed.
    Keep,
    /// Its image with the source's pixels restored where nothing changed, encoded again.
    KeepPixels,
    /// Its latents, with low frequencies aligned to the statistics of the previous turns.
    Aligned,
}

impl Method {
    /// All methods, in the order of tables.
    pub const ALL: [Self; 5] = [Self::Latents, Self::Pixels, Self::Keep, Self::KeepPixels, Self::Aligned];

    /// Returns the name that tables show.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Latents => "latents",
            Self::Pixels => "pixels",
            Self::Keep => "keep_unchanged",
            Self::KeepPixels => "keep_unchanged, pixels",
            Self::Aligned => "aligned latents",
        }
    }
}

/// A model that runs series of edits.
#[derive(Debug)]
pub struct Walker {
    /// The model.
    pub pipe: Arc<Pipeline>,
    vae: Autoencoder,
    /// The difference map of the methods that keep unchanged pixels.
    pub map: DifferenceMap,
    notes: Notes,
}

impl Walker {
    /// Opens the autoencoder of a loaded model a second time, for [`Method::Aligned`].
    ///
    /// # Errors
    /// If the model was not loaded from a folder, or its autoencoder cannot be read.
    pub fn new(pipe: Pipeline, map: DifferenceMap) -> anyhow::Result<Self> {
        Ok(Self {
            vae: autoencoder(&pipe)?,
            pipe: Arc::new(pipe),
            map,
            notes: Notes::default(),
        })
    }

    /// Runs a turn of a session. Warnings, and text that an encoder does not see, are printed to stderr when
    /// they first come.
    ///
    /// # Errors
    /// If the run fails.
    pub fn turn<'a>(&self, session: &'a mut Session, request: &Request) -> kontext::Result<&'a Turn> {
        session.run_with(request, |event| {
            self.notes.observe("", &event);
            ControlFlow::Continue(())
        })
    }

    /// Runs a request, as [`Walker::turn`].
    fn run(&self, request: &Request) -> kontext::Result<Output> {
        self.pipe.run_with(request, |event| {
            self.notes.observe("", &event);
            ControlFlow::Continue(())
        })
    }

    /// Returns the images after each instruction; turn n has the seed `seed + n`.
    ///
    /// # Errors
    /// If a run fails.
    pub fn walk(
        &self,
        method: Method,
        start: &RgbImage,
        instructions: &[&str],
        seed: u64,
    ) -> anyhow::Result<Vec<RgbImage>> {
        let requests = instructions
            .iter()
            .zip(seed..)
            .map(|(text, seed)| Request::generate(*text).seed(seed));
        if method == Method::Aligned {
            return self.aligned(start, requests);
        }
        let mut session = self.pipe.session(start.clone());
        session.reencode = matches!(method, Method::Pixels | Method::KeepPixels);
        let keeps = matches!(method, Method::Keep | Method::KeepPixels);
        session.keep_unchanged = keeps.then_some(KeepUnchanged::Difference(self.map));
        requests
            .map(|request| Ok(self.turn(&mut session, &request)?.image.clone()))
            .collect()
    }

    fn aligned(&self, start: &RgbImage, requests: impl Iterator<Item = Request>) -> anyhow::Result<Vec<RgbImage>> {
        let grid = self.pipe.plan(&Request::edit(start, ""))?.target;
        let size = grid.size();
        let fitted = images::resize(start, size.width, size.height)?;
        let mut latents = self
            .vae
            .encode_latents(&images::to_tensor(&fitted, Kind::Float, self.pipe.device())?)?;
        let mut average = Statistics::of(&low_band(&latents)?)?;
        let mut images: Vec<RgbImage> = Vec::new();
        for request in requests {
            let context = array::to_array(&pack(&latents)?)?;
            let request = request.reference(images.last().unwrap_or(start)).image_latents(context);
            let result = array::from_array(&self.run(&request)?.latents.view())?;
            latents = average.align(&unpack(&result.f_to_device(self.pipe.device())?, grid)?)?;
            images.push(self.decode(&latents, start)?);
        }
        Ok(images)
    }

    fn decode(&self, latents: &Tensor, like: &RgbImage) -> anyhow::Result<RgbImage> {
        let image = decode(&self.vae, latents)?;
        Ok(images::resize(&image, like.width(), like.height())?)
    }
}

/// Mean and standard deviation of each channel of a low band, `[1, C, 1, 1]`.
///
/// Source: the alignment in the abstract of arXiv 2605.08250 (VAE-LFA): low frequencies of the latents are aligned to the
/// statistics of an exponential moving average over the previous rounds. Filter and rate are ours.
struct Statistics {
    mean: Tensor,
    deviation: Tensor,
}

/// Weight of the newest turn in the moving average.
const RATE: f64 = 0.5;
/// Standard deviation of the low-pass filter, in latents of 8 pixels.
const SIGMA: f64 = 1.0;
/// Channels that hardly vary are only shifted.
const LEAST_DEVIATION: f64 = 1e-3;

impl Statistics {
    fn of(low: &Tensor) -> anyhow::Result<Self> {
        let sides = [2_i64, 3];
        let mean = low.f_mean_dim(sides.as_slice(), true, Kind::Float)?;
        let deviation = low
            .f_sub(&mean)?
            .f_square()?
            .f_mean_dim(sides.as_slice(), true, Kind::Float)?
            .f_sqrt()?;
        Ok(Self {
            mean,
            deviation: deviation.f_clamp_min(LEAST_DEVIATION)?,
        })
    }

    /// Aligns latents to the average, then updates the average by them.
    fn align(&mut self, latents: &Tensor) -> anyhow::Result<Tensor> {
        let low = low_band(latents)?;
        let own = Self::of(&low)?;
        let aligned = low
            .f_sub(&own.mean)?
            .f_div(&own.deviation)?
            .f_mul(&self.deviation)?
            .f_add(&self.mean)?;
        let mixed = |average: &Tensor, own: &Tensor| average.f_lerp(own, RATE);
        (self.mean, self.deviation) = (mixed(&self.mean, &own.mean)?, mixed(&self.deviation, &own.deviation)?);
        Ok(latents.f_sub(&low)?.f_add(&aligned)?)
    }
}

/// Returns latents `[1, C, H, W]` through a gaussian low-pass filter.
fn low_band(latents: &Tensor) -> anyhow::Result<Tensor> {
    let radius = (3.0 * SIGMA).ceil() as i64;
    let weights: Vec<f32> = (-radius..=radius)
        .map(|x| (-0.5 * (x as f64 / SIGMA).powi(2)).exp() as f32)
        .collect();
    let sum: f32 = weights.iter().sum();
    let line = Tensor::f_from_slice(&weights)?
        .f_div_scalar(f64::from(sum))?
        .f_to_device(latents.device())?;
    let length = 2 * radius + 1;
    // Each channel is filtered as a separate image.
    let mut planes = latents.f_transpose(0, 1)?;
    for (sides, shape) in [
        ([radius, radius, 0, 0], [1, 1, 1, length]),
        ([0, 0, radius, radius], [1, 1, length, 1]),
    ] {
        let padded = planes.f_pad(sides.as_slice(), "replicate", None)?;
        let (one, none) = ([1_i64, 1], [0_i64, 0]);
        planes = padded.f_conv2d::<Tensor>(&line.f_reshape(shape)?, None, one, none, one, 1)?;
    }
    Ok(planes.f_transpose(0, 1)?)
}
