//! Several images in a row, as one image.

use kontext::Size;
use kontext::image::{Rgb, RgbImage};
use kontext_core::images::OpenOptions;
use kontext_core::{Error, Result};

/// Pixels between two images.
const GAP: u32 = 8;

/// Returns the sizes of images that are scaled to `height`, and the size of their row.
///
/// # Errors
/// If the row has more than [`OpenOptions::MAX_PIXELS`].
pub fn row_size(images: impl IntoIterator<Item = Size>, height: u32) -> Result<(Vec<Size>, Size)> {
    let level = |size: Size| {
        (u64::from(size.width) * u64::from(height))
            .div_ceil(u64::from(size.height).max(1))
            .max(1)
    };
    let widths: Vec<u64> = images.into_iter().map(level).collect();
    let gaps = u64::from(GAP) * (widths.len() as u64).saturating_sub(1);
    let width = widths.iter().sum::<u64>() + gaps;
    let area = width.saturating_mul(u64::from(height));
    let most = OpenOptions::MAX_PIXELS;
    let Some(width) = u32::try_from(width).ok().filter(|_| area <= most) else {
        let expected = format!("at most {most} pixels; leave the row out, or give less wide images");
        return Err(Error::invalid("row of images", expected, format!("{width}x{height}")));
    };
    // None is wider than the row.
    let sizes = widths.iter().map(|&width| Size::new(width as u32, height));
    Ok((sizes.collect(), Size::new(width, height)))
}

/// Puts images in a row, each enlarged by an integer factor, on white and with gaps of 8 pixels.
#[must_use]
pub fn strip(images: &[&RgbImage], enlarge: u32) -> RgbImage {
    let width: u32 = images
        .iter()
        .map(|image| image.width() * enlarge + GAP)
        .sum::<u32>()
        .saturating_sub(GAP);
    let height = images.iter().map(|image| image.height() * enlarge).max().unwrap_or(1);
    let mut strip = RgbImage::from_pixel(width.max(1), height, Rgb([255; 3]));
    let mut left = 0;
    for image in images {
        for (x, y, pixel) in image.enumerate_pixels() {
            for (dx, dy) in (0..enlarge * enlarge).map(|n| (n % enlarge, n / enlarge)) {
                strip.put_pixel(left + x * enlarge + dx, y * enlarge + dy, *pixel);
            }
        }
        left += image.width() * enlarge + GAP;
    }
    strip
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_enlarged_and_stand_in_a_row_on_white() {
        let (red, blue) = (Rgb([200, 0, 0]), Rgb([0, 0, 200]));
        let row = strip(
            &[&RgbImage::from_pixel(2, 1, red), &RgbImage::from_pixel(1, 3, blue)],
            2,
        );
        assert_eq!(row.dimensions(), (2 * 2 + 8 + 2, 6));
        assert_eq!((*row.get_pixel(3, 1), *row.get_pixel(12, 5)), (red, blue));
        let white = Rgb([255; 3]);
        assert_eq!((*row.get_pixel(0, 2), *row.get_pixel(4, 0)), (white, white));
        assert_eq!(strip(&[], 1).dimensions(), (1, 1));
    }

    #[test]
    fn the_size_of_a_row_is_that_of_its_images_and_bounded() {
        let sizes = [Size::new(200, 100), Size::new(3, 7)];
        let (level, row) = row_size(sizes, 50).unwrap();
        assert_eq!(level, [Size::new(100, 50), Size::new(22, 50)]);
        let images: Vec<RgbImage> = level
            .iter()
            .map(|size| RgbImage::new(size.width, size.height))
            .collect();
        let strip = strip(&images.iter().collect::<Vec<_>>(), 1);
        assert_eq!(strip.dimensions(), (row.width, row.height));
        let error = row_size([Size::new(1 << 28, 1), sizes[0]], 1024).unwrap_err();
        assert!(error.to_string().contains("at most 178956970 pixels"), "{error}");
    }
}
