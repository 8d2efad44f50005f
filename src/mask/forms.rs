//! Forms of masks other than grey levels: alpha, boxes, polygons, and segmenters.

use image::{GrayImage, RgbImage, RgbaImage};
use kontext_core::{Error, Result, buffer};
use kontext_sampler::Size;

use super::{Mask, check_size};

/// A source of masks, such as a network that finds objects.
///
/// Closures are segmenters.
///
/// # Example
/// ```
/// use kontext::image::{GrayImage, Luma, RgbImage};
/// use kontext::{Mask, Segmenter};
/// let bright = |image: &RgbImage| {
///     let level = |x, y| Luma([if image.get_pixel(x, y).0[0] > 200 { 255 } else { 0 }]);
///     Ok(GrayImage::from_fn(image.width(), image.height(), level))
/// };
/// let image = RgbImage::from_fn(4, 1, |x, _| kontext::image::Rgb([if x == 3 { 255 } else { 9 }; 3]));
/// assert_eq!(Mask::segmented(&image, &bright)?.pixels.as_raw(), &[0, 0, 0, 255]);
/// # Ok::<(), kontext::Error>(())
/// ```
pub trait Segmenter {
    /// Returns a mask of the image's size: 255 for the pixels to repaint.
    ///
    /// # Errors
    /// Whatever prevents it; a run passes it on.
    fn segment(&self, image: &RgbImage) -> Result<GrayImage>;
}

impl<F: Fn(&RgbImage) -> Result<GrayImage>> Segmenter for F {
    fn segment(&self, image: &RgbImage) -> Result<GrayImage> {
        self(image)
    }
}

/// The memory of a mask, in messages.
const MASK: &str = "the mask";

impl Mask {
    /// Asks a segmenter for the mask of an image.
    ///
    /// # Errors
    /// Those of the segmenter, and [`Error::InvalidArgument`] if its mask has another size.
    pub fn segmented(image: &RgbImage, segmenter: &dyn Segmenter) -> Result<Self> {
        let mask = segmenter.segment(image)?;
        check_size(&mask, image.width(), image.height())?;
        Ok(Self::new(mask))
    }

    /// Creates the mask of an image whose transparent pixels are to be repainted, as OpenAI's image edits take them.
    ///
    /// # Errors
    /// [`Error::Allocation`] if the system refuses the memory.
    pub fn from_alpha(image: &RgbaImage) -> Result<Self> {
        from_fn(Size::new(image.width(), image.height()), |x, y| {
            255 - image.get_pixel(x, y).0[3]
        })
    }

    /// Creates the mask of a rectangle [left, top, width, height] in an image of this size.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for one without a pixel, or beyond the image.
    pub fn rectangle(image: Size, [left, top, width, height]: [u32; 4]) -> Result<Self> {
        let ends = (left.checked_add(width), top.checked_add(height));
        let (Some(right), Some(bottom)) = ends else {
            return Err(out_of(image, left, top, width, height));
        };
        if width == 0 || height == 0 || right > image.width || bottom > image.height {
            return Err(out_of(image, left, top, width, height));
        }
        from_fn(image, |x, y| {
            if (left..right).contains(&x) && (top..bottom).contains(&y) {
                255
            } else {
                0
            }
        })
    }

    /// Creates the mask of a polygon with these corners [x, y], in pixels from the image's top left corner, in an image of
    /// this size: pixels whose centre is inside, by the even-odd rule. Parts beyond the image are cut off.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for fewer than 3 corners, or numbers that are not finite.
    pub fn polygon(image: Size, corners: &[[f32; 2]]) -> Result<Self> {
        if corners.len() < 3 {
            return Err(Error::invalid("polygon of a mask", "at least 3 corners", corners.len()));
        }
        if let Some([x, y]) = corners.iter().find(|corner| corner.iter().any(|c| !c.is_finite())) {
            return Err(Error::invalid(
                "corner of a mask's polygon",
                "finite numbers",
                format!("({x}, {y})"),
            ));
        }
        let (width, height) = (image.width as usize, image.height as usize);
        let mut levels = buffer::filled(0_u8, width * height, MASK)?;
        for (row, levels) in levels.chunks_exact_mut(width.max(1)).enumerate() {
            let crossings = crossings(corners, row as f64 + 0.5);
            for pair in crossings.chunks_exact(2) {
                // Of the columns whose centre x + 0.5 is in [from, to).
                let column = |x: f64| (x - 0.5).ceil().clamp(0.0, width as f64) as usize;
                let inside = column(pair[0])..column(pair[1]);
                levels.get_mut(inside).into_iter().for_each(|levels| levels.fill(255));
            }
        }
        of_levels(image, levels)
    }
}

