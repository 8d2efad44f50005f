//! Training of an autoencoder: reconstruction, sharp edges, and latents near a normal distribution.
//!
//! Source of the objective: arXiv 2112.10752 (latent diffusion) appendix G, with a term for the
//! differences of neighbouring pixels in place of a perceptual network and a discriminator.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use image::RgbImage;
use kontext_core::{Device, Error, Kind, Result, Tensor, noise, picture};
use kontext_nn::Weights;
use kontext_vae::{AutoencoderKl, VaeConfig};
use rand::RngExt;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::params::RESUME;
use crate::random::{Stream, generator};
use crate::{AdamW, AdamWConfig, Ema, Params, Rate, Snapshot, initial};

/// How an autoencoder is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AutoencoderRecipe {
    /// Channels of the latents. Default 16.
    pub latent_channels: i64,
    /// Channels at full size, half, quarter and eighth. Default 16, 32, 64, 64.
    pub channels: [i64; 4],
    /// Residual blocks of a level in the encoder; the decoder has one more. Default 1.
    pub layers: i64,
    /// Groups of the normalisations; a divisor of all channels. Default 8.
    pub groups: i64,
    /// Pictures of a batch. Default 32.
    pub batch: usize,
    /// Width and height that pictures are brought to first; as they are if not given.
    pub size: Option<[u32; 2]>,
    /// Side of the square that is cut from a picture at random, a multiple of 8. Default 64.
    pub crop: u32,
    /// Steps. Default 4000.
    pub steps: u64,
    /// The learning rate. Default: up to 2e-3.
    pub rate: Rate,
    /// The optimizer's constants. Default: a long memory, since all steps are alike.
    pub optimizer: AdamWConfig,
    /// Largest norm of a gradient. Default 1.
    pub clip: f64,
    /// Memory of the moving average. Default 0.998.
    pub ema: f64,
    /// Weight of the distance of latents from a normal distribution, each value's mean. Default 1e-4.
    pub kl_weight: f64,
    /// Weight of the differences of neighbouring pixels. Default 1.
    pub edge_weight: f64,
    /// Seed of everything random.
    pub seed: u64,
    /// Steps between states; 0 for the end alone. Default 500.
    pub save: u64,
}

impl Default for AutoencoderRecipe {
    fn default() -> Self {
        Self {
            latent_channels: 16,
            channels: [16, 32, 64, 64],
            layers: 1,
            groups: 8,
            batch: 32,
            size: None,
            crop: 64,
            steps: 4000,
            rate: Rate {
                peak: 2e-3,
                warmup: 100,
                floor: 0.02,
            },
            optimizer: AdamWConfig {
                beta2: 0.99,
                weight_decay: 0.0,
                ..AdamWConfig::default()
            },
            clip: 1.0,
            ema: 0.998,
            kl_weight: 1e-4,
            edge_weight: 1.0,
            seed: 0,
            save: 500,
        }
    }
}

/// What a step tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AutoencoderReport {
    /// Steps done.
    pub step: u64,
    /// Steps of the run.
    pub total: u64,
    /// Everything that is minimised.
    pub loss: f64,
    /// Decibels of the batch's reconstruction.
    pub psnr: f64,
    /// Root mean square of the latents' means.
    pub latent_rms: f64,
    /// Crops a second since this part of the run began.
    pub items_per_second: f64,
}

/// A run on pictures that are held in memory as bytes.
#[derive(Debug)]
pub struct AutoencoderTrainer {
    recipe: AutoencoderRecipe,
    config: VaeConfig,
    pictures: Vec<Tensor>, // [3, H, W], bytes
    params: Params,
    optimizer: AdamW,
    ema: Ema,
    state: PathBuf,
    step: u64,
    device: Device,
}

