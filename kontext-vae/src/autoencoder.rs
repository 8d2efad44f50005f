//! One face for both kinds of autoencoder, and opening either from files.

use std::path::Path;

use kontext_core::{Device, Kind, Result, Tensor};
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
    /// The autoencoder that a model was trained with.
    Kl(AutoencoderKl),
    /// A small one that resembles it.
    Tiny(AutoencoderTiny),
}

impl Autoencoder {
    /// Opens a folder with a `config.json` and weights, as diffusers saves them, or one file in any [`Naming`].
    ///
    /// Which kind it is shows in the names of the tensors. Without a `config.json` the sizes come from their shapes, see
    /// [`VaeConfig::infer`] and [`TinyConfig::infer`]. Weights are put on `device` in `kind`.
    ///
    /// # Errors
    /// [`kontext_core::Error::Io`] where a file cannot be read, [`kontext_core::Error::Checkpoint`] where it holds no
    /// autoencoder, or one that does not fit its configuration, or tensors that no part of it reads.
    pub fn open(path: impl AsRef<Path>, kind: Kind, device: Device) -> Result<Self> {
        let path = path.as_ref();
        let config = path.join("config.json");
        let config = config.is_file().then_some(config);
        let weights = Weights::open(path)?.kind(kind).device(device);
        Self::from_weights(&weights, config.as_deref())
    }

    /// Builds the autoencoder that a file's weights are of, with the sizes of a `config.json` or those of its tensors.
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

    /// Channels of the latents: 16 for FLUX.1 and Stable Diffusion 3, 4 for those before.
    #[must_use]
    pub fn latent_channels(&self) -> i64 {
        match self {
            Self::Kl(vae) => vae.config().latent_channels,
            Self::Tiny(vae) => vae.config().latent_channels,
        }
    }

    /// Pixels along each side of one latent: [`DOWNSCALE`].
    #[must_use]
    pub fn downscale(&self) -> i64 {
        DOWNSCALE
    }

    /// A picture [B, 3, H, W] in [-1, 1], sides multiples of 8, to latents [B, latent channels, H/8, W/8] as models see
    /// them. Of a distribution the mean. Computed in the picture's kind.
    ///
    /// # Errors
    /// [`kontext_core::Error::Shape`] for another shape, [`kontext_core::Error::InvalidArgument`] for other sides.
    pub fn encode_latents(&self, picture: &Tensor) -> Result<Tensor> {
        match self {
            Self::Kl(vae) => vae.encode_latents(picture),
            Self::Tiny(vae) => vae.encode_latents(picture),
        }
    }

    /// Latents [B, latent channels, H/8, W/8] as models see them to a picture [B, 3, H, W], about in [-1, 1]. Computed in
    /// the latents' kind.
    ///
    /// # Errors
    /// [`kontext_core::Error::Shape`] for another shape, [`kontext_core::Error::InvalidArgument`] for another number of
    /// channels.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        match self {
            Self::Kl(vae) => vae.decode(latents),
            Self::Tiny(vae) => vae.decode(latents),
        }
    }

    /// As [`Autoencoder::encode_latents`], in overlapping tiles where the picture is larger than one.
    ///
    /// # Errors
    /// Those of [`Autoencoder::encode_latents`] and of [`Tiling::validate`].
    pub fn encode_latents_tiled(&self, picture: &Tensor, tiling: Tiling) -> Result<Tensor> {
        tiled(picture, tiling, [DOWNSCALE, 1], |tile| self.encode_latents(tile))
    }

    /// As [`Autoencoder::decode`], in overlapping tiles where the picture is larger than one.
    ///
    /// # Errors
    /// Those of [`Autoencoder::decode`] and of [`Tiling::validate`].
    pub fn decode_tiled(&self, latents: &Tensor, tiling: Tiling) -> Result<Tensor> {
        tiled(latents, tiling, [1, DOWNSCALE], |tile| self.decode(tile))
    }
}

/// Whether a tensor belongs to other parts of the file, or to the training of the autoencoder.
fn is_extra(name: &str, prefix: &str) -> bool {
    const EXTRAS: [&str; 2] = ["loss.", "model_ema."];
    match name.strip_prefix(prefix) {
        Some(name) => EXTRAS.iter().any(|extra| name.starts_with(extra)),
        None => true,
    }
}
