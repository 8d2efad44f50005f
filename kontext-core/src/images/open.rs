//! Opening of image files.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use image::{GrayImage, Pixel, RgbImage};

use super::alpha::{Alpha, WHITE, narrowed, spread};
use super::color::Conversion;
use super::decoded::{Decoded, Failure, PixelLimit, panicked};
use super::format::{Format, HEAD};
use super::{jpeg, png, webp};
use crate::{Error, Result, buffer, contain, threads};

/// Limits and conventions of opening image files.
///
/// - **Formats**: PNG, JPEG and WebP, recognised by content. Of an animation the first frame is decoded.
/// - **Pixels**: 8-bit RGB. Palettes, greys and CMYK are converted, 16 bits rounded, transparent parts composited on
///   [`OpenOptions::ground`], which is white.
/// - **Orientation**: as Pillow's `ImageOps.exif_transpose` applies it, by EXIF, or by XMP if EXIF names none.
/// - **Colours**: converted to sRGB by the embedded profile, see [`EmbeddedProfile`].
///
/// The limits are checked before memory is taken. Decoding takes at most 20 bytes a pixel (24 of an animation) and the
/// file itself (7 more with [`OpenOptions::open_with_alpha`]): 3 of the result, up to 8 of decoded samples, and what a decoder needs for itself, for which it is asked
/// first.
///
/// # Example
/// ```
/// use kontext_core::images::OpenOptions;
/// # let folder = tempfile::tempdir().unwrap();
/// # let upload = folder.path().join("upload.png");
/// # image::RgbImage::new(64, 64).save(&upload).unwrap();
/// let options = OpenOptions::new().max_pixels(24_000_000).max_bytes(16 << 20);
/// assert_eq!(options.open(&upload)?.dimensions(), (64, 64));
///
/// let error = OpenOptions::new().max_pixels(1000).open(&upload).unwrap_err();
/// assert!(error.to_string().ends_with("expected at most 1000 pixels, got 64x64; make it smaller"));
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenOptions {
    max_pixels: u64,
    max_bytes: u64,
    embedded_profile: EmbeddedProfile,
    ground: [u8; 3],
}

/// Use of the colour profile in an image file.
///
/// The profile is an ICC profile of any kind, for RGB, grey or CMYK, or PNG's cICP unless its brightness exceeds
/// sRGB's. PNG's gAMA and cHRM are ignored, as in Pillow. A damaged profile, and one for other channels than the
/// image has, are ignored, as in browsers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum EmbeddedProfile {
    /// Converts the colours to sRGB, for which the models were trained, as Pillow's `ImageCms.profileToProfile`
    /// does: with the perceptual intent, and compensation of the black point of printing profiles. A profile that
    /// changes no colour by more than a level is sRGB's, and the samples stay as they are.
    #[default]
    Convert,
    /// Takes the samples as they are, as diffusers and black-forest-labs/flux do.
    Ignore,
}

/// [`OpenOptions::MAX_PIXELS`] and 512 MiB, the size of their samples.
impl Default for OpenOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl OpenOptions {
    /// Most pixels of a file by default, from which on Pillow refuses one. A session does not save larger images, and
    /// a plan joins none.
    pub const MAX_PIXELS: u64 = 178_956_970;