impl AutoencoderTrainer {
    /// Reads the pictures and takes up the state in `out`, if there is one.
    ///
    /// # Errors
    /// [`Error::Image`] and [`Error::Io`] for pictures that cannot be read,
    /// [`Error::InvalidArgument`] where they are smaller than the crops.
    pub fn open(recipe: AutoencoderRecipe, pictures: &[PathBuf], out: &Path, device: Device) -> Result<Self> {
        let config = VaeConfig {
            latent_channels: recipe.latent_channels,
            block_out_channels: recipe.channels,
            layers_per_block: recipe.layers,
            norm_num_groups: recipe.groups,
            scaling_factor: 1.0,
            shift_factor: 0.0,
            ..VaeConfig::flux()
        };
        config.validate()?;
        if recipe.crop == 0 || !recipe.crop.is_multiple_of(8) {
            return Err(Error::invalid("crop", "a multiple of 8", recipe.crop));
        }
        std::fs::create_dir_all(out).map_err(Error::io(out))?;
        let read = |path: &PathBuf| {
            let picture = picture::open(path)?;
            let sized = recipe
                .size
                .map(|[width, height]| picture::resize(&picture, width, height))
                .transpose()?;
            bytes(&sized.unwrap_or(picture), recipe.crop, path)
        };
        let pictures = pictures.par_iter().map(read).collect::<Result<Vec<_>>>()?;
        if pictures.is_empty() {
            return Err(Error::invalid("pictures to train on", "at least one", 0));
        }
        let params = Params::new(
            &initial(recipe.seed, |w| AutoencoderKl::new(w, &config).map(drop))?,
            device,
        )?;
        let mut optimizer = AdamW::new(&params, recipe.optimizer)?;
        let mut ema = Ema::new(&params, recipe.ema)?;
        let state = out.join("autoencoder.safetensors");
        let mut step = 0;
        if state.is_file() {
            let snapshot = Snapshot::open(&state)?;
            snapshot.restore(&params, &mut optimizer, Some(&mut ema))?;
            step = snapshot.step;
        }
        Ok(Self {
            recipe,
            config,
            pictures,
            params,
            optimizer,
            ema,
            state,
            step,
            device,
        })
    }

    /// Trains to the last step; saves now and then, at the end, and where `observe` breaks off.
    ///
    /// # Errors
    /// [`Error::Cancelled`] and [`Error::NotFinite`]; the last state stays.
    pub fn run(&mut self, mut observe: impl FnMut(AutoencoderReport) -> ControlFlow<()>) -> Result<()> {
        let (first, total, begin) = (self.step, self.recipe.steps, Instant::now());
        while self.step < total {
            let (loss, psnr, latent_rms) = self.train_step()?;
            let items = (self.step - first) * self.recipe.batch as u64;
            let items_per_second = items as f64 / begin.elapsed().as_secs_f64();
            let stop = observe(AutoencoderReport {
                step: self.step,
                total,
                loss,
                psnr,
                latent_rms,
                items_per_second,
            });
            let due = self.recipe.save > 0 && self.step.is_multiple_of(self.recipe.save);
            if due || self.step == total || stop.is_break() {
                let facts = BTreeMap::new();
                Snapshot::save(
                    &self.state,
                    &self.params,
                    &self.optimizer,
                    Some(&self.ema),
                    self.step,
                    &facts,
                )?;
            }
            if stop.is_break() {
                return Err(Error::Cancelled {
                    done: self.step as usize,
                    total: total as usize,
                });
            }
        }
        Ok(())
    }

