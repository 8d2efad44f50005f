//! Kernel inception distance, in the features of any network.
//!
//! Source: Bińkowski et al., "Demystifying MMD GANs" (2018), section 4.

use image::RgbImage;
use kontext_core::Result;

use super::Features;
use super::kernel_distance::{Samples, check, kernel_distance};
use crate::statistics::Bootstrap;

/// Kernel distance of images to a fixed reference set, in the features of a network: KID, except for the
/// network. It is not comparable to the KID of Inception, nor to that of another reference set.
///
/// An image's vector is made of the means over positions of each compared layer ([`Features::pooled`]). Each
/// layer is divided by the root mean square of its values over the reference set, so that layers count by
/// their channels and networks of any scale get the same kernel.
///
/// # Example
/// ```
/// use image::{Rgb, RgbImage};
/// use kontext_bench::metrics::{Backbone, Features, Kid, Samples};
/// use kontext_core::Device;
/// use kontext_nn::Weights;
///
/// // Random weights; published ones are opened with `Features::open`.
/// let features = Features::new(Backbone::SqueezeNet11, &Weights::synthetic(0), Device::Cpu)?;
/// let image = |seed: u32, level: u32| RgbImage::from_fn(24, 24, |x, y| {
///     Rgb([(x * y * seed % 200) as u8, ((x + seed * y) % 90) as u8, level as u8])
/// });
/// let truths: Vec<RgbImage> = (1..20).map(|seed| image(seed, 20)).collect();
/// let others: Vec<RgbImage> = (20..40).map(|seed| image(seed, 250)).collect();
/// let kid = Kid::new(&features, &truths.iter().collect::<Vec<_>>())?;
/// assert_eq!(kid.name(), "kid-squeezenet1.1");
/// let far = kid.distance(&others.iter().collect::<Vec<_>>(), Samples::Independent, 100)?;
/// assert!(far.estimate().low > 0.0);
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Kid<'a> {
    features: &'a Features,
    references: Vec<Vec<f32>>,
    /// One factor for each value of a vector.
    factors: Vec<f32>,
    name: String,
}

impl<'a> Kid<'a> {
    /// Embeds the reference set, of images of any sizes.
    ///
    /// # Errors
    /// [`kontext_core::Error::InvalidArgument`] for fewer than 2 images, or one smaller than
    /// [`Backbone::least_side`](crate::metrics::Backbone::least_side); [`kontext_core::Error::Torch`] if libtorch fails.
    pub fn new(features: &'a Features, references: &[&RgbImage]) -> Result<Self> {
        let mut references = features.pooled(references)?;
        let factors = factors(&references, features.backbone().channels());
        scale(&mut references, &factors);
        check("references", &references)?;
        Ok(Self {
            features,
            references,
            factors,
            name: format!("kid-{}", features.network()),
        })
    }

    /// Returns the name of the distance: "kid-squeezenet1.1"; "-caffe" is appended for Caffe's weights.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Computes the distance of a set of images to the reference set, as [`kernel_distance`].
    ///
    /// # Errors
    /// Those of [`Kid::new`] and [`kernel_distance`].
    pub fn distance(&self, images: &[&RgbImage], samples: Samples, resamples: usize) -> Result<Bootstrap> {
        let mut vectors = self.features.pooled(images)?;
        scale(&mut vectors, &self.factors);
        kernel_distance(&vectors, &self.references, samples, resamples)
    }
}

/// Returns the factor of each value of a vector: the reciprocal root mean square of its layer over a set; 1 for
/// a layer of zeros.
fn factors(set: &[Vec<f32>], layers: &[i64]) -> Vec<f32> {
    let (mut factors, mut start) = (Vec::new(), 0);
    for width in layers.iter().map(|width| *width as usize) {
        let values = || set.iter().flat_map(|vector| vector.iter().skip(start).take(width));
        let squares: f64 = values().map(|value| f64::from(*value).powi(2)).sum();
        let root = (squares / (set.len() * width).max(1) as f64).sqrt();
        let factor = if root > 0.0 { 1.0 / root } else { 1.0 };
        factors.extend(std::iter::repeat_n(factor as f32, width));
        start += width;
    }
    factors
}

fn scale(set: &mut [Vec<f32>], factors: &[f32]) {
    for vector in set {
        vector
            .iter_mut()
            .zip(factors)
            .for_each(|(value, factor)| *value *= factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_layer_has_a_mean_square_of_one() {
        let mut set = vec![vec![3.0, 0.0, 100.0, 0.0], vec![0.0, 1.0, 50.0, 0.0]];
        let factors = factors(&set, &[2, 1, 1]);
        scale(&mut set, &factors);
        let square = |columns: std::ops::Range<usize>| {
            let values: Vec<f32> = set.iter().flat_map(|vector| vector[columns.clone()].to_vec()).collect();
            values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32
        };
        assert!((square(0..2) - 1.0).abs() < 1e-6 && (square(2..3) - 1.0).abs() < 1e-6);
        assert_eq!((square(3..4), factors[3]), (0.0, 1.0));
    }
}
