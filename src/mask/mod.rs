//! Masks: the part of an image that an edit may change.

mod diffusers;
mod forms;
mod outpaint;
mod region;
pub(crate) mod shares;

use std::sync::Arc;

use image::GrayImage;
use kontext_core::{Error, Result, range};
use kontext_sampler::geometry::LARGEST_SIDE;
use serde::{Deserialize, Serialize};

pub(crate) use diffusers::latents_mask;
pub use forms::Segmenter;
pub use outpaint::{Outpaint, OutpaintExtent, OutpaintFill};
pub use region::Region;
pub(crate) use region::region;

/// The part of the edited image that a run repaints: where its pixels are 255 entirely, where they are 0 not at all, and
/// in between in part.
///
/// 1. The mask is grown and feathered to the *share* of the result in each pixel.
/// 2. A latent is repainted by the largest share of its pixels, so that thin structures are not lost. In each step the
///    image that the model predicts is blended with the source's latents ([`Inpainting`]).
/// 3. The decoded result is mixed into the source by the share: where it is 0, **bytes are the source's**.
///
/// In [`Conformance::Diffusers`](crate::Conformance::Diffusers) the run is that of `FluxKontextInpaintPipeline` instead,
/// which takes levels from 128 on as 255, the top left pixel of each latent, and the decoded result as it is: it has the
/// model's size, and all of its bytes differ a little from the source's.
///
/// A mask has the size of the image, as it is displayed. One without any pixel to repaint is refused; a full one repaints
/// everything.
///
/// # Example
/// ```
/// use kontext::image::RgbImage;
/// use kontext::{Mask, Request, Size};
/// let photo = RgbImage::new(640, 480);
/// let sign = Mask::rectangle(Size::new(640, 480), [200, 120, 180, 60])?.grow(4.0).feather(6.0);
/// let request = Request::edit(photo, "the sign says 'open'").mask(sign);
/// # Ok::<(), kontext::Error>(())
/// ```
///
/// [`Inpainting`]: kontext_sampler::Inpainting
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Mask {
    /// Levels from 0, kept, to 255, repainted. Clones of a mask share them. Read files with
    /// [`open_mask`](crate::io::open_mask), which refuses transparency and applies no colour profile.
    pub pixels: Arc<GrayImage>,
    /// Its settings.
    pub settings: MaskSettings,
}

/// Settings of a [`Mask`]. Lengths are in pixels of the source.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(clippy::exhaustive_structs)] // Plain data, to be written out whole.
pub struct MaskSettings {
    /// Distance by which the mask grows, from 0 to 8192: pixels nearer than this to one of at least 128 have the share 1.
    /// Default: 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub grow: f32,
    /// Distance over which the share falls from 1 to 0 around the grown mask, from 0 to 8192. Default: 8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feather: Option<f32>,
    /// Images that the model sees next to the noise. Default: those of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<MaskContext>,
    /// Least distance from the share's end to that of the region that the model sees, from 0 to 8192. Default: `None`, the
    /// whole image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crop: Option<u32>,
}

/// The images that the model sees in a run with a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MaskContext {
    /// The edited image only. In diffusers the default without another image.
    Source,
    /// The images after it only, such as a picture of what is to be painted in. In diffusers the default with another
    /// image, its `image_reference`.
    References,
    /// All images. The default in this library's conventions.
    Both,
}

impl MaskContext {
    /// Returns `true` if the edited image is in it.
    #[must_use]
    pub fn has_source(self) -> bool {
        self != Self::References
    }

    /// Returns `true` if image number `index` of a request, counted from 0, is in it.
    pub(crate) fn has(self, index: usize) -> bool {
        match self {
            Self::Source => index == 0,
            Self::References => index > 0,
            Self::Both => true,
        }
    }
}

/// Default of [`MaskSettings::feather`]: a latent's side.
const FEATHER: f32 = 8.0;

fn is_zero(length: &f32) -> bool {
    *length == 0.0
}

impl Mask {
    /// Creates a mask with the default settings.
    #[must_use]
    pub fn new(pixels: impl Into<Arc<GrayImage>>) -> Self {
        Self {
            pixels: pixels.into(),
            settings: MaskSettings::default(),
        }
    }

    /// Sets [`MaskSettings::grow`].
    #[must_use]
    pub fn grow(mut self, pixels: f32) -> Self {
        self.settings.grow = pixels;
        self
    }

    /// Sets [`MaskSettings::feather`].
    #[must_use]
    pub fn feather(mut self, pixels: f32) -> Self {
        self.settings.feather = Some(pixels);
        self
    }

    /// Sets [`MaskSettings::context`].
    #[must_use]
    pub fn context(mut self, context: MaskContext) -> Self {
        self.settings.context = Some(context);
        self
    }

    /// Sets [`MaskSettings::crop`]: the model works on a region around the mask instead of on the whole image, so that an
    /// image larger than a megapixel keeps its sharpness in it, too. The region is resampled once there and once back.
    #[must_use]
    pub fn crop(mut self, margin: u32) -> Self {
        self.settings.crop = Some(margin);
        self
    }
}

impl From<GrayImage> for Mask {
    fn from(pixels: GrayImage) -> Self {
        Self::new(pixels)
    }
}

impl From<Arc<GrayImage>> for Mask {
    fn from(pixels: Arc<GrayImage>) -> Self {
        Self::new(pixels)
    }
}

impl MaskSettings {
    pub(crate) fn check(&self) -> Result<()> {
        let longest = LARGEST_SIDE as f32;
        range::within("grow of a mask", self.grow, 0.0..=longest)?;
        range::within("feather of a mask", self.feathered(), 0.0..=longest)?;
        range::within("crop of a mask", self.crop.unwrap_or_default(), 0..=LARGEST_SIDE).map(drop)
    }

    fn feathered(&self) -> f32 {
        self.feather.unwrap_or(FEATHER)
    }

    /// Returns the distance beyond the mask at which the share has ended, in whole pixels.
    fn reach(&self) -> u32 {
        (self.grow + self.feathered()).ceil() as u32
    }
}

/// Checks that a mask fits an image.
pub(crate) fn check_size(mask: &GrayImage, width: u32, height: u32) -> Result<()> {
    let got = mask.dimensions();
    if got == (width, height) {
        return Ok(());
    }
    let turned = if got == (height, width) {
        "; it seems to be turned: the image is taken as it is displayed, by its EXIF orientation"
    } else {
        ""
    };
    let expected = format!("the image's size, {width}x{height}{turned}");
    Err(Error::invalid("mask", expected, format!("{}x{}", got.0, got.1)))
}
