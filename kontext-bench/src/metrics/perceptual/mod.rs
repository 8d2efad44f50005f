//! Distances between images in the features of a network.
//!
//! Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018),
//! equation 1, as richzhang/PerceptualSimilarity (lpips 0.1.4) `lpips/lpips.py` computes it; for the form by cosines,
//! CompVis/latent-diffusion `ldm/modules/evaluate/evaluate_perceptualsim.py`, `PNet`.

mod backbone;
mod features;
mod form;
mod naming;

use std::path::Path;

use image::RgbImage;
use kontext_core::{Device, During, Result, Stage, array};
use kontext_nn::Weights;

pub use backbone::Backbone;
pub use features::Features;
use features::batches;
use form::Form;

use super::same_size;

/// Perceptual distance of two images in the features of a network. At each compared layer and position both
/// channel vectors are normalised to unit length and compared; the values are averaged over positions and summed over
/// layers. There are three forms, which [`Perceptual::name`] distinguishes:
///
/// | name | compared by | weights |
/// | --- | --- | --- |
/// | `lpips-…` | the squared difference, weighted by channel | heads |
/// | `pdist-…` | the squared difference `\|u - v\|²`, the baseline of the lpips package (`lpips=False`) | none |
/// | `cosine-…` | `1 - u · v` ([`Perceptual::cosine`]) | none |
///
/// With torchvision's weights and the heads of the lpips package the first is LPIPS; numbers of other weights must not
/// be called so. The second is exactly twice the third, because `|u - v|² = 2 - 2 u · v` for unit vectors; only
/// positions at which no channel is active differ. With torchvision's VGG16 the third is most likely the PDist of the
/// paper on FLUX.1 Kontext ([`crate::reconstruction::PUBLISHED`]).
///
/// # Files
/// safetensors in the names of torchvision, lpips or Caffe; see [`Features::open`]. From Python:
///
/// ```python
/// from safetensors.torch import save_file
/// save_file(torchvision.models.alexnet(weights="DEFAULT").state_dict(), "alexnet.safetensors")
/// save_file(torch.load("lpips/weights/v0.1/alex.pth"), "heads.safetensors")
/// ```
#[derive(Debug)]
pub struct Perceptual {
    features: Features,
    form: Form,
    name: String,
}

impl Perceptual {
    /// Opens a network, detected by its content, and the channel weights in `heads`, if given.
    ///
    /// # Errors
    /// The errors of [`Features::open`], for either file; heads of another network have another shape.
    pub fn open(backbone_weights: &Path, heads: Option<&Path>, device: Device) -> Result<Self> {
        let features = Features::open(backbone_weights, device)?;
        let heads = heads.map(Weights::open).transpose()?;
        Self::new(features, heads.as_ref())
    }

    /// Creates a distance from a network and, for weighted distances, its heads: `linN.model.1.weight`
    /// [1, C, 1, 1] for each layer N.
    ///
    /// # Errors
    /// [`kontext_core::Error::Checkpoint`] if heads are missing, unknown or of another shape.
    pub fn new(features: Features, heads: Option<&Weights>) -> Result<Self> {
        let form = match heads {
            Some(heads) => Form::Weighted(form::read_heads(heads, &features)?),
            None => Form::Squares,
        };
        Ok(Self::with(features, form))
    }

    /// Creates the distance by cosines: for each layer 1 minus the mean over positions of the cosine of the channel
    /// vectors, summed over layers, without heads.
    ///
    /// As in the reference, a position at which no channel of either image is active has the cosine 0, and equal images
    /// are only at 0 up to the rounding of f32, about 1e-6.
    ///
    /// # Example
    /// ```
    /// use image::RgbImage;
    /// use kontext_bench::metrics::{Backbone, Features, Perceptual};
    /// use kontext_core::Device;
    /// use kontext_nn::Weights;
    /// let features = || Features::new(Backbone::AlexNet, &Weights::synthetic(0), Device::Cpu);
    /// let (cosine, squares) = (Perceptual::cosine(features()?), Perceptual::new(features()?, None)?);
    /// assert_eq!((cosine.name(), squares.name()), ("cosine-alexnet", "pdist-alexnet"));
    /// let a = RgbImage::from_fn(40, 40, |x, y| image::Rgb([6 * x as u8, 6 * y as u8, 100]));
    /// let b = RgbImage::from_fn(40, 40, |x, y| image::Rgb([6 * y as u8, 6 * x as u8, 100]));
    /// let [cosine, squares] = [cosine, squares].map(|network| network.distance(&[(&a, &b)]));
    /// assert!((2.0 * cosine?[0] / squares?[0] - 1.0).abs() < 1e-4);
    /// # Ok::<(), kontext_core::Error>(())
    /// ```
    #[must_use]
    pub fn cosine(features: Features) -> Self {
        Self::with(features, Form::Cosine)
    }

    fn with(features: Features, form: Form) -> Self {
        let name = format!("{}-{}", form.name(), features.network());
        Self { features, form, name }
    }

    /// Returns the name of the distance: "lpips-alexnet" with heads, "pdist-alexnet" without, "cosine-alexnet" by
    /// cosines; "-caffe" is appended for Caffe's weights.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the network, itself an [`Embedder`](crate::metrics::Embedder).
    #[must_use]
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Computes the distance of each pair, from 0 for equal images. Consecutive pairs of one size are
    /// batched.
    ///
    /// # Errors
    /// [`kontext_core::Error::InvalidArgument`] if the images of a pair differ in size, or are smaller than
    /// [`Backbone::least_side`]; [`kontext_core::Error::Torch`] if libtorch fails.
    pub fn distance(&self, pairs: &[(&RgbImage, &RgbImage)]) -> Result<Vec<f64>> {
        pairs.iter().try_for_each(|(a, b)| same_size(a, b))?;
        let mut distances = Vec::with_capacity(pairs.len());
        for batch in batches(pairs, |(a, _)| *a, 2) {
            distances.extend(self.batch(batch).during(Stage::Other("comparing features"))?);
        }
        Ok(distances)
    }

    fn batch(&self, pairs: &[(&RgbImage, &RgbImage)]) -> Result<Vec<f64>> {
        let images: Vec<&RgbImage> = pairs
            .iter()
            .map(|(a, _)| *a)
            .chain(pairs.iter().map(|(_, b)| *b))
            .collect();
        let (mut sums, mut layer) = (vec![0.0; pairs.len()], 0);
        self.features.each(&images, |x| {
            let means = self.form.means(x, pairs.len() as i64, layer)?; // [B]
            for (sum, mean) in sums.iter_mut().zip(array::to_vec(&means)?) {
                *sum += f64::from(mean);
            }
            layer += 1;
            Ok(())
        })?;
        Ok(sums)
    }
}
