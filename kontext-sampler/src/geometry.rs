//! Image sizes that the model was trained on, and their token grids.

use kontext_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::Conformance;

/// Side of one token in image pixels: a factor of 8 from the autoencoder, 2 from packing.
pub const TOKEN_PIXELS: u32 = 16;

/// A width and a height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Size {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

/// Rows and columns of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Rows.
    pub rows: i64,
    /// Columns.
    pub cols: i64,
}

impl Size {
    /// Creates a size of `width` x `height`.
    #[must_use]
    pub const fn new(width: u32, height: u32) -> Self {
        Self { width, height }
    }

    /// Returns the number of pixels.
    #[must_use]
    pub fn area(self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    /// Returns the width divided by the height.
    #[must_use]
    pub fn ratio(self) -> f64 {
        f64::from(self.width) / f64::from(self.height)
    }

    /// Rounds both sides down to multiples of [`TOKEN_PIXELS`], but not below it.
    #[must_use]
    pub fn floored(self) -> Self {
        let floor = |side: u32| (side / TOKEN_PIXELS * TOKEN_PIXELS).max(TOKEN_PIXELS);
        Self::new(floor(self.width), floor(self.height))
    }

    /// Scales to `area` pixels at the same ratio, with sides rounded to the nearest multiples of
    /// [`TOKEN_PIXELS`].
    #[must_use]
    pub fn scaled_to(self, area: u64) -> Self {
        let scale = (area as f64 / self.area().max(1) as f64).sqrt();
        let side = |s: u32| ((f64::from(s) * scale / f64::from(TOKEN_PIXELS)).round() as u32).max(1) * TOKEN_PIXELS;
        Self::new(side(self.width), side(self.height))
    }

    /// Returns the grid of tokens.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a side is zero, not a multiple of [`TOKEN_PIXELS`], or larger than
    /// [`LARGEST_SIDE`].
    pub fn grid(self) -> Result<Grid> {
        let fits = |side: u32| side > 0 && side <= LARGEST_SIDE && side.is_multiple_of(TOKEN_PIXELS);
        if !fits(self.width) || !fits(self.height) {
            let expected = format!(
                "sides that are multiples of {TOKEN_PIXELS} from {TOKEN_PIXELS} to {LARGEST_SIDE} (nearest: {})",
                self.nearest()
            );
            return Err(Error::invalid("image size", expected, self));
        }
        Ok(Grid {
            rows: i64::from(self.height / TOKEN_PIXELS),
            cols: i64::from(self.width / TOKEN_PIXELS),
        })
    }

    /// Returns the nearest size with a grid, which the error suggests.
    fn nearest(self) -> Self {
        let side = |s: u32| (s.min(LARGEST_SIDE) + TOKEN_PIXELS / 2) / TOKEN_PIXELS * TOKEN_PIXELS;
        Self::new(side(self.width).max(TOKEN_PIXELS), side(self.height).max(TOKEN_PIXELS))
    }
}

/// Longest side of an image that a request may ask for. Beyond 4096, positions kept in bf16, as in the
/// references, would be wrong, and the cost of attention grows with the fourth power of the side.
pub const LARGEST_SIDE: u32 = 8192;

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

impl Grid {
    /// Returns the number of tokens.
    #[must_use]
    pub fn tokens(self) -> i64 {
        self.rows * self.cols
    }

    /// Returns the size of the image.
    #[must_use]
    pub fn size(self) -> Size {
        Size::new(self.cols as u32 * TOKEN_PIXELS, self.rows as u32 * TOKEN_PIXELS)
    }
}

impl std::fmt::Display for Grid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} rows x {} columns", self.rows, self.cols)
    }
}

/// The sizes that FLUX.1 Kontext was trained on, near one megapixel.
///
/// Source: black-forest-labs/flux@802fb47 `src/flux/util.py`, `PREFERED_KONTEXT_RESOLUTIONS`.
pub const PREFERRED_SIZES: [Size; 17] = [
    Size::new(672, 1568),
    Size::new(688, 1504),
    Size::new(720, 1456),
    Size::new(752, 1392),
    Size::new(800, 1328),
    Size::new(832, 1248),
    Size::new(880, 1184),
    Size::new(944, 1104),
    Size::new(1024, 1024),
    Size::new(1104, 944),
    Size::new(1184, 880),
    Size::new(1248, 832),
    Size::new(1328, 800),
    Size::new(1392, 752),
    Size::new(1456, 720),
    Size::new(1504, 688),
    Size::new(1568, 672),
];

/// Returns the preferred size nearest to an image's ratio.
///
/// The references compare ratios linearly, so an image and its transpose may get sizes that are not
/// transposes; [`Conformance::Native`] compares their logarithms.
#[must_use]
pub fn preferred_size(image: Size, sizes: &[Size], conformance: Conformance) -> Size {
    let ratio = match conformance {
        Conformance::Diffusers => image.floored().ratio(),
        Conformance::Native | Conformance::Bfl => image.ratio(),
    };
    let distance = |size: &Size| match conformance {
        Conformance::Native => (ratio.ln() - size.ratio().ln()).abs(),
        Conformance::Diffusers | Conformance::Bfl => (ratio - size.ratio()).abs(),
    };
    let order = |a: &&Size, b: &&Size| distance(a).total_cmp(&distance(b)).then(a.cmp(b));
    sizes.iter().min_by(order).copied().unwrap_or(Size::new(1024, 1024))
}

/// Returns the target size that `FluxKontextPipeline` derives from `width`, `height` and `max_area`: the
/// ratio at the area, floored to multiples of 16. It changes even some of the preferred sizes.
///
/// Source: huggingface/diffusers 0.38 `pipeline_flux_kontext.py`, `FluxKontextPipeline.__call__`.
#[must_use]
pub fn diffusers_target(asked: Size, max_area: u64) -> Size {
    let (ratio, area) = (asked.ratio(), max_area as f64);
    let side = |exact: f64| exact.sqrt().round_ties_even() as u32;
    Size::new(side(area * ratio), side(area / ratio)).floored()
}

/// Returns the target size that `prepare_kontext` derives from `width` and `height`: each rounded up to a
/// multiple of 16.
///
/// Source: black-forest-labs/flux@802fb47 `src/flux/sampling.py`, `get_noise` and `unpack`.
#[must_use]
pub fn bfl_target(asked: Size) -> Size {
    let ceil = |side: u32| side.div_ceil(TOKEN_PIXELS).saturating_mul(TOKEN_PIXELS);
    Size::new(ceil(asked.width), ceil(asked.height))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preferred_size_is_nearest_to_itself_in_every_mode() {
        for size in PREFERRED_SIZES {
            for mode in [Conformance::Native, Conformance::Diffusers, Conformance::Bfl] {
                assert_eq!(preferred_size(size, &PREFERRED_SIZES, mode), size);
            }
        }
    }

    #[test]
    fn a_size_off_the_grid_is_answered_with_the_nearest() {
        let error = Size::new(100, 64).grid().unwrap_err().to_string();
        assert!(error.ends_with("(nearest: 96x64), got 100x64"), "{error}");
        assert!(Size::new(0, 64).grid().is_err());
        assert!(Size::new(16, 1 << 20).grid().is_err());
    }
}
