//! Accuracy of a map of changes.

use image::{GrayImage, RgbImage};
use kontext_core::Result;

use crate::edit::agree;
use crate::metrics::same_size;

/// A map of changes against the true changes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MapQuality {
    /// Share of the pixels to be edited that the map leaves fully to the edit (255).
    pub covered: f64,
    /// Share of the pixels to be left unchanged that the map keeps (0).
    pub kept: f64,
}

impl MapQuality {
    /// Compares a map with the pixels that differ between source and truth; `None` if all or none of them
    /// differ.
    ///
    /// # Errors
    /// [`kontext_core::Error::InvalidArgument`] if source and truth differ in size.
    ///
    /// # Example
    /// ```
    /// use image::{GrayImage, Luma, Rgb, RgbImage};
    /// use kontext_bench::drift::MapQuality;
    /// let source = RgbImage::new(10, 1);
    /// let truth = RgbImage::from_fn(10, 1, |x, _| Rgb([if x < 4 { 200 } else { 0 }; 3]));
    /// let map = GrayImage::from_fn(10, 1, |x, _| Luma([if (1..6).contains(&x) { 255 } else { 0 }]));
    /// let quality = MapQuality::of(&map, &source, &truth)?.unwrap();
    /// assert_eq!((quality.covered, quality.kept), (3.0 / 4.0, 4.0 / 6.0));
    /// # Ok::<(), kontext_core::Error>(())
    /// ```
    pub fn of(map: &GrayImage, source: &RgbImage, truth: &RgbImage) -> Result<Option<Self>> {
        same_size(source, truth)?;
        let levels = map.pixels().map(|p| p.0[0]);
        let (mut changed, mut covered, mut same, mut kept) = (0_u32, 0_u32, 0_u32, 0_u32);
        for ((source, truth), level) in source.pixels().zip(truth.pixels()).zip(levels) {
            if agree(source, truth) {
                (same, kept) = (same + 1, kept + u32::from(level == 0));
            } else {
                (changed, covered) = (changed + 1, covered + u32::from(level == u8::MAX));
            }
        }
        if changed == 0 || same == 0 {
            return Ok(None);
        }
        let share = |part: u32, all: u32| f64::from(part) / f64::from(all);
        Ok(Some(Self {
            covered: share(covered, changed),
            kept: share(kept, same),
        }))
    }
}
