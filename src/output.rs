//! The output of a run, and image files with its parameters.

use std::io::{BufWriter, Write};
use std::path::Path;

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder, ImageFormat, RgbImage};
use kontext_core::{Error, OutputFile, Result};
use kontext_sampler::Size;
use ndarray::ArrayD;
use serde::{Deserialize, Serialize};

use crate::Plan;

/// The images of a run and their parameters.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Output {
    /// The first image.
    pub image: RgbImage,
    /// All images of the batch, including the first.
    pub images: Vec<RgbImage>,
    /// Latents of the images in packed form [batch, tokens, 64]: row by row of the target's grid, each token
    /// with the 16 channels of a patch of 2x2 latents, as in
    /// [`Request::image_latents`](crate::Request::image_latents) and
    /// [`Request::noise`](crate::Request::noise). Scaled and shifted, with values of the run's dtype.
    pub latents: ArrayD<f32>,
    /// The seed of the first image; the next ones have seed + 1, seed + 2, …
    pub seed: u64,
    /// The prompt.
    pub prompt: String,
    /// The guidance value.
    pub guidance: f64,
    /// The plan of the run.
    pub plan: Plan,
}

/// JPEG quality of black-forest-labs/flux.
const JPEG_QUALITY: u8 = 95;

impl Output {
    /// Writes the first image; see [`Output::save_image`].
    ///
    /// # Errors
    /// Those of [`Output::save_image`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.save_image(0, path)
    }

    /// Writes an image of the batch as PNG, JPEG (quality 95) or WebP (lossless), chosen by the file
    /// extension. A PNG carries prompt, seed, steps, guidance and sizes as text.
    ///
    /// The file is written under a temporary name first, so it appears whole or not at all.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another extension or an index out of range, [`Error::Io`] if the folder
    /// cannot be written.
    pub fn save_image(&self, index: usize, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let image = self
            .images
            .get(index)
            .ok_or_else(|| Error::invalid("image's number", format!("below {}", self.images.len()), index))?;
        let made = Made {
            seed: self.seed.wrapping_add(index as u64),
            steps: self.plan.schedule.steps(),
            guidance: self.guidance,
            model_size: self.plan.target.size(),
        };
        made.save(image, &self.prompt, path)
    }
}

/// The parameters of an image, apart from its prompt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Made {
    pub(crate) seed: u64,
    pub(crate) steps: usize,
    pub(crate) guidance: f64,
    pub(crate) model_size: Size,
}

impl Made {
    /// Writes the image; a PNG carries these parameters as text.
    pub(crate) fn save(&self, image: &RgbImage, prompt: &str, path: &Path) -> Result<()> {
        let text = [
            ("Software", concat!("kontext ", env!("CARGO_PKG_VERSION")).to_owned()),
            ("prompt", prompt.to_owned()),
            ("seed", self.seed.to_string()),
            ("steps", self.steps.to_string()),
            ("guidance", self.guidance.to_string()),
            ("size", Size::new(image.width(), image.height()).to_string()),
            ("model_size", self.model_size.to_string()),
        ];
        save_image(image, path, &text)
    }
}

/// Checks, before any work, that an image can be written to `path`.
///
/// # Errors
/// [`Error::InvalidArgument`] for an unsupported extension, [`Error::Io`] if the folder does not exist or
/// cannot be written.
pub fn check_writable(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    format_of(path)?;
    kontext_core::check_writable(path)
}

/// Checks, before any work, that an image of this size can be written to a file of this name.
///
/// # Errors
/// [`Error::InvalidArgument`] for an unsupported extension, or a size above the limit of the format: 16,383
/// pixels on a side for WebP, 65,535 for JPEG.
pub fn check_size(path: impl AsRef<Path>, size: Size) -> Result<()> {
    let (most, name) = match format_of(path.as_ref())? {
        ImageFormat::WebP => (16_383, "WebP"),
        ImageFormat::Jpeg => (65_535, "JPEG"),
        _ => return Ok(()),
    };
    if size.width.max(size.height) <= most {
        return Ok(());
    }
    Err(Error::invalid(
        "image size",
        format!("at most {most} pixels on a side for {name}; write a PNG"),
        size,
    ))
}

fn format_of(path: &Path) -> Result<ImageFormat> {
    match ImageFormat::from_path(path) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP)) => Ok(format),
        _ => Err(Error::invalid(
            "output file",
            "a name that ends in .png, .jpg or .webp",
            path.display(),
        )),
    }
}

/// Writes an image as PNG (with text), JPEG or WebP, whole or not at all.
///
/// # Errors
/// Those of [`Output::save_image`].
pub fn save_image(image: &RgbImage, path: impl AsRef<Path>, text: &[(&str, String)]) -> Result<()> {
    let path = path.as_ref();
    let format = format_of(path)?;
    check_size(path, Size::new(image.width(), image.height()))?;
    let mut file = OutputFile::create(path)?;
    {
        let mut writer = BufWriter::new(file.writer());
        let (width, height) = image.dimensions();
        match format {
            ImageFormat::Jpeg => JpegEncoder::new_with_quality(&mut writer, JPEG_QUALITY)
                .write_image(image.as_raw(), width, height, ExtendedColorType::Rgb8)
                .map_err(Error::image(path))?,
            ImageFormat::WebP => image::codecs::webp::WebPEncoder::new_lossless(&mut writer)
                .write_image(image.as_raw(), width, height, ExtendedColorType::Rgb8)
                .map_err(Error::image(path))?,
            _ => write_png(image, &mut writer, text).map_err(|e| Error::io(path)(e.into()))?,
        }
        writer.flush().map_err(Error::io(path))?;
    }
    file.publish()
}

fn write_png(image: &RgbImage, writer: impl Write, text: &[(&str, String)]) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(writer, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (key, value) in text {
        encoder.add_itxt_chunk((*key).to_owned(), value.clone())?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image.as_raw())?;
    writer.finish()
}