    /// Returns the defaults: [`OpenOptions::MAX_PIXELS`], 512 MiB, colours converted to sRGB, and a white ground.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            max_pixels: Self::MAX_PIXELS,
            max_bytes: 1 << 29,
            embedded_profile: EmbeddedProfile::Convert,
            ground: WHITE,
        }
    }

    /// Sets the largest number of pixels.
    #[must_use]
    pub const fn max_pixels(mut self, pixels: u64) -> Self {
        self.max_pixels = pixels;
        self
    }

    /// Sets the largest size of a file in bytes.
    #[must_use]
    pub const fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Sets the use of the colour profile.
    #[must_use]
    pub const fn embedded_profile(mut self, profile: EmbeddedProfile) -> Self {
        self.embedded_profile = profile;
        self
    }

    /// Sets the colour, in sRGB, that transparent pixels of an image are composited on. Default: white.
    #[must_use]
    pub const fn ground(mut self, color: [u8; 3]) -> Self {
        self.ground = color;
        self
    }

    /// Opens an image file. The file may be a pipe; it is read once.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::Image`] if it is not a PNG, JPEG or WebP, is truncated or
    /// damaged, or exceeds a limit, [`Error::Allocation`] and [`Error::Thread`] if the system refuses memory or
    /// threads.
    pub fn open(&self, path: impl AsRef<Path>) -> Result<RgbImage> {
        let path = path.as_ref();
        self.image(&self.read_file(path)?, path)
    }

    /// Opens an image file as [`OpenOptions::open`] does, and returns its transparency, too; `None` if all pixels are
    /// opaque.
    ///
    /// # Errors
    /// Those of [`OpenOptions::open`].
    pub fn open_with_alpha(&self, path: impl AsRef<Path>) -> Result<(RgbImage, Option<Alpha>)> {
        let path = path.as_ref();
        self.image_with_alpha(&self.read_file(path)?, path)
    }

    /// Decodes an image file in memory as [`OpenOptions::open_with_alpha`] does.
    ///
    /// # Errors
    /// Those of [`OpenOptions::decode`].
    pub fn decode_with_alpha(&self, bytes: &[u8]) -> Result<(RgbImage, Option<Alpha>)> {
        let path = Path::new("");
        self.image_with_alpha(&self.contents(bytes, path)?, path)
    }

    /// Decodes an image file in memory.
    ///
    /// # Errors
    /// Those of [`OpenOptions::open`], with an empty path: they read "cannot use the image: …".
    pub fn decode(&self, bytes: &[u8]) -> Result<RgbImage> {
        let path = Path::new("");
        self.image(&self.contents(bytes, path)?, path)
    }

    /// Decodes an image file that a reader returns, from its current position to its end.
    ///
    /// # Errors
    /// Those of [`OpenOptions::decode`].
    pub fn decode_from(&self, reader: impl Read) -> Result<RgbImage> {
        let path = Path::new("");
        self.image(&self.read(reader, None, path)?, path)
    }

    /// Opens an image file as a mask: its luma, in 8 bits. A mask is data, so its colour profile is ignored.
    ///
    /// # Errors
    /// Those of [`OpenOptions::open`], and [`Error::Image`] if a pixel is not opaque: in the files of some programs
    /// the painted parts are opaque, in those of others the parts to be changed are transparent, and the colours
    /// there may be anything.
    pub fn open_mask(&self, path: impl AsRef<Path>) -> Result<GrayImage> {
        let path = path.as_ref();
        self.mask(&self.read_file(path)?, path)
    }

    /// Decodes a mask in memory as [`OpenOptions::open_mask`] does.
    ///
    /// # Errors
    /// Those of [`OpenOptions::open_mask`], with an empty path.
    pub fn decode_mask(&self, bytes: &[u8]) -> Result<GrayImage> {
        let path = Path::new("");
        self.mask(&self.contents(bytes, path)?, path)
    }

    fn contents<'a>(&self, bytes: &'a [u8], path: &Path) -> Result<Contents<'a>> {
        let head = &bytes[..bytes.len().min(HEAD)];
        let format = Format::of(head).map_err(|reason| Failure::Reason(reason).at(path))?;
        if bytes.len() as u64 > self.max_bytes {
            return Err(self.too_large().at(path));
        }
        let bytes = Cow::Borrowed(bytes);
        Ok(Contents { format, bytes })
    }

    fn too_large(&self) -> Failure {
        let most = self.max_bytes;
        Failure::Reason(format!(
            "expected a file of at most {most} bytes, got a larger one; make it smaller"
        ))
    }

    fn read_file(&self, path: &Path) -> Result<Contents<'static>> {
        let file = File::open(path).map_err(Error::io(path))?;
        // A pipe has no length.
        let metadata = file.metadata().map_err(Error::io(path))?;
        let length = Some(metadata.len()).filter(|_| metadata.is_file());
        self.read(file, length, path)
    }

    /// Reads a file whole, if it begins as an image and is not too large.
    fn read(&self, mut reader: impl Read, length: Option<u64>, path: &Path) -> Result<Contents<'static>> {
        let mut bytes = Vec::new();
        append(&mut bytes, reader.by_ref().take(HEAD as u64), path)?;
        let format = Format::of(&bytes).map_err(|reason| Failure::Reason(reason).at(path))?;
        if length.is_some_and(|length| length > self.max_bytes) {
            return Err(self.too_large().at(path));
        }
        // One byte more than allowed shows that there are more.
        let rest = self.max_bytes.saturating_add(1).saturating_sub(bytes.len() as u64);
        append(&mut bytes, reader.take(rest), path)?;
        if bytes.len() as u64 > self.max_bytes {
            return Err(self.too_large().at(path));
        }
        let bytes = Cow::Owned(bytes);
        Ok(Contents { format, bytes })
    }

    fn image(&self, contents: &Contents<'_>, path: &Path) -> Result<RgbImage> {
        self.converted(self.samples(contents, path)?)
    }

    fn image_with_alpha(&self, contents: &Contents<'_>, path: &Path) -> Result<(RgbImage, Option<Alpha>)> {
        let decoded = self.samples(contents, path)?;
        let orientation = decoded.orientation;
        let oriented = |levels| narrowed(&orientation.apply(spread(&levels)?)?);
        let levels = decoded.samples.alpha()?.map(oriented).transpose()?;
        let alpha = levels.map(|levels| Alpha::new(levels, self.ground));
        Ok((self.converted(decoded)?, alpha))
    }

    fn converted(&self, decoded: Decoded) -> Result<RgbImage> {
        let (channels, depth) = (decoded.samples.channels, decoded.samples.depth);
        let profile = decoded
            .profile
            .filter(|_| self.embedded_profile == EmbeddedProfile::Convert);
        let conversion = profile.and_then(|profile| Conversion::new(&profile, channels, depth));
        decoded
            .orientation
            .apply(decoded.samples.into_rgb(conversion.as_ref(), self.ground)?)
    }

    fn mask(&self, contents: &Contents<'_>, path: &Path) -> Result<GrayImage> {
        let decoded = self.samples(contents, path)?;
        if decoded.samples.is_transparent() {
            let reason = "the mask has transparent pixels, and it cannot be known what they mean; save it without \
                          transparency, white where the image may change and black elsewhere";
            return Err(Failure::Reason(reason.to_owned()).at(path));
        }
        luma(&decoded.orientation.apply(decoded.samples.into_rgb(None, WHITE)?)?)
    }

    fn samples(&self, contents: &Contents<'_>, path: &Path) -> Result<Decoded> {
        let limit = PixelLimit(self.max_pixels);
        let decoded = contain(|| match contents.format {
            Format::Png => png::decode(&contents.bytes, limit),
            Format::Jpeg => jpeg::decode(&contents.bytes, limit),
            Format::WebP => webp::decode(&contents.bytes, limit),
        });
        let decoded = decoded
            .unwrap_or_else(|panic| Err(panicked(&panic)))
            .map_err(|failure| failure.at(path))?;
        // The samples are converted and turned in parallel.
        threads::start()?;
        Ok(decoded)
    }
}