    /// One step: loss, decibels, root mean square of the latents.
    fn train_step(&mut self) -> Result<(f64, f64, f64)> {
        let batch = self.batch()?;
        // Convolutions keep a copy of their weights in another order, so the model is made anew.
        let vae = AutoencoderKl::new(&self.params.weights().device(self.device), &self.config)?;
        let posterior = vae.encode(&batch)?;
        let mut rng = generator(self.recipe.seed, Stream::Step, self.step);
        let noise = noise::randn(&posterior.mean.size(), rng.random(), Kind::Float, self.device)?;
        let result = vae.decode(&posterior.sample(&noise)?)?;
        let error = result.f_sub(&batch)?;
        let square = error.f_square()?.f_mean(Kind::Float)?;
        let loss = error.f_abs()?.f_mean(Kind::Float)?.f_add(&square)?;
        let loss = loss.f_add(&edges(&error)?.f_mul_scalar(self.recipe.edge_weight)?)?;
        let loss = loss.f_add(&kl(&posterior.mean, &posterior.logvar)?.f_mul_scalar(self.recipe.kl_weight)?)?;
        loss.f_backward()?;
        let value = loss.f_double_value(&[])?;
        let stage = || format!("training step {} of the autoencoder", self.step + 1);
        let (gradient, _) = self.params.take_gradient(value, self.recipe.clip, stage, RESUME)?;
        self.optimizer.step(
            &self.params,
            &gradient,
            self.recipe.rate.at(self.step, self.recipe.steps),
        )?;
        self.ema.update(&self.params, self.step)?;
        self.step += 1;
        // Pixels are in [-1, 1], so the peak is 2.
        let psnr = 10.0 * (4.0 / square.f_double_value(&[])?).log10();
        let rms = posterior
            .mean
            .f_square()?
            .f_mean(Kind::Float)?
            .f_sqrt()?
            .f_double_value(&[])?;
        Ok((value, psnr, rms))
    }

    /// Crops [B, 3, S, S] in [-1, 1].
    fn batch(&self) -> Result<Tensor> {
        let mut rng = generator(self.recipe.seed, Stream::Order, self.step);
        let side = i64::from(self.recipe.crop);
        let mut crops = Vec::with_capacity(self.recipe.batch);
        for _ in 0..self.recipe.batch {
            let picture = &self.pictures[rng.random_range(0..self.pictures.len())];
            let (_, height, width) = picture.size3()?;
            let (y, x) = (rng.random_range(0..=height - side), rng.random_range(0..=width - side));
            crops.push(picture.f_narrow(1, y, side)?.f_narrow(2, x, side)?);
        }
        scaled(&Tensor::f_stack(&crops, 0)?.f_to_device(self.device)?)
    }

    /// The trained autoencoder by its moving average, with the scale and shift that give the latents
    /// of the pictures mean 0 and deviation 1: tensors and configuration.
    ///
    /// # Errors
    /// [`Error::Torch`] where libtorch fails.
    pub fn result(&self) -> Result<(Vec<(String, Tensor)>, VaeConfig)> {
        /// More pictures say the same.
        const ENOUGH: usize = 512;
        let tensors = self.params.named(self.ema.average())?;
        let copies = tensors
            .iter()
            .map(|(name, value)| (name.clone(), value.shallow_clone()));
        let vae = AutoencoderKl::new(&Weights::from_tensors(copies), &self.config)?;
        let (mut sum, mut squares, mut count) = (0.0, 0.0, 0.0);
        for picture in self.pictures.iter().step_by(self.pictures.len().div_ceil(ENOUGH)) {
            let (_, height, width) = picture.size3()?;
            let whole = picture
                .f_narrow(1, 0, height / 8 * 8)?
                .f_narrow(2, 0, width / 8 * 8)?
                .f_unsqueeze(0)?;
            let mean = tch::no_grad(|| vae.encode(&scaled(&whole.f_to_device(self.device)?)?))?.mean;
            sum += mean.f_sum(Kind::Double)?.f_double_value(&[])?;
            squares += mean.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
            count += mean.numel() as f64;
        }
        let mean = sum / count;
        let deviation = (squares / count - mean * mean).max(1e-12).sqrt();
        let config = VaeConfig {
            scaling_factor: 1.0 / deviation,
            shift_factor: mean,
            ..self.config.clone()
        };
        Ok((tensors, config))
    }

    /// Steps that are done.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }
}

/// A picture as bytes [3, H, W].
fn bytes(picture: &RgbImage, least: u32, path: &Path) -> Result<Tensor> {
    let (width, height) = picture.dimensions();
    if width.min(height) < least {
        let reason = format!("it has {width}x{height} pixels, fewer than the crops of {least}; take smaller crops");
        return Err(Error::Image {
            path: path.to_owned(),
            reason,
        });
    }
    let pixels = Tensor::f_from_slice(picture.as_raw())?.f_reshape([i64::from(height), i64::from(width), 3])?;
    Ok(pixels.f_permute([2, 0, 1])?.f_contiguous()?)
}

