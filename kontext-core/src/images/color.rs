//! Embedded colour profiles, converted to sRGB.

use std::sync::Mutex;

use lcms2::{
    ColorSpaceSignature as Space, DisallowCache, Flags, Intent, PixelFormat, ProfileClassSignature as Class,
    ThreadContext,
};
use moxcms::{CicpColorPrimaries, CicpProfile, ColorProfile, MatrixCoefficients, TransferCharacteristics as Transfer};

use super::samples::{Channels, Depth};
use crate::contain;

type Transform<From, To> = lcms2::Transform<From, To, ThreadContext, DisallowCache>;
type Profiles = lcms2::Profile<ThreadContext>;

/// A description of the colours of an image, as its file holds it.
#[derive(Debug)]
pub(super) enum Profile {
    /// An ICC profile.
    Icc(Vec<u8>),
    /// Code points of ITU-T H.273: primaries and transfer function.
    Cicp(u8, u8),
}

/// A conversion of rows of samples to 8-bit sRGB, by Little CMS, which Pillow uses too.
pub(super) struct Conversion {
    input: Input,
    kernel: Kernel,
    /// Kept as long as the transform.
    _context: Mutex<ThreadContext>,
}

/// The transform for samples of one depth.
enum Kernel {
    Bytes(Transform<u8, u8>),
    Grey(Transform<[u16; 1], [u8; 3]>),
    Rgb(Transform<[u16; 3], [u8; 3]>),
}

/// Channels of the samples and of the profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    Grey,
    /// Grey samples with a profile of RGB.
    GreyAsRgb,
    Rgb,
    Cmyk,
}

impl Input {
    fn new(channels: Channels, space: Space) -> Option<Self> {
        match (channels, space) {
            (Channels::Grey | Channels::GreyAlpha, Space::GrayData) => Some(Self::Grey),
            (Channels::Grey | Channels::GreyAlpha, Space::RgbData) => Some(Self::GreyAsRgb),
            (Channels::Rgb | Channels::Rgba, Space::RgbData) => Some(Self::Rgb),
            (Channels::Cmyk, Space::CmykData) => Some(Self::Cmyk),
            _ => None,
        }
    }

    fn format(self) -> PixelFormat {
        match self {
            Self::Grey => PixelFormat::GRAY_8,
            Self::GreyAsRgb | Self::Rgb => PixelFormat::RGB_8,
            Self::Cmyk => PixelFormat::CMYK_8,
        }
    }
}

impl Conversion {
    /// Returns the conversion of samples; `None` if they are to be used as they are: the profile is sRGB's, is
    /// damaged, or describes other channels.
    pub(super) fn new(profile: &Profile, channels: Channels, depth: Depth) -> Option<Self> {
        // A panic of a library on a hostile profile is a damaged profile, too.
        contain(|| Self::build(&icc(profile)?, channels, depth)).ok().flatten()
    }

    fn build(icc: &[u8], channels: Channels, depth: Depth) -> Option<Self> {
        let context = ThreadContext::new();
        let profile = Profiles::new_icc_context(&context, icc).ok()?;
        let input = Input::new(channels, profile.color_space())?;
        let classes = [
            Class::InputClass,
            Class::DisplayClass,
            Class::OutputClass,
            Class::ColorSpaceClass,
        ];
        if !classes.contains(&profile.device_class()) {
            return None;
        }
        let srgb = Profiles::new_srgb_context(&context);
        let bytes = transform(&context, &profile, input.format(), &srgb)?;
        if is_identity(&bytes, input) {
            return None;
        }
        let kernel = match (depth, input) {
            (Depth::Eight, _) | (Depth::Sixteen, Input::Cmyk) => Kernel::Bytes(bytes),
            (Depth::Sixteen, Input::Grey) => Kernel::Grey(transform(&context, &profile, PixelFormat::GRAY_16, &srgb)?),
            (Depth::Sixteen, _) => Kernel::Rgb(transform(&context, &profile, PixelFormat::RGB_16, &srgb)?),
        };
        drop((profile, srgb));
        Some(Self {
            input,
            kernel,
            _context: Mutex::new(context),
        })
    }

