//! Several images in a row, as one image.

use kontext::image::{Rgb, RgbImage};

/// Pixels between two images.
const GAP: u32 = 8;

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
}
