//! AutoencoderKL, the autoencoder of FLUX.1 and Stable Diffusion 3, XL, 2 and 1.
//!
//! Source: huggingface/diffusers v0.38 models/autoencoders/autoencoder_kl.py, AutoencoderKL; vae.py,
//! DiagonalGaussianDistribution; black-forest-labs/flux@802fb47 src/flux/modules/autoencoder.py.

use kontext_core::{During, Result, Stage, Tensor, check};
use kontext_kernels::Kernels;
use kontext_nn::{Conv2d, Weights};

use crate::VaeConfig;
use crate::decoder::Decoder;
use crate::encoder::Encoder;
use crate::size::{check_image, check_latents};

/// A variational autoencoder: images to latents of an eighth of the size and back.
///
/// # Example
/// ```
/// use kontext_core::{Device, Kind, noise};
/// use kontext_nn::Weights;
/// use kontext_vae::{AutoencoderKl, VaeConfig};
///
/// let config = VaeConfig { block_out_channels: [8, 8, 8, 8], norm_num_groups: 4, ..VaeConfig::flux() };
/// let vae = AutoencoderKl::new(&Weights::synthetic(0), &config)?;
/// let image = noise::randn(&[1, 3, 32, 48], 0, Kind::Float, Device::Cpu)?.f_clamp(-1.0, 1.0)?;
/// let latents = vae.encode_latents(&image)?;
/// assert_eq!(latents.size(), [1, 16, 4, 6]);
/// assert_eq!(vae.decode(&latents)?.size(), [1, 3, 32, 48]);
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug)]
pub struct AutoencoderKl {
    encoder: Encoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    decoder: Decoder,
    config: VaeConfig,
}

impl AutoencoderKl {
    /// Reads `encoder`, `decoder` and, if the configuration has them, `quant_conv` and `post_quant_conv`.
    ///
    /// Tensors are requested by diffusers' names; see [`crate::names`] for files in other namings.
    ///
    /// # Errors
    /// [`kontext_core::Error::InvalidArgument`] as [`VaeConfig::validate`], and those of [`Weights::tensor`].
    pub fn new(w: &Weights, config: &VaeConfig) -> Result<Self> {
        config.validate()?;
        let conv = |name: &str, channels: i64| Conv2d::new(&w.at(name), channels, channels, 1);
        let quant_conv = || conv("quant_conv", 2 * config.latent_channels);
        let post_quant_conv = || conv("post_quant_conv", config.latent_channels);
        Ok(Self {
            encoder: Encoder::new(&w.at("encoder"), config)?,
            quant_conv: config.use_quant_conv.then(quant_conv).transpose()?,
            post_quant_conv: config.use_post_quant_conv.then(post_quant_conv).transpose()?,
            decoder: Decoder::new(&w.at("decoder"), config)?,
            config: config.clone(),
        })
    }

    /// Returns the configuration.
    #[must_use]
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Sets the kernels of the autoencoder's device, or removes them (default: none). Those of a transformer
    /// serve, of any shape.
    ///
    /// Group norms and their SiLU then use them in bf16, unless a gradient is wanted or the roundings are to
    /// be libtorch's ([`GroupNorm::by_libtorch_in`](kontext_nn::GroupNorm::by_libtorch_in)).
    #[expect(clippy::needless_pass_by_value, reason = "as the transformer takes them")]
    pub fn set_kernels(&mut self, kernels: Option<Kernels>) {
        for norm in self.encoder.norms().chain(self.decoder.norms()) {
            norm.set_kernels(kernels.as_ref());
        }
    }

    /// Encodes an image [B, 3, H, W] in [-1, 1], sides multiples of 8, to the distribution of its latents.
    /// Computed in the image's dtype.
    ///
    /// # Errors
    /// [`kontext_core::Error::Shape`] for another shape, [`kontext_core::Error::InvalidArgument`] for other
    /// sides.
    pub fn encode(&self, image: &Tensor) -> Result<Posterior> {
        check_image(image, self.config.in_channels)?;
        self.moments(image)
            .and_then(|moments| Posterior::from_moments(&moments))
            .during(Stage::Encode)
    }

