//! The output of a run, and image files with its parameters.

use std::path::Path;

use image::{GrayImage, ImageFormat, RgbImage};
use kontext_core::{Error, Result};
use kontext_dit::{ReferenceReuse, StepCache, StepWork};
use kontext_sampler::{GuidanceSchedule, Sampler, Size};
use kontext_text::Unseen;
use ndarray::ArrayD;
use serde::{Deserialize, Serialize};

use crate::io::{Alpha, check_transparent_file, encode_image, encode_transparent, save_image, save_transparent};
use crate::{Plan, Registration};

/// The images of a run and their parameters.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Output {
    /// The first image.
    pub image: RgbImage,
    /// All images of the batch, including the first.
    pub images: Vec<RgbImage>,
    /// The motion of each image against the source, at the model's size, that has been undone; empty unless
    /// [`Plan::registers`] is set.
    pub registrations: Vec<Registration>,
    /// With a mask, the share of the result in each pixel of the images: at 0 it is the byte of the source, at 255 that of
    /// the decoded result. `None` without one, and where other conventions do not mix.
    pub changed: Option<GrayImage>,
    /// Latents of the images, or with a mask of the part that the model saw, in packed form [batch, tokens, 64]: row by
    /// row of the target's grid, each token with the 16 channels of a patch of 2x2 latents, as in
    /// [`Request::image_latents`](crate::Request::image_latents) and
    /// [`Request::noise`](crate::Request::noise). Scaled and shifted, with values of the run's dtype.
    pub latents: ArrayD<f32>,
    /// The seed of the first image; the next ones have seed + 1, seed + 2, …
    pub seed: u64,
    /// The prompt.
    pub prompt: String,
    /// The prompt of T5, if it is another one.
    pub prompt_2: Option<String>,
    /// The guidance value, that of the first step if each has its own ([`Plan::guidance_schedule`]).
    pub guidance: f64,
    /// Text of the prompts, the negative ones included, that an encoder cut or does not know: what the events
    /// [`PromptTruncated`](crate::Event::PromptTruncated) and [`UnknownWords`](crate::Event::UnknownWords)
    /// report.
    pub unseen: Unseen,
    /// Work of each step of the prompt's run, and of the negative prompt's if it has its own. Without a
    /// [`Request::step_cache`](crate::Request::step_cache) or a
    /// [`Request::reference_reuse`](crate::Request::reference_reuse) all steps are computed.
    pub work: Vec<Vec<StepWork>>,
    /// Floating-point operations of the transformer in these steps, counted as in [`Plan::flops`].
    pub flops: u64,
    /// The plan of the run; its [`warnings`](Plan::warnings) name the settings without effect.
    pub plan: Plan,
}

impl Output {
    /// Writes the first image; see [`Output::save_image`].
    ///
    /// # Errors
    /// Those of [`Output::save_image`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.save_image(0, path)
    }

    /// Writes an image of the batch as PNG, JPEG (quality 95) or WebP (lossless), chosen by the file
    /// extension. A PNG carries the prompt (or both), seed, steps, guidance and sizes as text, a sampler other than
    /// Euler's, and a shift of the request or a LoRA, guidance by step, weights of words, step cache and reuse of
    /// references if there are any.
    ///
    /// The file is written under a temporary name first, so it appears whole or not at all. An existing file is
    /// replaced and keeps its permissions, unless it is read-only; of a symbolic link the target is written.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another extension or an index out of range, [`Error::Io`] if the folder
    /// cannot be written.
    pub fn save_image(&self, index: usize, path: impl AsRef<Path>) -> Result<()> {
        let (image, made) = self.made(index)?;
        made.save(image, self.prompts(), path.as_ref())
    }

    /// Writes an image of the batch with the transparency of its source, as [`Output::save_image`] does: see
    /// [`Alpha::put_back`]. The image must show the source's frame, as edits do that are not stitched or outpainted.
    ///
    /// # Errors
    /// Those of [`Output::save_image`] and [`Alpha::put_back`], and [`Error::InvalidArgument`] for a JPEG.
    ///
    /// # Example
    /// ```no_run
    /// use kontext::io::OpenOptions;
    /// use kontext::{Pipeline, Request};
    /// let pipe = Pipeline::load("FLUX.1-Kontext-dev")?;
    /// let (logo, alpha) = OpenOptions::new().open_with_alpha("logo.png")?;
    /// let edited = pipe.run(&Request::edit(&logo, "make it blue"))?;
    /// match alpha {
    ///     Some(alpha) => edited.save_transparent(0, &alpha, "blue.png")?,
    ///     None => edited.save("blue.png")?,
    /// }
    /// # Ok::<(), kontext::Error>(())
    /// ```
    pub fn save_transparent(&self, index: usize, alpha: &Alpha, path: impl AsRef<Path>) -> Result<()> {
        check_transparent_file(&path)?;
        let (image, made) = self.made(index)?;
        save_transparent(&alpha.put_back(image)?, path, &made.text(image, self.prompts()))
    }

    /// Encodes an image of the batch with the transparency of its source: the bytes of the file that
    /// [`Output::save_transparent`] writes.
    ///
    /// # Errors
    /// Those of [`Output::encode`] and [`Alpha::put_back`], and [`Error::InvalidArgument`] for JPEG.
    pub fn encode_transparent(&self, index: usize, alpha: &Alpha, format: ImageFormat) -> Result<Vec<u8>> {
        let (image, made) = self.made(index)?;
        encode_transparent(&alpha.put_back(image)?, format, &made.text(image, self.prompts()))
    }

    /// Encodes the first image as PNG: the bytes of the file that [`Output::save`] writes, with its text.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the output holds no image.
    pub fn to_png(&self) -> Result<Vec<u8>> {
        self.encode(0, ImageFormat::Png)
    }

    /// Encodes an image of the batch as PNG, JPEG or WebP: the bytes of the file that [`Output::save_image`]
    /// writes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another format, an index out of range, or a size above the limit of the
    /// format ([`check_size`](crate::io::check_size)).
    pub fn encode(&self, index: usize, format: ImageFormat) -> Result<Vec<u8>> {
        let (image, made) = self.made(index)?;
        made.encode(image, self.prompts(), format)
    }

    fn prompts(&self) -> Prompts<'_> {
        (&self.prompt, self.prompt_2.as_deref())
    }

    /// Returns an image of the batch, with its parameters.
    fn made(&self, index: usize) -> Result<(&RgbImage, Made)> {
        let image = self
            .images
            .get(index)
            .ok_or_else(|| Error::invalid("image's number", format!("below {}", self.images.len()), index))?;
        let made = Made {
            seed: self.seed.wrapping_add(index as u64),
            steps: self.plan.schedule.steps(),
            sampler: self.plan.sampler,
            shift: self.plan.shift,
            guidance: self.guidance,
            guidance_schedule: self.plan.guidance_schedule.clone(),
            prompt_weights: self.plan.prompt_weights,
            model_size: self.plan.target.size(),
            step_cache: self.plan.step_cache,
            reference_reuse: self.plan.reference_reuse.clone(),
        };
        Ok((image, made))
    }
}

