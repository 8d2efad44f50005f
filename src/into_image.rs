//! Conversions to the images of a request.

use std::sync::Arc;

use image::{DynamicImage, RgbImage};
use kontext_core::images;

/// A value that becomes an image of a [`Request`](crate::Request) or of a session: 8-bit RGB, shared by [`Arc`].
///
/// An `Arc<RgbImage>` is shared and an `RgbImage` moved, both without a copy; a `&RgbImage` is copied once. A
/// [`DynamicImage`] is converted as [`open_image`](crate::open_image) converts files: transparent parts are
/// composited on white, 16 bits rounded to 8. It has no EXIF orientation and no colour profile: decode files with
/// [`open_image`](crate::open_image) or [`image_from_bytes`](crate::image_from_bytes), which apply them. A copy or a
/// conversion ends the program if the system refuses its memory; a shared or a moved image takes none.
///
/// # Example
/// ```
/// use std::sync::Arc;
/// use kontext::image::{DynamicImage, Rgba, RgbaImage, RgbImage};
/// use kontext::Request;
/// let photo = Arc::new(RgbImage::new(640, 480));
/// let request = Request::edit(&photo, "make it winter");
/// assert!(Arc::ptr_eq(&request.clone().images[0], &photo));     // no copy of the pixels
///
/// let transparent = RgbaImage::from_pixel(2, 2, Rgba([10, 20, 30, 0]));
/// let request = Request::edit(DynamicImage::from(transparent), "make it winter");
/// assert_eq!(request.images[0].get_pixel(0, 0).0, [255, 255, 255]);
/// ```
pub trait IntoImage {
    /// Converts to a shared image.
    fn into_image(self) -> Arc<RgbImage>;
}

impl IntoImage for Arc<RgbImage> {
    fn into_image(self) -> Arc<RgbImage> {
        self
    }
}

impl IntoImage for &Arc<RgbImage> {
    fn into_image(self) -> Arc<RgbImage> {
        Arc::clone(self)
    }
}

impl IntoImage for RgbImage {
    fn into_image(self) -> Arc<RgbImage> {
        Arc::new(self)
    }
}

impl IntoImage for &RgbImage {
    fn into_image(self) -> Arc<RgbImage> {
        Arc::new(self.clone())
    }
}

impl IntoImage for DynamicImage {
    fn into_image(self) -> Arc<RgbImage> {
        Arc::new(match self {
            Self::ImageRgb8(image) => image,
            other => images::flatten(&other),
        })
    }
}

impl IntoImage for &DynamicImage {
    fn into_image(self) -> Arc<RgbImage> {
        Arc::new(images::flatten(self))
    }
}

#[cfg(test)]
mod tests {
    use image::{Luma, Rgb, Rgba, RgbaImage};

    use super::*;

    #[test]
    fn shared_and_owned_images_keep_their_memory() {
        let image = RgbImage::from_pixel(3, 2, Rgb([1, 2, 3]));
        let pixels = image.as_ptr();
        let shared = image.into_image();
        assert_eq!(shared.as_ptr(), pixels);
        assert_eq!((&shared).into_image().as_ptr(), pixels);
        let owned = Arc::try_unwrap(shared).unwrap();
        assert_eq!(DynamicImage::from(owned).into_image().as_ptr(), pixels);
    }

    #[test]
    fn every_form_of_an_image_gives_the_same_pixels() {
        let image = RgbImage::from_fn(3, 2, |x, y| Rgb([x as u8, y as u8, 7]));
        let dynamic = DynamicImage::from(image.clone());
        for converted in [(&image).into_image(), (&dynamic).into_image(), dynamic.into_image()] {
            assert_eq!(*converted, image);
        }
        let half = RgbaImage::from_pixel(1, 1, Rgba([0, 100, 255, 128]));
        assert_eq!(DynamicImage::from(half).into_image().get_pixel(0, 0).0, [127, 177, 255]);
        let grey = image::ImageBuffer::from_pixel(1, 1, Luma([0x00c0_u16]));
        assert_eq!(DynamicImage::from(grey).into_image().get_pixel(0, 0).0, [1; 3]);
    }
}
