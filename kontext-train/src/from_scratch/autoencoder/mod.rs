//! Training of an autoencoder: reconstruction, sharp edges, and latents close to a normal distribution.
//!
//! Source of the objective: arXiv 2112.10752 (latent diffusion) appendix G, with a term for the differences
//! of neighbouring pixels instead of a perceptual network and a discriminator.

mod event;
mod recipe;
mod reconstruction;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use image::RgbImage;
use kontext_core::{Device, Error, Kind, ModelPart, Result, Stage, Tensor, images, threads};
use kontext_nn::Weights;
use kontext_nn::footprint::Execution;
use kontext_vae::{AutoencoderKl, VaeConfig, VaeFootprint};
use rayon::prelude::*;
use reconstruction::Reconstruction;

use super::initial::initial;
use crate::memory::{Need, elements};
use crate::optim::{Learner, LearnerConfig, Params, RESUME};
use crate::run::Intervals;
use crate::run::identity::Identity;
use crate::run::shell::Shell;

use recipe::IMAGE_FILES;

pub use event::{AutoencoderEvent, AutoencoderReport};
pub use recipe::AutoencoderRecipe;

/// A training run of an autoencoder on images held in memory as bytes.
#[derive(Debug)]
pub struct AutoencoderTrainer {
    shell: Shell,
    training: Reconstruction,
}

impl AutoencoderTrainer {
    /// Reads the images, and resumes from the state in `out` if there is one: `autoencoder.safetensors`, the only
    /// file of the run.
    ///
    /// # Errors
    /// Those of [`AutoencoderRecipe::validate`], [`Error::Memory`] if the training takes more memory than is
    /// free; [`Error::Image`] and [`Error::Io`] for images that cannot be read or are smaller than the crops; a
    /// checkpoint error that names the differences if the state is of another recipe or other images, and
    /// [`AutoencoderRecipe::accept_changes`] does not name these.
    pub fn open(recipe: AutoencoderRecipe, images: &[PathBuf], out: &Path, device: Device) -> Result<Self> {
        recipe.validate()?;
        let config = recipe.config();
        check_memory(&recipe, &config, device)?;
        let every = Intervals {
            save: recipe.save,
            validate: 0,
            sample: 0,
        };
        let mut shell = Shell::open(out, "autoencoder.safetensors", recipe.steps, every)?;
        let state = shell.snapshot()?;
        let mut identity = Identity::new(&recipe, state.as_ref())?;
        let read = |path: &PathBuf| {
            let image = images::open(path)?;
            let sized = recipe
                .size
                .map(|[width, height]| images::resize(&image, width, height))
                .transpose()?;
            bytes(&sized.unwrap_or(image), recipe.crop, path)
        };
        threads::start()?;
        let images = images.par_iter().map(read).collect::<Result<Vec<_>>>()?;
        if images.is_empty() {
            return Err(Error::invalid("images to train on", "at least one", 0));
        }
        identity.digest(IMAGE_FILES, digest(&images)?)?;
        let params = Params::new(
            &initial(recipe.seed, |w| AutoencoderKl::new(w, &config).map(drop))?,
            device,
        )?;
        let learner = LearnerConfig {
            prefix: "",
            optimizer: recipe.optimizer,
            ema: Some(recipe.ema),
            clip: recipe.clip,
            part: ModelPart::Autoencoder,
            hint: RESUME,
        };
        let mut learner = Learner::new(params, learner)?;
        if let Some(state) = &state {
            shell.resume(state, vec![&mut learner], identity.new_loss())?;
        }
        let training = Reconstruction {
            recipe,
            config,
            images,
            learner,
            identity,
            device,
        };
        Ok(Self { shell, training })
    }

    /// Trains to the last step. Saves at the recipe's interval, at the end, and if `observe` breaks off.
    ///
    /// # Errors
    /// [`Error::Cancelled`], and [`Error::NotFinite`] and [`Error::Diverged`] if training fails; the last saved
    /// state remains.
    pub fn run(&mut self, mut observe: impl FnMut(AutoencoderEvent) -> ControlFlow<()>) -> Result<()> {
        self.shell.run(&mut self.training, &mut observe)
    }