/// A file in memory.
struct Contents<'a> {
    format: Format,
    bytes: Cow<'a, [u8]>,
}

/// Appends what a reader returns.
pub(super) fn append(bytes: &mut Vec<u8>, mut reader: impl Read, path: &Path) -> Result<()> {
    let read = reader.read_to_end(bytes);
    read.map(drop).map_err(|error| match error.kind() {
        // The vector doubles as it grows.
        io::ErrorKind::OutOfMemory => Error::Allocation {
            purpose: "the image file",
            mb: (2 * bytes.capacity() as u128).div_ceil(1_000_000).max(1),
        },
        _ => Error::io(path)(error),
    })
}

/// Returns the luma of an image.
fn luma(image: &RgbImage) -> Result<GrayImage> {
    let mut levels = buffer::with_room(image.as_raw().len() / 3, "the mask")?;
    levels.extend(image.pixels().map(|pixel| pixel.to_luma().0[0]));
    let missing = || Error::bug("a mask with missing pixels");
    GrayImage::from_raw(image.width(), image.height(), levels).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pipe, of which the system refuses the memory of a later part.
    struct Refusing(usize);

    impl Read for Refusing {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::OutOfMemory)?;
            bytes.fill(b' ');
            Ok(bytes.len())
        }
    }

    #[test]
    fn memory_that_the_system_refuses_to_a_pipe_is_an_error_with_its_megabytes() {
        let png = &b"\x89PNG\r\n\x1a\n"[..];
        for (parts, expected) in [(0, 1), (30, 2)] {
            let error = OpenOptions::new().decode_from(png.chain(Refusing(parts))).unwrap_err();
            let Error::Allocation { mb, .. } = error else {
                panic!("{error}");
            };
            assert!(mb >= expected, "{mb} MB");
        }
    }
}