/// The prompt, and the one of T5 if it has its own.
pub(crate) type Prompts<'a> = (&'a str, Option<&'a str>);

/// The parameters of an image, apart from its prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Made {
    pub(crate) seed: u64,
    pub(crate) steps: usize,
    #[serde(default, skip_serializing_if = "is_euler")]
    pub(crate) sampler: Sampler,
    /// The shift that the request or a LoRA set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) shift: Option<f64>,
    pub(crate) guidance: f64,
    /// The values of all steps, if each had its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) guidance_schedule: Option<GuidanceSchedule>,
    /// Set if parentheses in the prompts weighed words.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) prompt_weights: bool,
    pub(crate) model_size: Size,
    #[serde(default, skip_serializing_if = "StepCache::is_off")]
    pub(crate) step_cache: StepCache,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reference_reuse: Option<ReferenceReuse>,
}

/// Returns `true` for the sampler that records of images leave out, as they did before there were others.
fn is_euler(sampler: &Sampler) -> bool {
    *sampler == Sampler::Euler
}

impl Made {
    /// Writes the image; a PNG carries these parameters and the prompts as text.
    pub(crate) fn save(&self, image: &RgbImage, prompts: Prompts<'_>, path: &Path) -> Result<()> {
        save_image(image, path, &self.text(image, prompts))
    }

    /// Encodes the image; a PNG carries these parameters and the prompts as text.
    pub(crate) fn encode(&self, image: &RgbImage, prompts: Prompts<'_>, format: ImageFormat) -> Result<Vec<u8>> {
        encode_image(image, format, &self.text(image, prompts))
    }

    fn text(&self, image: &RgbImage, (prompt, prompt_2): Prompts<'_>) -> Vec<(&'static str, String)> {
        let mut text = vec![
            ("Software", concat!("kontext ", env!("CARGO_PKG_VERSION")).to_owned()),
            ("prompt", prompt.to_owned()),
            ("seed", self.seed.to_string()),
            ("steps", self.steps.to_string()),
            ("guidance", self.guidance.to_string()),
            ("size", Size::new(image.width(), image.height()).to_string()),
            ("model_size", self.model_size.to_string()),
        ];
        if !self.step_cache.is_off() {
            text.push(("step_cache", self.step_cache.to_string()));
        }
        if let Some(reuse) = &self.reference_reuse {
            text.push(("reference_reuse", reuse.to_string()));
        }
        text.extend(prompt_2.map(|prompt| ("prompt_2", prompt.to_owned())));
        let by_step = self.guidance_schedule.as_ref();
        text.extend(by_step.map(|by_step| ("guidance_schedule", by_step.to_string())));
        text.extend(self.prompt_weights.then(|| ("prompt_weights", "true".to_owned())));
        text.extend(self.shift.map(|shift| ("shift", shift.to_string())));
        text.extend((!is_euler(&self.sampler)).then(|| ("sampler", self.sampler.to_string())));
        text
    }
}