/// Bytes to [-1, 1].
fn scaled(bytes: &Tensor) -> Result<Tensor> {
    Ok(bytes.f_to_kind(Kind::Float)?.f_div_scalar(127.5)?.f_sub_scalar(1.0)?)
}

/// The mean absolute difference of neighbouring errors, along both axes.
fn edges(error: &Tensor) -> Result<Tensor> {
    let along = |dim: i64| -> Result<Tensor> {
        let length = error.size()[dim as usize] - 1;
        let difference = error
            .f_narrow(dim, 1, length)?
            .f_sub(&error.f_narrow(dim, 0, length)?)?;
        Ok(difference.f_abs()?.f_mean(Kind::Float)?)
    };
    Ok(along(2)?.f_add(&along(3)?)?)
}

/// The mean over all values of the distance of N(mean, exp(logvar)) from N(0, 1), in nats.
fn kl(mean: &Tensor, logvar: &Tensor) -> Result<Tensor> {
    let sum = mean
        .f_square()?
        .f_add(&logvar.f_exp()?)?
        .f_sub_scalar(1.0)?
        .f_sub(logvar)?;
    Ok(sum.f_mul_scalar(0.5)?.f_mean(Kind::Float)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pictures(folder: &Path) -> Vec<PathBuf> {
        let disc = |n: u32| {
            RgbImage::from_fn(32, 32, |x, y| {
                let inside = (x as i32 - 16).pow(2) + (y as i32 - 12 - n as i32).pow(2) < 80;
                image::Rgb(if inside {
                    [200, (40 * n) as u8, 30]
                } else {
                    [255, 255, 255]
                })
            })
        };
        let save = |n: u32| {
            let path = folder.join(format!("{n}.png"));
            disc(n).save(&path).unwrap();
            path
        };
        (0..4).map(save).collect()
    }

    fn recipe(steps: u64) -> AutoencoderRecipe {
        AutoencoderRecipe {
            channels: [8, 8, 8, 8],
            groups: 4,
            batch: 2,
            crop: 16,
            steps,
            rate: Rate {
                peak: 5e-3,
                warmup: 5,
                floor: 1.0,
            },
            ..AutoencoderRecipe::default()
        }
    }

    #[test]
    fn training_halves_the_loss_and_a_resumed_run_gives_the_same_bits() {
        let folder = tempfile::tempdir().unwrap();
        let pictures = pictures(folder.path());
        let open = |steps, out: &str| {
            AutoencoderTrainer::open(recipe(steps), &pictures, &folder.path().join(out), Device::Cpu).unwrap()
        };
        let mut losses = Vec::new();
        let mut unbroken = open(40, "a");
        unbroken
            .run(|report| {
                losses.push(report.loss);
                ControlFlow::Continue(())
            })
            .unwrap();
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        assert!(
            mean(&losses[30..]) < 0.5 * mean(&losses[..5]),
            "{:?}",
            [&losses[..5], &losses[30..]]
        );

        let stop_at = |at: u64| {
            move |report: AutoencoderReport| {
                if report.step == at {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            }
        };
        assert!(open(40, "b").run(stop_at(20)).unwrap_err().is_cancelled());
        let mut resumed = open(40, "b");
        assert_eq!(resumed.step(), 20);
        resumed.run(|_| ControlFlow::Continue(())).unwrap();
        assert!(resumed.params.flat().equal(unbroken.params.flat()));

        let (_, config) = resumed.result().unwrap();
        assert!(config.scaling_factor > 0.0 && config.scaling_factor.is_finite());
    }

    #[test]
    fn a_normal_posterior_has_no_distance() {
        let zeros = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        assert_eq!(kl(&zeros, &zeros).unwrap().double_value(&[]), 0.0);
        assert!((kl(&(&zeros + 2.0), &zeros).unwrap().double_value(&[]) - 2.0).abs() < 1e-6);
    }
}