    /// Encodes an image as [`AutoencoderKl::encode`] and returns the scaled mean `(mean - shift) * scale`,
    /// [B, latent channels, H/8, W/8].
    ///
    /// # Errors
    /// Those of [`AutoencoderKl::encode`].
    pub fn encode_latents(&self, image: &Tensor) -> Result<Tensor> {
        let posterior = self.encode(image)?;
        self.scale(posterior.mode())
    }

    /// Scales raw latents, such as a sample of a [`Posterior`], for the diffusion model:
    /// `(z - shift) * scale`.
    ///
    /// # Errors
    /// [`kontext_core::Error::Torch`] if libtorch fails.
    pub fn scale(&self, latents: &Tensor) -> Result<Tensor> {
        Ok(latents
            .f_sub_scalar(self.config.shift_factor)?
            .f_mul_scalar(self.config.scaling_factor)?)
    }

    /// Decodes scaled latents [B, latent channels, H/8, W/8] to an image [B, 3, H, W], roughly in [-1, 1]:
    /// `decoder(z / scale + shift)`. Computed in the latents' dtype.
    ///
    /// With the presets' sizes it needs up to 640 values per pixel in addition to the weights: 2.6 GB for
    /// 1024x1024 in f32. [`crate::Autoencoder::decode_tiled`] bounds this.
    ///
    /// # Errors
    /// [`kontext_core::Error::Shape`] for another shape, [`kontext_core::Error::InvalidArgument`] for another
    /// number of channels.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        check_latents(latents, self.config.latent_channels)?;
        self.image(latents).during(Stage::Decode)
    }

    fn moments(&self, image: &Tensor) -> Result<Tensor> {
        let moments = self.encoder.forward(image)?;
        match &self.quant_conv {
            Some(conv) => conv.forward(&moments),
            None => Ok(moments),
        }
    }

    fn image(&self, latents: &Tensor) -> Result<Tensor> {
        let raw = latents
            .f_div_scalar(self.config.scaling_factor)?
            .f_add_scalar(self.config.shift_factor)?;
        match &self.post_quant_conv {
            Some(conv) => self.decoder.forward(&conv.forward(&raw)?),
            None => self.decoder.forward(&raw),
        }
    }
}

/// The encoder's distribution of raw latents: a normal distribution, independent in every element.
#[derive(Debug)]
pub struct Posterior {
    /// Mean, [B, latent channels, H/8, W/8].
    pub mean: Tensor,
    /// Log variance, same shape, clamped to [-30, 20].
    pub logvar: Tensor,
}

impl Posterior {
    /// Splits the encoder's output [B, 2 * latent channels, H/8, W/8] into mean and log variance.
    fn from_moments(moments: &Tensor) -> Result<Self> {
        let half = moments.size4()?.1 / 2;
        let mean = moments.f_narrow(1, 0, half)?.f_contiguous()?;
        let logvar = moments.f_narrow(1, half, half)?.f_clamp(-30.0, 20.0)?.f_contiguous()?;
        Ok(Self { mean, logvar })
    }

    /// Returns the most likely latents: the mean, which FLUX.1 Kontext takes as input.
    pub fn mode(&self) -> &Tensor {
        &self.mean
    }

    /// Returns the sample `mean + exp(logvar / 2) * noise`, for standard normal noise of the shape of `mean`.
    ///
    /// # Errors
    /// [`kontext_core::Error::Shape`] for noise of another shape.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        let sizes: Vec<Option<i64>> = self.mean.size().into_iter().map(Some).collect();
        check::shape("noise", noise, "[B, latent channels, H/8, W/8]", &sizes)?;
        Ok(self.mean.f_addcmul(&self.logvar.f_mul_scalar(0.5)?.f_exp()?, noise)?)
    }
}
