//! Published numbers of autoencoders.

use std::fmt;

/// Means of an autoencoder as its authors published them.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Published {
    /// The autoencoder's name in the paper.
    pub vae: &'static str,
    /// Perceptual distance in the features of VGG.
    pub pdist: f64,
    /// Structural similarity.
    pub ssim: f64,
    /// Peak signal-to-noise ratio in dB.
    pub psnr: f64,
}

/// Number of images of [`PUBLISHED`].
pub const PUBLISHED_IMAGES: usize = 4096;

/// Side of the square images of [`PUBLISHED`], in pixels.
pub const PUBLISHED_SIDE: u32 = 256;

/// The table of the paper on FLUX.1 Kontext: means over [`PUBLISHED_IMAGES`] random images of ImageNet's evaluation
/// set, at [`PUBLISHED_SIDE`] pixels on a side.
///
/// The paper says "perceptual distance in VGG feature space" and no more. Most likely it is
/// [`Perceptual::cosine`](crate::metrics::Perceptual::cosine) with torchvision's VGG16, as latent-diffusion's
/// evaluation computes it: the model card of SDXL's autoencoder gives 0.88 for that code on COCO at 256x256, the paper
/// 0.890. To check this, measure SDXL's autoencoder: expected are 0.88 to 0.89.
///
/// Source: Black Forest Labs, "FLUX.1 Kontext: Flow Matching for In-Context Image Generation and Editing in Latent
/// Space" (2025), arXiv 2506.15742, table 1.
pub const PUBLISHED: [Published; 5] = [
    published("Flux-VAE", 0.332, 0.896, 31.1),
    published("SD3-VAE", 0.452, 0.858, 29.6),
    published("SD3-TAE", 0.746, 0.774, 27.9),
    published("SDXL-VAE", 0.890, 0.748, 25.9),
    published("SD-VAE", 0.949, 0.720, 25.0),
];

const fn published(vae: &'static str, pdist: f64, ssim: f64, psnr: f64) -> Published {
    Published { vae, pdist, ssim, psnr }
}

/// Formats the name as in a table: "Flux-VAE, published".
impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, published", self.vae)
    }
}
