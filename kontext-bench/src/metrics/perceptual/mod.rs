//! Distances between images in the features of a network.
//!
//! Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018),
//! equation 1, as richzhang/PerceptualSimilarity (lpips 0.1.4) `lpips/lpips.py` computes it.

mod backbone;
mod features;
mod naming;

use std::path::Path;

use image::RgbImage;
use kontext_core::{Device, During, Kind, Result, Stage, Tensor, array};
use kontext_nn::Weights;

pub use backbone::Backbone;
pub use features::Features;
use features::batches;

use super::same_size;

/// Guard against division by zero for all-zero features; lpips 0.1.4 adds it to the norm.
const EPSILON: f64 = 1e-10;

/// Perceptual distance of two images in the features of a network. At each compared layer and position both
/// channel vectors are normalised to unit length and their squared difference is taken, averaged over
/// positions and summed over layers.
///
/// With heads, each layer's squares are weighted by channel. With torchvision's weights and the heads of the
/// lpips package this is LPIPS; numbers of other weights must not be called so. Without heads it is the
/// baseline of that package (`lpips=False`), and [`Perceptual::name`] says `pdist-…`.
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
    heads: Option<Vec<Tensor>>,
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
        let form = if heads.is_some() { "lpips" } else { "pdist" };
        let name = format!("{form}-{}", features.network());
        let heads = heads.map(|heads| read_heads(heads, &features)).transpose()?;
        Ok(Self { features, heads, name })
    }

    /// Returns the name of the distance: "lpips-alexnet" with heads, else "pdist-alexnet"; "-caffe" is
    /// appended for Caffe's weights.
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
            let unit = x.f_div(
                &x.f_square()?
                    .f_sum_dim_intlist([1_i64].as_slice(), true, None)?
                    .f_sqrt()?
                    .f_add_scalar(EPSILON)?,
            )?;
            let half = pairs.len() as i64;
            let squares = unit
                .f_narrow(0, 0, half)?
                .f_sub(&unit.f_narrow(0, half, half)?)?
                .f_square_()?;
            let squares = match self.heads.as_ref().and_then(|heads| heads.get(layer)) {
                Some(head) => squares.f_mul(head)?,
                None => squares,
            };
            let means = squares.f_sum_dim_intlist([1_i64].as_slice(), true, Kind::Float)?;
            let means = means.f_mean_dim([1_i64, 2, 3].as_slice(), false, Kind::Double)?; // [B]
            for (sum, mean) in sums.iter_mut().zip(array::to_vec(&means)?) {
                *sum += f64::from(mean);
            }
            layer += 1;
            Ok(())
        })?;
        Ok(sums)
    }
}

/// Reads one head per layer, [1, C, 1, 1].
fn read_heads(heads: &Weights, features: &Features) -> Result<Vec<Tensor>> {
    let weights = heads.clone().device(features.device()).kind(Kind::Float);
    let read = |(layer, channels): (usize, &i64)| {
        let names = naming::head(layer);
        let there = names.iter().find(|name| weights.contains(name)).or(names.first());
        weights.tensor(there.map_or("", String::as_str), &[1, *channels, 1, 1])
    };
    let read = features
        .backbone()
        .channels()
        .iter()
        .enumerate()
        .map(read)
        .collect::<Result<Vec<_>>>()?;
    // A whole LPIPS model may be given as the heads: its duplicates, network and colours are ignored.
    weights.ignore(|name| name.starts_with("net.") || name.starts_with("scaling_layer."));
    weights.ignore(|name| (0..read.len()).any(|layer| naming::head(layer).iter().any(|known| known == name)));
    weights.finish()?;
    Ok(read)
}
