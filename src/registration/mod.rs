//! Registration of a result against its source.

mod cell;
mod fit;
mod level;
mod motion;
mod plane;

use image::{GrayImage, RgbImage};
use kontext_core::{Error, Result, buffer, images, threads};

use self::cell::Cell;
use self::level::Level;
use self::motion::Motion;
use self::plane::{Kept, Plane};

/// Most pixels of the finest level. A motion is found to a fiftieth of its pixels, so more would only take longer.
const FINEST: usize = 400_000;
/// Longest side at which a motion is searched.
const COARSEST: usize = 128;
/// Shortest side of a level, and of an image that is registered: four cells.
const SMALLEST: usize = 32;

/// The translation and the zoom of an edit's result against its source.
///
/// Models that edit a whole image return it a little shifted and zoomed, mostly by a few pixels. What the edit itself
/// changed tells nothing of it: a registration is measured by the parts that are the same in both images, whatever
/// their brightness, contrast and sharpness. docs/registration.md has the errors.
///
/// # Example
/// ```
/// use kontext::Registration;
/// use kontext::image::{Rgb, RgbImage};
///
/// let wave = |x: f64, y: f64| 128.0 + 60.0 * ((x * 0.31 + y * 0.17).sin() + (x * 0.11 - y * 0.23).sin());
/// let seen_from = |dx: f64| RgbImage::from_fn(160, 120, |x, y| Rgb([wave(f64::from(x) - dx, f64::from(y)) as u8; 3]));
/// let (source, result) = (seen_from(0.0), seen_from(2.5));
///
/// let registration = Registration::measure(&source, &result, None)?;
/// assert!((registration.dx - 2.5).abs() < 0.05 && registration.dy.abs() < 0.05);
/// let back_in_place = registration.resampled(&result, 160, 120)?;
/// assert!(back_in_place.get_pixel(80, 60)[0].abs_diff(source.get_pixel(80, 60)[0]) <= 3);
/// # Ok::<(), kontext::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Registration {
    /// Pixels by which the result's centre lies to the right of the source's.
    pub dx: f64,
    /// Pixels by which the result's centre lies below the source's.
    pub dy: f64,
    /// Zoom of the result about its centre: above 1, all is larger than in the source.
    pub scale: f64,
    /// Share of the source's textured cells of 8 by 8 pixels that the result has, too, in [0, 1]: at the place where it
    /// was found, also if that is not trusted. 0 if nothing was measured.
    pub matched: f64,
    /// Standard error of the motion at the corners, in pixels, by how much the cells disagree; infinite if nothing was
    /// measured.
    pub error: f64,
}

impl Registration {
    /// The registration of a result that did not move, measured by nothing.
    pub const IDENTITY: Self = Self {
        dx: 0.0,
        dy: 0.0,
        scale: 1.0,
        matched: 0.0,
        error: f64::INFINITY,
    };

    /// Least motion, in pixels at the corner that moves most, that is taken for one: a smaller one is hardly seen, and
    /// undoing it costs sharpness.
    pub const LEAST_MOTION: f64 = 0.2;

    /// Least share of the source's textured cells that the result must have, too. Photographs of other things, best of
    /// all motions, had up to 0.08.
    pub const LEAST_MATCHED: f64 = 0.12;

    /// Largest standard error of a motion that is trusted, as a share of the motion. Chance correlations, which stay
    /// where the images differ, have small errors as well, so this alone decides nothing.
    pub const LARGEST_ERROR: f64 = 0.125;

    /// Least likeness of all cells after the motion, relative to that without one. It is below 1, because values between
    /// pixels are blurred ones: where a fraction of a pixel moved a noisy result, they may cost as much as they bring.
    pub const LEAST_GAIN: f64 = 0.97;

