//! Common interface of both kinds of autoencoder, and opening either from files.

use std::path::Path;

use kontext_core::{Device, Kind, Result, Tensor};
use kontext_kernels::Kernels;
use kontext_nn::Weights;

use crate::names::Naming;
use crate::tiling::tiled;
use crate::{AutoencoderKl, AutoencoderTiny, DOWNSCALE, Tiling, TinyConfig, VaeConfig};

/// An autoencoder of either kind.
#[derive(Debug)]
#[non_exhaustive]
#[expect(
    clippy::large_enum_variant,
    reason = "a program holds one or two and does not move them"
)]
pub enum Autoencoder {
    /// The full autoencoder that a model was trained with.
    Kl(AutoencoderKl),
    /// A small autoencoder that approximates a full one.
    Tiny(AutoencoderTiny),
}

impl Autoencoder {
    /// Opens a diffusers folder (`config.json` and weights) or a single file in any [`Naming`].
    ///
    /// The kind of autoencoder is recognised by its tensor names. Without a `config.json`, sizes are inferred
    /// from tensor shapes; see [`VaeConfig::infer`] and [`TinyConfig::infer`]. Weights are loaded to `device`
    /// with dtype `kind`.
    ///
    /// # Errors
    /// [`kontext_core::Error::Io`] if a file cannot be read, [`kontext_core::Error::Checkpoint`] if it
    /// contains no autoencoder, one that does not match its configuration, or unknown tensors.
    pub fn open(path: impl AsRef<Path>, kind: Kind, device: Device) -> Result<Self> {
        let path = path.as_ref();
        let config = path.join("config.json");
        let config = config.is_file().then_some(config);
        let weights = Weights::open(path)?.kind(kind).device(device);
        Self::from_weights(&weights, config.as_deref())
    }

    /// Builds the autoencoder from a file's weights, with the sizes of a `config.json` or of its tensors.
    ///
    /// # Errors
    /// As [`Autoencoder::open`].
    pub fn from_weights(weights: &Weights, config: Option<&Path>) -> Result<Self> {
        let (naming, prefix) = Naming::of(weights)?;
        let cursor = weights.clone().named(naming.map()).at(prefix.trim_end_matches('.'));
        let autoencoder = if naming == Naming::Tiny {
            let config = config.map_or_else(|| TinyConfig::infer(weights), TinyConfig::from_json)?;
            Self::Tiny(AutoencoderTiny::new(&cursor, &config)?)
        } else {
            let config = config.map_or_else(|| VaeConfig::infer(weights), VaeConfig::from_json)?;
            Self::Kl(AutoencoderKl::new(&cursor, &config)?)
        };
        weights.ignore(|name| is_extra(name, &prefix));
        weights.finish()?;
        Ok(autoencoder)
    }

    /// Returns the number of latent channels: 16 for FLUX.1 and Stable Diffusion 3, 4 for earlier models.
    #[must_use]
    pub fn latent_channels(&self) -> i64 {
        match self {
            Self::Kl(vae) => vae.config().latent_channels,
            Self::Tiny(vae) => vae.config().latent_channels,
        }
    }

    /// Sets or removes kernels as [`AutoencoderKl::set_kernels`]. A tiny autoencoder has no operation for
    /// them.
    pub fn set_kernels(&mut self, kernels: Option<Kernels>) {
        match self {
            Self::Kl(vae) => vae.set_kernels(kernels),
            Self::Tiny(_) => {}
        }
    }

    /// Returns the number of pixels along each side of one latent: [`DOWNSCALE`].
    #[must_use]
    pub fn downscale(&self) -> i64 {
        DOWNSCALE
    }

    /// Encodes an image [B, 3, H, W] in [-1, 1], sides multiples of 8, to scaled latents
    /// [B, latent channels, H/8, W/8], the diffusion model's input. A variational autoencoder returns the
    /// mean of its distribution. Computed in the image's dtype.
    ///
    /// # Errors
    /// [`kontext_core::Error::Shape`] for another shape, [`kontext_core::Error::InvalidArgument`] for other
    /// sides.
    pub fn encode_latents(&self, image: &Tensor) -> Result<Tensor> {
        match self {
            Self::Kl(vae) => vae.encode_latents(image),
            Self::Tiny(vae) => vae.encode_latents(image),
        }
    }

    /// Decodes scaled latents [B, latent channels, H/8, W/8] to an image [B, 3, H, W], roughly in [-1, 1].
    /// Computed in the latents' dtype.
    ///
    /// # Errors
    /// [`kontext_core::Error::Shape`] for another shape, [`kontext_core::Error::InvalidArgument`] for another
    /// number of channels.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        match self {
            Self::Kl(vae) => vae.decode(latents),
            Self::Tiny(vae) => vae.decode(latents),
        }
    }

    /// Encodes as [`Autoencoder::encode_latents`], in overlapping tiles if the image is larger than one tile.
    ///
    /// # Errors
    /// Those of [`Autoencoder::encode_latents`] and of [`Tiling::validate`].
    pub fn encode_latents_tiled(&self, image: &Tensor, tiling: Tiling) -> Result<Tensor> {
        tiled(image, tiling, [DOWNSCALE, 1], |tile| self.encode_latents(tile))
    }

    /// Decodes as [`Autoencoder::decode`], in overlapping tiles if the image is larger than one tile.
    ///
    /// # Errors
    /// Those of [`Autoencoder::decode`] and of [`Tiling::validate`].
    pub fn decode_tiled(&self, latents: &Tensor, tiling: Tiling) -> Result<Tensor> {
        tiled(latents, tiling, [1, DOWNSCALE], |tile| self.decode(tile))
    }
}

/// Returns `true` for tensors of other models in the file and for those needed only to train the autoencoder.
fn is_extra(name: &str, prefix: &str) -> bool {
    const EXTRAS: [&str; 2] = ["loss.", "model_ema."];
    match name.strip_prefix(prefix) {
        Some(name) => EXTRAS.iter().any(|extra| name.starts_with(extra)),
        None => true,
    }
}
