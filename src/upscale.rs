//! Upscaling of results.

use image::RgbImage;
use kontext_core::{Error, Result, buffer, images};

use crate::Output;

/// An enlargement of images, such as a network for super-resolution. It works on any image: that of an [`Output`], of a
/// turn of a session, or at the end of a stream.
///
/// Closures are upscalers.
///
/// # Example
/// ```
/// use kontext::image::{RgbImage, imageops};
/// use kontext::{LanczosUpscaler, upscale};
/// let image = RgbImage::new(3, 2);
/// let twice = |image: &RgbImage| {
///     let (width, height) = image.dimensions();
///     Ok(imageops::resize(image, 2 * width, 2 * height, imageops::FilterType::Nearest))
/// };
/// assert_eq!(upscale(&image, &twice)?.dimensions(), (6, 4));
/// assert_eq!(upscale(&image, &LanczosUpscaler::new(4))?.dimensions(), (12, 8));
/// # Ok::<(), kontext::Error>(())
/// ```
pub trait Upscaler {
    /// Returns the image enlarged by a factor of at least 1, the same in width and height.
    ///
    /// # Errors
    /// Whatever prevents it; [`upscale`] passes it on.
    fn enlarge(&self, image: &RgbImage) -> Result<RgbImage>;
}

impl<F: Fn(&RgbImage) -> Result<RgbImage>> Upscaler for F {
    fn enlarge(&self, image: &RgbImage) -> Result<RgbImage> {
        self(image)
    }
}

/// Enlargement by a Lanczos filter of three lobes, as Pillow's: larger, without new detail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LanczosUpscaler {
    factor: u32,
}

impl LanczosUpscaler {
    /// Creates an upscaler by a whole factor.
    #[must_use]
    pub const fn new(factor: u32) -> Self {
        Self { factor }
    }
}

impl Upscaler for LanczosUpscaler {
    /// Enlarges the image.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a factor of 0 or sides of 2^32 pixels or more, [`Error::Allocation`] and
    /// [`Error::Thread`] if the system refuses memory or threads.
    fn enlarge(&self, image: &RgbImage) -> Result<RgbImage> {
        let side = |side: u32| side.checked_mul(self.factor).filter(|side| *side > 0);
        match (side(image.width()), side(image.height())) {
            (Some(width), Some(height)) => images::resize(image, width, height),
            _ => {
                let got = format!("{} for {}x{}", self.factor, image.width(), image.height());
                let expected = "at least 1, and sides of less than 2^32 pixels";
                Err(Error::invalid("factor of an upscaler", expected, got))
            }
        }
    }
}

/// Asks an upscaler for an image, and checks the size of its result.
///
/// # Errors
/// Those of the upscaler, and [`Error::InvalidArgument`] if its result is smaller, or has another aspect ratio.
pub fn upscale(image: &RgbImage, upscaler: &dyn Upscaler) -> Result<RgbImage> {
    let enlarged = upscaler.enlarge(image)?;
    let (from, to) = (image.dimensions(), enlarged.dimensions());
    let same_ratio = u64::from(to.0) * u64::from(from.1) == u64::from(to.1) * u64::from(from.0);
    if same_ratio && to.0 >= from.0 && to.1 >= from.1 {
        return Ok(enlarged);
    }
    let expected = format!("{}x{} times one factor of at least 1", from.0, from.1);
    Err(Error::invalid(
        "size of an upscaler's result",
        expected,
        format!("{}x{}", to.0, to.1),
    ))
}

impl Output {
    /// Replaces the images by enlarged ones. Latents and plan stay those of the run; the shares of a mask
    /// ([`Output::changed`]) are dropped, because they are of the smaller images.
    ///
    /// # Errors
    /// Those of [`upscale`], and [`Error::InvalidArgument`] if images of one batch become different in size.
    ///
    /// # Example
    /// ```
    /// # let folder = tempfile::tempdir().unwrap();
    /// # kontext::random_model(folder.path(), 7, kontext::Layout::Diffusers)?;
    /// # let pipe = kontext::Pipeline::builder().device(kontext::Device::Cpu).load(folder.path())?;
    /// use kontext::{LanczosUpscaler, Request};
    /// let output = pipe.run(&Request::generate("a hat").size(64, 48).steps(1))?;
    /// assert_eq!(output.upscaled(&LanczosUpscaler::new(2))?.image.dimensions(), (128, 96));
    /// # Ok::<(), kontext::Error>(())
    /// ```
    pub fn upscaled(self, upscaler: &dyn Upscaler) -> Result<Self> {
        let images = self.images.iter().map(|image| upscale(image, upscaler));
        let images = images.collect::<Result<Vec<_>>>()?;
        let first = images.first().ok_or_else(|| Error::bug("an output of no images"))?;
        if let Some(other) = images.iter().find(|image| image.dimensions() != first.dimensions()) {
            let words = |image: &RgbImage| format!("{}x{}", image.width(), image.height());
            let expected = format!("{}, as of the first image", words(first));
            return Err(Error::invalid("size of an upscaler's result", expected, words(other)));
        }
        Ok(Self {
            image: buffer::copied_image(first)?,
            images,
            changed: None,
            ..self
        })
    }
}

#[cfg(test)]
mod tests {
    use image::{Rgb, imageops};

    use super::*;

    fn photo() -> RgbImage {
        RgbImage::from_fn(6, 4, |x, y| Rgb([(x * 40) as u8, (y * 60) as u8, 7]))
    }

    #[test]
    fn lanczos_enlarges_by_its_factor_and_by_1_not_at_all() {
        let image = photo();
        assert_eq!(upscale(&image, &LanczosUpscaler::new(1)).unwrap(), image);
        let twice = upscale(&image, &LanczosUpscaler::new(2)).unwrap();
        assert_eq!(twice, images::resize(&image, 12, 8).unwrap());
        for factor in [0, u32::MAX] {
            let error = upscale(&image, &LanczosUpscaler::new(factor)).unwrap_err().to_string();
            assert!(error.starts_with("invalid factor of an upscaler"), "{error}");
        }
    }

    #[test]
    fn any_common_factor_is_accepted_and_other_sizes_and_errors_are_passed_on() {
        let to = |width, height| {
            let closure =
                move |image: &RgbImage| Ok(imageops::resize(image, width, height, imageops::FilterType::Nearest));
            upscale(&photo(), &closure).map(|image| image.dimensions())
        };
        for size in [(6, 4), (9, 6), (60, 40)] {
            assert_eq!(to(size.0, size.1).unwrap(), size);
        }
        for (width, height) in [(12, 9), (3, 2), (0, 0)] {
            let error = to(width, height).unwrap_err().to_string();
            let words = format!("expected 6x4 times one factor of at least 1, got {width}x{height}");
            assert!(error.ends_with(&words), "{error}");
        }
        let refused = |_: &RgbImage| Err(Error::invalid("network", "a file", "none"));
        assert!(upscale(&photo(), &refused).unwrap_err().to_string().contains("network"));
    }
}
