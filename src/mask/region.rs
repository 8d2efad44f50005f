//! Rectangles of an image, and the one that the model sees of it.

use std::fmt;

use image::GrayImage;
use kontext_core::{Error, Result};
use kontext_sampler::Size;
use serde::{Deserialize, Serialize};

use super::{Mask, Outpaint};

/// A rectangle of an image, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs)] // Plain data, to be written out whole.
pub struct Region {
    /// Column of its left pixels.
    pub left: u32,
    /// Row of its top pixels.
    pub top: u32,
    /// Its size.
    pub size: Size,
}

impl Region {
    /// Returns the region of all pixels.
    #[must_use]
    pub fn all(size: Size) -> Self {
        Self { left: 0, top: 0, size }
    }

    /// Returns the smallest region with all pixels above 0; `None` if there are none.
    pub(super) fn of_pixels(mask: &GrayImage) -> Option<Self> {
        let width = mask.width().max(1) as usize;
        let (mut rows, mut columns) = (None::<[usize; 2]>, None::<[usize; 2]>);
        for (y, row) in mask.as_raw().chunks_exact(width).enumerate() {
            let Some(first) = row.iter().position(|&level| level > 0) else {
                continue;
            };
            let last = row.iter().rposition(|&level| level > 0).unwrap_or(first);
            rows = Some(rows.map_or([y, y], |[top, _]| [top, y]));
            columns = Some(columns.map_or([first, last], |[left, right]| [left.min(first), right.max(last)]));
        }
        let ([top, bottom], [left, right]) = (rows?, columns?);
        let side = |from: usize, to: usize| (to - from + 1) as u32;
        Some(Self {
            left: left as u32,
            top: top as u32,
            size: Size::new(side(left, right), side(top, bottom)),
        })
    }

    /// Returns the smallest region with this one and another.
    pub(super) fn with(self, other: Self) -> Self {
        let span = |a: u32, a_side: u32, b: u32, b_side: u32| {
            let (from, to) = (a.min(b), (a + a_side).max(b + b_side));
            (from, to - from)
        };
        let (left, width) = span(self.left, self.size.width, other.left, other.size.width);
        let (top, height) = span(self.top, self.size.height, other.top, other.size.height);
        Self {
            left,
            top,
            size: Size::new(width, height),
        }
    }

    /// Returns this region and `margin` pixels around it, within an image.
    pub(super) fn grown(self, margin: u32, image: Size) -> Self {
        let span = |from: u32, side: u32, end: u32| {
            let to = from.saturating_add(side).saturating_add(margin).min(end);
            let from = from.saturating_sub(margin);
            (from, to - from)
        };
        let (left, width) = span(self.left, self.size.width, image.width);
        let (top, height) = span(self.top, self.size.height, image.height);
        Self {
            left,
            top,
            size: Size::new(width, height),
        }
    }

    /// Returns this region, made wider or taller to the ratio of `like`, within an image.
    ///
    /// The additional pixels are on both sides, or on the one that has them.
    pub(super) fn in_ratio(self, like: Size, image: Size) -> Self {
        let Size { width, height } = self.size;
        let longer = |side: u32, ratio: f64| (f64::from(side) * ratio).round() as u32;
        let width = width.max(longer(height, like.ratio())).min(image.width);
        let height = height
            .max(longer(self.size.width, 1.0 / like.ratio()))
            .min(image.height);
        let begin = |from: u32, side: u32, wanted: u32, end: u32| {
            let before = (wanted - side) / 2;
            from.saturating_sub(before).min(end - wanted)
        };
        Self {
            left: begin(self.left, self.size.width, width, image.width),
            top: begin(self.top, self.size.height, height, image.height),
            size: Size::new(width, height),
        }
    }

    /// Returns the region moved by the padding on the left and above.
    pub(super) fn moved(self, right: u32, down: u32) -> Self {
        Self {
            left: self.left + right,
            top: self.top + down,
            ..self
        }
    }
}

/// Returns the size of a masked source with its padding, and the region that the model sees, for which `preferred` gives
/// the model's size.
pub(crate) fn region(
    mask: Option<&Mask>,
    outpaint: Option<&Outpaint>,
    source: Size,
    preferred: impl Fn(Size) -> Size,
) -> Result<(Size, Region)> {
    let (canvas, old) = match outpaint {
        None => (source, Region::all(source)),
        Some(outpaint) => outpaint.canvas(source)?,
    };
    let mut changed = outpaint.map(|outpaint| outpaint.reach(canvas, old));
    if let Some(mask) = mask {
        let Some(pixels) = Region::of_pixels(&mask.pixels) else {
            let expected = "at least a pixel above 0: white is repainted, black is kept";
            return Err(Error::invalid("mask", expected, "none"));
        };
        let reached = pixels.grown(mask.settings.reach(), source).moved(old.left, old.top);
        changed = Some(changed.map_or(reached, |changed| changed.with(reached)));
    }
    let margin = mask.and_then(|mask| mask.settings.crop);
    let margin = margin.or(outpaint.and_then(|outpaint| outpaint.crop));
    Ok(match (changed, margin) {
        (Some(changed), Some(margin)) => {
            let part = changed.grown(margin, canvas);
            (canvas, part.in_ratio(preferred(part.size), canvas))
        }
        _ => (canvas, Region::all(canvas)),
    })
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at ({}, {})", self.size, self.left, self.top)
    }
}

#[cfg(test)]
mod tests {
    use image::Luma;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_region_of_a_mask_has_its_pixels_and_no_row_or_column_more() {
        let mask = GrayImage::from_fn(9, 7, |x, y| Luma([u8::from((x, y) == (2, 5) || (x, y) == (6, 3))]));
        let region = Region::of_pixels(&mask).unwrap();
        assert_eq!(
            region,
            Region {
                left: 2,
                top: 3,
                size: Size::new(5, 3)
            }
        );
        assert_eq!(
            region.grown(2, Size::new(9, 7)),
            Region {
                left: 0,
                top: 1,
                size: Size::new(9, 6)
            }
        );
        assert_eq!(Region::of_pixels(&GrayImage::new(9, 7)), None);
    }

    proptest! {
        #[test]
        fn a_region_in_another_ratio_has_the_old_one_and_is_within_the_image(
            (width, height) in (1_u32..400, 1_u32..400),
            (a, b, c, d) in (0.0..1.0, 0.0..1.0, 0.0..1.0, 0.0..1.0),
            like in (1_u32..2000, 1_u32..2000),
        ) {
            let image = Size::new(width, height);
            let part = |share: f64, of: u32| ((share * f64::from(of)) as u32).min(of - 1);
            let (left, top) = (part(a, width), part(b, height));
            let size = Size::new(1 + part(c, width - left), 1 + part(d, height - top));
            let region = Region { left, top, size };
            let wide = region.in_ratio(Size::new(like.0, like.1), image);
            prop_assert_eq!(region.with(wide), wide);
            prop_assert_eq!(Region::all(image).with(wide), Region::all(image));
            // Of the ratio, unless the image ends.
            let stretch = wide.size.ratio() / (f64::from(like.0) / f64::from(like.1));
            let ends = wide.size.width == width || wide.size.height == height;
            let shortest = wide.size.width.min(wide.size.height);
            prop_assert!(ends || (stretch.ln().abs() < 1.0 / f64::from(shortest)), "{} {}", wide, stretch);
        }
    }
}