    /// Converts a row: of 8-bit samples in `bytes`, or of 16-bit samples in `words`, by the depth of the conversion.
    pub(super) fn row(&self, bytes: &[u8], words: &[u16], target: &mut [u8]) {
        let pixels = target.as_chunks_mut::<3>().0;
        match (&self.kernel, self.input) {
            (Kernel::Bytes(transform), Input::GreyAsRgb) => transform.transform_pixels(&tripled(bytes), target),
            (Kernel::Bytes(transform), _) => transform.transform_pixels(bytes, target),
            (Kernel::Grey(transform), _) => transform.transform_pixels(words.as_chunks().0, pixels),
            (Kernel::Rgb(transform), Input::GreyAsRgb) => {
                transform.transform_pixels(tripled(words).as_chunks().0, pixels);
            }
            (Kernel::Rgb(transform), _) => transform.transform_pixels(words.as_chunks().0, pixels),
        }
    }
}

/// Returns the transform of `ImageCms.profileToProfile`: with the perceptual intent, and without flags. Little CMS
/// compensates the black point nevertheless, as its sRGB is a profile of version 4.
fn transform<From: lcms2::Pod, To: lcms2::Pod>(
    context: &ThreadContext,
    profile: &Profiles,
    format: PixelFormat,
    srgb: &Profiles,
) -> Option<Transform<From, To>> {
    let (to, intent) = (PixelFormat::RGB_8, Intent::Perceptual);
    Transform::new_flags_context(context, profile, format, srgb, to, intent, Flags::NO_CACHE).ok()
}

/// Returns `true` if no sample of a grid through all colours changes by more than a level, as with one of the many
/// profiles of sRGB. Images with it keep their exact samples.
fn is_identity(transform: &Transform<u8, u8>, input: Input) -> bool {
    let steps = || (0..=255).step_by(15);
    let (samples, expected): (Vec<u8>, Vec<u8>) = match input {
        Input::Cmyk => return false,
        Input::Grey => ((0..=255).collect(), tripled(&(0..=255).collect::<Vec<u8>>())),
        Input::GreyAsRgb | Input::Rgb => {
            let of = |red| steps().flat_map(move |green| steps().flat_map(move |blue| [red, green, blue]));
            let samples: Vec<u8> = steps().flat_map(of).collect();
            (samples.clone(), samples)
        }
    };
    let mut converted = vec![0_u8; expected.len()];
    transform.transform_pixels(&samples, &mut converted);
    converted.iter().zip(&expected).all(|(a, b)| a.abs_diff(*b) <= 1)
}

fn tripled<T: Copy>(levels: &[T]) -> Vec<T> {
    levels.iter().flat_map(|level| [*level; 3]).collect()
}

/// Returns a profile in ICC's form; `None` for code points that are reserved, or of a brightness for which sRGB has
/// no room.
fn icc(profile: &Profile) -> Option<Vec<u8>> {
    let (primaries, transfer) = match profile {
        Profile::Icc(bytes) => return Some(bytes.clone()),
        Profile::Cicp(primaries, transfer) => (*primaries, *transfer),
    };
    let cicp = CicpProfile {
        color_primaries: CicpColorPrimaries::try_from(primaries).ok()?,
        transfer_characteristics: Transfer::try_from(transfer).ok()?,
        matrix_coefficients: MatrixCoefficients::Identity,
        full_range: true,
    };
    let mut made = ColorProfile::new_from_cicp(cicp);
    let known = made.red_trc.is_some() && made.cicp.is_some();
    let bright = matches!(cicp.transfer_characteristics, Transfer::Smpte2084 | Transfer::Hlg);
    made.cicp = None;
    if known && !bright { made.encode().ok() } else { None }
}