    /// Measures the motion of `result` against `source`. Pixels of which `changed` is 128 and more are left out; it
    /// need not name all that an edit changed, since parts that differ have no weight.
    ///
    /// The identity is returned for a motion of less than [`LEAST_MOTION`](Self::LEAST_MOTION), and for one that is not
    /// trusted: the images share too little, the parts that they share disagree, or they are as much alike
    /// without it. Motions are found up to about 5 pixels of an image reduced to between 65 and 128 pixels (10 at 256 pixels, 40
    /// at 1024) and a zoom of 4 %; images with a side of less than 32 pixels are not measured.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the images differ in size, [`Error::Allocation`] and [`Error::Thread`] if the system
    /// refuses memory or threads.
    pub fn measure(source: &RgbImage, result: &RgbImage, changed: Option<&GrayImage>) -> Result<Self> {
        let size = source.dimensions();
        for (name, other) in [
            ("registered result", Some(result.dimensions())),
            ("mask of changes", changed.map(GrayImage::dimensions)),
        ] {
            if let Some((width, height)) = other.filter(|other| *other != size) {
                let expected = format!("the source's size, {}x{}", size.0, size.1);
                return Err(Error::invalid(name, expected, format!("{width}x{height}")));
            }
        }
        threads::start()?;
        let sides = [size.0, size.1].map(f64::from);
        let levels = levels(source, result, changed)?;
        let (Some(coarsest), Some(finest)) = (levels.last(), levels.first()) else {
            return Ok(Self::IDENTITY);
        };
        let mut motion = fit::search(coarsest, sides).in_pixels_of(1.0 / coarsest.factor);
        for level in levels.iter().rev().skip(1) {
            motion = fit::refine(level, motion.in_pixels_of(level.factor)).in_pixels_of(1.0 / level.factor);
        }
        // Where an edit moved a part, the search may have taken a motion between that of the part and none.
        let near = fit::refine(finest, Motion::IDENTITY).in_pixels_of(1.0 / finest.factor);
        let likeness = |motion: Motion| likeness(&finest.cells(motion.in_pixels_of(finest.factor)));
        let best = if likeness(near) >= likeness(motion) {
            near
        } else {
            motion
        };
        Ok(Self::judged(finest, best, sides))
    }

    /// Returns the registration by a motion, or the identity if the motion is too small or not trusted.
    fn judged(level: &Level, motion: Motion, sides: [f64; 2]) -> Self {
        let cells = level.cells(motion.in_pixels_of(level.factor));
        let without = level.cells(Motion::IDENTITY);
        let matched = cells.iter().filter(|cell| cell.is_matched()).count() as f64 / cells.len().max(1) as f64;
        let error = fit::Normal::of(&cells).error() * level.factor;
        let distance = motion.at_corners(sides);
        let trusted = matched >= Self::LEAST_MATCHED
            && error <= Self::LARGEST_ERROR * distance
            && likeness(&cells) >= Self::LEAST_GAIN * likeness(&without);
        if distance < Self::LEAST_MOTION || !trusted {
            return Self {
                matched,
                error,
                ..Self::IDENTITY
            };
        }
        let [dx, dy] = motion.shift;
        Self {
            dx,
            dy,
            scale: motion.scale,
            matched,
            error,
        }
    }

    /// Returns `true` if nothing moved.
    #[must_use]
    pub fn is_identity(&self) -> bool {
        (self.dx, self.dy, self.scale) == (0.0, 0.0, 1.0)
    }

    /// Returns the result in the source's place, resampled once from its size to `width` by `height`
    /// ([`resize_box`](images::resize_box)); an edge that the motion moved out of the image is repeated. The
    /// identity resizes ([`resize`](images::resize)), or copies an image of this size.
    ///
    /// `result` has the size in which the motion was measured.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a size is zero or the motion leaves nothing of the image; otherwise those of
    /// [`resize`](images::resize).
    pub fn resampled(&self, result: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
        if self.is_identity() && result.dimensions() == (width, height) {
            return buffer::copied_image(result);
        }
        images::resize_box(result, self.source_box(result.width(), result.height()), width, height)
    }

    /// Returns where the source's edges lie in a result of this size: `[left, top, right, bottom]` in pixels.
    #[must_use]
    pub fn source_box(&self, width: u32, height: u32) -> [f64; 4] {
        let [width, height] = [width, height].map(f64::from);
        // Both terms vanish for the identity, so its box is the image to the last bit.
        let edge = |at: f64, side: f64, shift: f64| at + (self.scale - 1.0) * (at - side / 2.0) + shift;
        [
            edge(0.0, width, self.dx),
            edge(0.0, height, self.dy),
            edge(width, width, self.dx),
            edge(height, height, self.dy),
        ]
    }
}

/// Returns how much of the source the result has.
fn likeness(cells: &[Cell]) -> f64 {
    cells.iter().map(Cell::blurred_likeness).sum()
}

/// Returns the levels of two images, the finest first; none of an image that is too small.
fn levels(source: &RgbImage, result: &RgbImage, changed: Option<&GrayImage>) -> Result<Vec<Level>> {
    let sides = [source.width(), source.height()].map(f64::from);
    let mut planes = [Plane::luma(source)?, Plane::luma(result)?];
    let mut kept = changed.map(Kept::outside).transpose()?;
    let mut levels = Vec::new();
    let mut factor = 1.0;
    loop {
        let [source, result] = &planes;
        if source.width.min(source.height) < SMALLEST {
            return Ok(levels);
        }
        if source.values.len() <= FINEST {
            levels.push(Level::new([source, result], kept.as_ref(), sides, factor)?);
        }
        if source.width.max(source.height) <= COARSEST {
            return Ok(levels);
        }
        planes = [source.halved()?, result.halved()?];
        kept = kept.as_ref().map(Kept::halved).transpose()?;
        factor *= 2.0;
    }
}