fn out_of(image: Size, left: u32, top: u32, width: u32, height: u32) -> Error {
    let expected = format!("[left, top, width, height] of at least a pixel within {image}");
    Error::invalid(
        "rectangle of a mask",
        expected,
        format!("[{left}, {top}, {width}, {height}]"),
    )
}

/// Returns the places at which the sides of a polygon cross the height `y`, from left to right.
fn crossings(corners: &[[f32; 2]], y: f64) -> Vec<f64> {
    let wide = |[x, y]: [f32; 2]| [f64::from(x), f64::from(y)];
    let ends = corners.iter().skip(1).chain(corners.first());
    let crossing = |(&a, &b): (&[f32; 2], &[f32; 2])| {
        let ([ax, ay], [bx, by]) = (wide(a), wide(b));
        // A corner at this height belongs to the side below it, so that it counts once.
        ((ay <= y) != (by <= y)).then(|| ax + (y - ay) / (by - ay) * (bx - ax))
    };
    let mut crossings: Vec<f64> = corners.iter().zip(ends).filter_map(crossing).collect();
    crossings.sort_by(f64::total_cmp);
    crossings
}

fn from_fn(size: Size, level: impl Fn(u32, u32) -> u8) -> Result<Mask> {
    let mut levels = buffer::with_room(size.area() as usize, MASK)?;
    for y in 0..size.height {
        levels.extend((0..size.width).map(|x| level(x, y)));
    }
    of_levels(size, levels)
}

fn of_levels(size: Size, levels: Vec<u8>) -> Result<Mask> {
    let missing = || Error::bug("a mask with missing pixels");
    let pixels = GrayImage::from_raw(size.width, size.height, levels).ok_or_else(missing)?;
    Ok(Mask::new(pixels))
}

#[cfg(test)]
mod tests {
    use image::{Luma, Rgba};

    use super::*;

    fn rows(mask: &Mask) -> Vec<String> {
        let row = |levels: &[u8]| levels.iter().map(|&l| if l == 255 { '#' } else { '.' }).collect();
        mask.pixels
            .as_raw()
            .chunks(mask.pixels.width() as usize)
            .map(row)
            .collect()
    }

    #[test]
    fn a_rectangle_and_a_polygon_cover_the_pixels_whose_centres_they_have() {
        let size = Size::new(6, 4);
        let rectangle = Mask::rectangle(size, [1, 1, 3, 2]).unwrap();
        assert_eq!(rows(&rectangle), ["......", ".###..", ".###..", "......"]);
        let corners = [[1.0, 1.0], [4.0, 1.0], [4.0, 3.0], [1.0, 3.0]];
        assert_eq!(rows(&Mask::polygon(size, &corners).unwrap()), rows(&rectangle));
        let triangle = [[0.0, 0.0], [6.0, 0.0], [0.0, 4.0]];
        let triangle = Mask::polygon(size, &triangle).unwrap();
        assert_eq!(rows(&triangle), ["#####.", "####..", "##....", "#....."]);
        // A hole by the even-odd rule, in a path that crosses itself; and parts beyond the image.
        let beyond = [[-9.0, -9.0], [99.0, -9.0], [99.0, 99.0], [-9.0, 99.0]];
        assert!(Mask::polygon(size, &beyond).unwrap().pixels.iter().all(|&l| l == 255));
    }

    #[test]
    fn transparent_pixels_are_repainted() {
        let image = RgbaImage::from_fn(3, 1, |x, _| Rgba([7, 7, 7, [255, 100, 0][x as usize]]));
        assert_eq!(Mask::from_alpha(&image).unwrap().pixels.as_raw(), &[0, 155, 255]);
    }

    #[test]
    fn what_is_no_part_of_the_image_is_refused() {
        let size = Size::new(6, 4);
        for rectangle in [[0, 0, 0, 1], [6, 0, 1, 1], [0, 3, 1, 2], [u32::MAX, 0, 2, 1]] {
            let error = Mask::rectangle(size, rectangle).unwrap_err().to_string();
            assert!(error.contains("within 6x4"), "{error}");
        }
        assert!(
            Mask::polygon(size, &[[0.0, 0.0]; 2])
                .unwrap_err()
                .to_string()
                .contains("3 corners")
        );
        assert!(
            Mask::polygon(size, &[[0.0, f32::NAN]; 3])
                .unwrap_err()
                .to_string()
                .contains("finite")
        );
        let wrong = |_: &RgbImage| Ok(GrayImage::from_pixel(4, 6, Luma([255])));
        let error = Mask::segmented(&RgbImage::new(6, 4), &wrong).unwrap_err().to_string();
        assert!(
            error.contains("6x4; it seems to be turned") && error.ends_with("got 4x6"),
            "{error}"
        );
    }
}
