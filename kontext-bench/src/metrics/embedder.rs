//! Subject identity of two images, by a network of the caller's choice.

use image::RgbImage;
use kontext_core::{Error, Result};

/// A network that embeds images; embeddings of the same subject point in the same direction.
///
/// [`crate::metrics::Features`] is a general-purpose embedder, for any subject. It is not a face network: for
/// faces, use the network with which your numbers should be comparable, such as ArcFace as a TorchScript
/// file. The embedder handles face detection and alignment, the input size of the network, and its value
/// range:
///
/// ```
/// use image::{RgbImage, imageops};
/// use kontext_bench::metrics::{Embedder, identity};
/// use kontext_core::Result;
///
/// struct MyFaces;                              // holds, for example, a `tch::CModule`
///
/// impl Embedder for MyFaces {
///     fn name(&self) -> &str {
///         "my face network, 112x112"
///     }
///
///     fn embed(&self, images: &[&RgbImage]) -> Result<Vec<Vec<f32>>> {
///         // Here: crop the face, run the network. For this example, the image at 4x4 is the vector.
///         let small = |p: &&RgbImage| imageops::thumbnail(*p, 4, 4).into_raw().into_iter().map(f32::from).collect();
///         Ok(images.iter().map(small).collect())
///     }
/// }
///
/// let face = RgbImage::from_fn(64, 64, |x, y| image::Rgb([x as u8, y as u8, 200]));
/// let same = identity(&MyFaces, &[(&face, &face)])?[0];
/// assert!(same.is_some_and(|cosine| (cosine - 1.0).abs() < 1e-9));
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub trait Embedder {
    /// Returns the name for reports: the network, and the purpose of its weights.
    fn name(&self) -> &str;

    /// Embeds each image, in order; all vectors have the same length and any scale. An empty vector says that the
    /// image has no subject, such as no face.
    ///
    /// # Errors
    /// Any error of the network.
    fn embed(&self, images: &[&RgbImage]) -> Result<Vec<Vec<f32>>>;
}

/// Computes the cosine similarity of the embeddings of each pair: 1 for the same subject, near 0 or below for
/// unrelated ones, `None` if an image has no subject. The threshold between same and unrelated depends on the network.
///
/// # Errors
/// The errors of the embedder; [`Error::InvalidArgument`] if its vectors are missing, differ in length, are
/// all zero, or are not finite.
pub fn identity(embedder: &dyn Embedder, pairs: &[(&RgbImage, &RgbImage)]) -> Result<Vec<Option<f64>>> {
    let images: Vec<&RgbImage> = pairs.iter().flat_map(|(a, b)| [*a, *b]).collect();
    let vectors = embedder.embed(&images)?;
    if vectors.len() != images.len() {
        let got = format!("{} from {}", vectors.len(), embedder.name());
        return Err(Error::invalid(
            "embeddings",
            format!("one for each of {} images", images.len()),
            got,
        ));
    }
    let (pairs, _) = vectors.as_chunks();
    let cosine = |[a, b]: &[Vec<f32>; 2]| match a.is_empty() || b.is_empty() {
        true => Ok(None),
        false => cosine(a, b).map(Some),
    };
    pairs.iter().map(cosine).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> Result<f64> {
    if a.len() != b.len() {
        return Err(Error::invalid(
            "embeddings",
            "vectors of one length",
            format!("{} and {}", a.len(), b.len()),
        ));
    }
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    if cosine.is_finite() {
        return Ok(cosine.clamp(-1.0, 1.0));
    }
    Err(Error::invalid(
        "embeddings",
        "finite vectors that are not all zero",
        "one that has no direction",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cosine_leaves_lengths_out() {
        assert!((cosine(&[1.0, 2.0], &[10.0, 20.0]).unwrap() - 1.0).abs() < 1e-12);
        assert!((cosine(&[1.0, 0.0], &[1.0, 1.0]).unwrap() - 0.5_f64.sqrt()).abs() < 1e-7);
        assert_eq!(cosine(&[1.0, 0.0], &[-2.0, 0.0]).unwrap(), -1.0);
    }

    #[test]
    fn an_image_without_a_subject_has_no_identity() {
        struct Brightest;
        impl Embedder for Brightest {
            fn name(&self) -> &str {
                "brightest"
            }
            fn embed(&self, images: &[&RgbImage]) -> Result<Vec<Vec<f32>>> {
                let brightest = |image: &&RgbImage| image.pixels().map(|p| f32::from(p[0])).fold(0.0, f32::max);
                let vector = |level: f32| if level > 0.0 { vec![level] } else { Vec::new() };
                Ok(images.iter().map(brightest).map(vector).collect())
            }
        }
        let (black, grey) = (RgbImage::new(2, 2), RgbImage::from_pixel(2, 2, image::Rgb([9; 3])));
        let pairs = [(&grey, &grey), (&black, &grey), (&grey, &black)];
        assert_eq!(identity(&Brightest, &pairs).unwrap(), [Some(1.0), None, None]);
    }

    #[test]
    fn vectors_without_a_direction_are_refused() {
        assert!(
            cosine(&[0.0, 0.0], &[1.0, 1.0])
                .unwrap_err()
                .to_string()
                .contains("no direction")
        );
        assert!(cosine(&[1.0], &[1.0, 1.0]).unwrap_err().to_string().contains("1 and 2"));
        assert!(cosine(&[f32::NAN], &[1.0]).is_err());
    }
}
