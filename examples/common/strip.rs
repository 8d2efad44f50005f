//! Pictures beside each other in one.

use kontext::image::{Rgb, RgbImage};

/// Pictures side by side, enlarged by whole pixels, with white between them.
pub fn strip(pictures: &[&RgbImage], enlarge: u32) -> RgbImage {
    const GAP: u32 = 8;
    let width: u32 = pictures
        .iter()
        .map(|p| p.width() * enlarge + GAP)
        .sum::<u32>()
        .saturating_sub(GAP);
    let height = pictures.iter().map(|p| p.height() * enlarge).max().unwrap_or(1);
    let mut strip = RgbImage::from_pixel(width.max(1), height, Rgb([255; 3]));
    let mut left = 0;
    for picture in pictures {
        for (x, y, pixel) in picture.enumerate_pixels() {
            for (dx, dy) in (0..enlarge * enlarge).map(|n| (n % enlarge, n / enlarge)) {
                strip.put_pixel(left + x * enlarge + dx, y * enlarge + dy, *pixel);
            }
        }
        left += picture.width() * enlarge + GAP;
    }
    strip
}
