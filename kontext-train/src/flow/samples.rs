//! A grid of samples from the model in training: references, result, target.

use std::path::Path;

use image::{GenericImage, RgbImage};
use kontext_core::{Device, Error, Kind, Result, Tensor, buffer, images, noise};
use kontext_dit::Dit;
use kontext_sampler::{Conformance, Sampler, Schedule, Shift, unpack};
use kontext_vae::Autoencoder;

use crate::dataset::EncodedDataset;
use crate::pass::prepare_steps;

/// White pixels between images.
const GAP: u32 = 4;

/// Noise levels of a sampling and the rule of its steps.
#[derive(Debug, Clone)]
pub(crate) struct Sampling {
    pub(crate) shift: Shift,
    pub(crate) sampler: Sampler,
    pub(crate) steps: usize,
    /// Noise levels in the place of those of the schedule.
    pub(crate) levels: Option<Vec<f32>>,
}

impl Sampling {
    fn schedule(&self, target_tokens: i64) -> Result<Schedule> {
        match &self.levels {
            Some(levels) => Schedule::from_sigmas(levels, target_tokens, self.shift, Conformance::Native),
            None => Schedule::new(self.steps, target_tokens, self.shift, Conformance::Native),
        }
    }
}

/// Model and settings of the grid.
#[derive(Debug)]
pub(crate) struct SampleGrid<'a> {
    pub(crate) dit: &'a Dit,
    pub(crate) vae: &'a Autoencoder,
    pub(crate) sampling: Sampling,
    pub(crate) guidance: f64,
    pub(crate) kind: Kind,
    pub(crate) device: Device,
}

impl SampleGrid<'_> {
    /// Samples each item and writes it as a row: reference images, result, target.
    pub(crate) fn write(&self, dataset: &EncodedDataset, items: &[usize], seed: u64, path: &Path) -> Result<()> {
        let mut rows = Vec::new();
        for &item in items {
            rows.push(self.row(dataset, item, seed)?);
        }
        let width = rows
            .iter()
            .map(|row| row.iter().map(|p| p.width() + GAP).sum::<u32>())
            .max()
            .unwrap_or(1);
        let height = rows
            .iter()
            .map(|row| row.iter().map(|p| p.height() + GAP).max().unwrap_or(0))
            .sum::<u32>();
        let bytes = 3 * width as usize * height.max(1) as usize;
        let white = buffer::filled(u8::MAX, bytes, "the grid of samples")?;
        let grid = RgbImage::from_raw(width, height.max(1), white);
        let mut grid = grid.ok_or_else(|| Error::bug("a grid of samples with other bytes than pixels"))?;
        let mut y = 0;
        for row in &rows {
            let mut x = 0;
            for image in row {
                grid.copy_from(image, x, y).map_err(Error::image(path))?;
                x += image.width() + GAP;
            }
            y += row.iter().map(|p| p.height() + GAP).max().unwrap_or(0);
        }
        kontext::io::save_image(&grid, path, &[])
    }

    fn row(&self, dataset: &EncodedDataset, item: usize, seed: u64) -> Result<Vec<RgbImage>> {
        let batch = dataset.batch(&[item], &[])?;
        let grid = batch.bucket.target;
        let schedule = self.sampling.schedule(grid.tokens())?;
        let run = prepare_steps(self.dit, &batch, &schedule, self.guidance, self.kind)?;
        let (size, mut generator) = (batch.target.size(), noise::Generator::new(seed));
        let mut draw = || generator.randn(&size, Kind::Float, self.device);
        let noise = draw()?;
        let velocity = |x: &Tensor, step: usize| self.dit.forward(&run, step, x);
        let go_on = |_: &kontext_sampler::Step<'_>| std::ops::ControlFlow::Continue(());
        let sampling = kontext_sampler::Sampling::new(&schedule, self.kind).sampler(self.sampling.sampler);
        let tokens = sampling.run(&noise, |_| draw(), velocity, go_on)?;
        let mut row = Vec::new();
        if let Some(context) = &batch.context {
            let mut start = 0;
            for reference in &batch.bucket.references {
                let part = context.features.f_narrow(1, start, reference.tokens())?;
                row.push(self.decode(&unpack(&part, *reference)?)?);
                start += reference.tokens();
            }
        }
        row.push(self.decode(&unpack(&tokens, grid)?)?);
        row.push(self.decode(&unpack(&batch.target, grid)?)?);
        Ok(row)
    }

    fn decode(&self, latents: &Tensor) -> Result<RgbImage> {
        let pixels = self.vae.decode(&latents.f_to_kind(Kind::Float)?)?;
        let none = || Error::bug("decoded latents of no image");
        images::from_tensor(&pixels, images::Rounding::Nearest)?
            .into_iter()
            .next()
            .ok_or_else(none)
    }
}