    /// Returns tensors and configuration of the trained autoencoder, by its moving average. The
    /// configuration's scale and shift normalise the latents of the images to mean 0 and deviation 1.
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails.
    pub fn result(&self) -> Result<(Vec<(String, Tensor)>, VaeConfig)> {
        self.training.result()
    }

    /// Returns the number of finished steps.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.shell.step()
    }
}

/// Refuses a recipe that takes more memory than is free.
fn check_memory(recipe: &AutoencoderRecipe, config: &VaeConfig, device: Device) -> Result<()> {
    let blank = Weights::blank();
    AutoencoderKl::new(&blank, config)?;
    let footprint = VaeFootprint {
        weights: 0,
        ..VaeFootprint::of(&blank, Kind::Float)
    };
    let whole = recipe
        .size
        .map_or(0, |[width, height]| u64::from(width) * u64::from(height));
    let pixels = recipe.batch as u64 * u64::from(recipe.crop) * u64::from(recipe.crop);
    let execution = Execution {
        device,
        kind: Kind::Float,
    };
    let need = Need {
        values: elements(blank.shapes().values()),
        average: true,
        // The trained autoencoder encodes whole images.
        work: u128::from(
            footprint
                .decoder(pixels, None, execution)
                .max(footprint.encoder(whole, None, execution)),
        ),
    };
    let stage = Stage::Train {
        part: ModelPart::Autoencoder,
        step: 1,
    };
    need.check(
        device,
        stage,
        ["take fewer channels or layers", "take a smaller batch, crop or size"],
    )
}

/// Returns a digest of the images.
fn digest(images: &[Tensor]) -> Result<String> {
    let mut hasher = crc32fast::Hasher::new();
    for image in images {
        let mut bytes = vec![0_u8; image.numel()];
        image.f_copy_data(&mut bytes, image.numel())?;
        hasher.update(format!("{:?}", image.size()).as_bytes());
        hasher.update(&bytes);
    }
    Ok(format!("{} images of digest {:08x}", images.len(), hasher.finalize()))
}

/// Converts an image to bytes [3, H, W].
fn bytes(image: &RgbImage, least: u32, path: &Path) -> Result<Tensor> {
    let (width, height) = image.dimensions();
    if width.min(height) < least {
        let reason = format!("it has {width}x{height} pixels, fewer than the crops of {least}; take smaller crops");
        return Err(Error::Image {
            path: path.to_owned(),
            reason,
        });
    }
    let pixels = Tensor::f_from_slice(image.as_raw())?.f_reshape([i64::from(height), i64::from(width), 3])?;
    Ok(pixels.f_permute([2, 0, 1])?.f_contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::LrSchedule;

    fn images(folder: &Path) -> Vec<PathBuf> {
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
            rate: LrSchedule {
                peak: 5e-3,
                warmup: 5,
                floor: 1.0,
            },
            ..AutoencoderRecipe::default()
        }
    }

    fn values(trainer: &AutoencoderTrainer) -> &Tensor {
        trainer.training.learner.params.flat()
    }

    #[test]
    fn training_halves_the_loss_and_a_resumed_run_gives_the_same_bits() {
        let folder = tempfile::tempdir().unwrap();
        let images = images(folder.path());
        let open = |steps, out: &str| {
            AutoencoderTrainer::open(recipe(steps), &images, &folder.path().join(out), Device::Cpu).unwrap()
        };
        let mut losses = Vec::new();
        let mut unbroken = open(40, "a");
        unbroken
            .run(|event| {
                if let AutoencoderEvent::Step(report) = event {
                    losses.push(report.loss);
                }
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
            move |event: AutoencoderEvent| match event {
                AutoencoderEvent::Step(report) if report.step == at => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        };
        assert!(open(40, "b").run(stop_at(20)).unwrap_err().is_cancelled());
        let mut resumed = open(40, "b");
        assert_eq!(resumed.step(), 20);
        resumed.run(|_| ControlFlow::Continue(())).unwrap();
        assert!(values(&resumed).equal(values(&unbroken)));

        let (_, config) = resumed.result().unwrap();
        assert!(config.scaling_factor > 0.0 && config.scaling_factor.is_finite());
    }
}
