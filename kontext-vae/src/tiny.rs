//! AutoencoderTiny: TAESD, TAESDXL, TAESD3 and TAEF1, which decode at a twentieth of the cost of the
//! autoencoders whose latents they share.
//!
//! Source: huggingface/diffusers v0.38 models/autoencoders/{autoencoder_tiny,vae}.py, AutoencoderTiny,
//! EncoderTiny, DecoderTiny; models/unets/unet_2d_blocks.py, AutoencoderTinyBlock.

use kontext_core::{During, Result, Stage, Tensor};
use kontext_nn::{Conv2d, Weights, ops};

use crate::TinyConfig;
use crate::size::{check_image, check_latents};
use crate::upsample::Upsample;

/// Soft bound of the decoder's latents: `tanh(z / 3) * 3`.
const LATENT_MAGNITUDE: f64 = 3.0;

/// A small autoencoder for the latents of a large one.
///
/// Its latents are already scaled: TAEF1's approximate `(mean - 0.1159) * 0.3611` of FLUX.1's autoencoder.
#[derive(Debug)]
pub struct AutoencoderTiny {
    encoder: Vec<Layer>,
    decoder: Vec<Layer>,
    config: TinyConfig,
}

impl AutoencoderTiny {
    /// Reads `encoder.layers.N` and `decoder.layers.N`.
    ///
    /// # Errors
    /// [`kontext_core::Error::InvalidArgument`] as [`TinyConfig::validate`], and those of
    /// [`Weights::tensor`].
    pub fn new(w: &Weights, config: &TinyConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            encoder: encoder(&w.at("encoder.layers"), config)?,
            decoder: decoder(&w.at("decoder.layers"), config)?,
            config: config.clone(),
        })
    }

    /// Returns the configuration.
    #[must_use]
    pub fn config(&self) -> &TinyConfig {
        &self.config
    }

    /// Encodes an image [B, 3, H, W] in [-1, 1], sides multiples of 8, to scaled latents
    /// [B, latent channels, H/8, W/8]. Computed in the image's dtype.
    ///
    /// # Errors
    /// [`kontext_core::Error::Shape`] for another shape, [`kontext_core::Error::InvalidArgument`] for other
    /// sides.
    pub fn encode_latents(&self, image: &Tensor) -> Result<Tensor> {
        check_image(image, self.config.in_channels)?;
        let encode = || {
            let unit = ops::channels_last(image)?.f_add_scalar(1.0)?.f_div_scalar(2.0)?; // pixels in [0, 1]
            let latents = run(&self.encoder, unit)?;
            let latents = latents
                .f_sub_scalar(self.config.shift_factor)?
                .f_mul_scalar(self.config.scaling_factor)?;
            Ok(latents.f_contiguous()?)
        };
        encode().during(Stage::Encode)
    }

    /// Decodes scaled latents [B, latent channels, H/8, W/8] to an image [B, 3, H, W], roughly in [-1, 1].
    /// Computed in the latents' dtype.
    ///
    /// # Errors
    /// [`kontext_core::Error::Shape`] for another shape, [`kontext_core::Error::InvalidArgument`] for another
    /// number of channels.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        check_latents(latents, self.config.latent_channels)?;
        let decode = || {
            let latents = ops::channels_last(latents)?.f_div_scalar(self.config.scaling_factor)?;
            let latents = latents
                .f_add_scalar(self.config.shift_factor)?
                .f_div_scalar(LATENT_MAGNITUDE)?;
            let image = run(&self.decoder, latents.f_tanh()?.f_mul_scalar(LATENT_MAGNITUDE)?)?;
            Ok(image.f_mul_scalar(2.0)?.f_sub_scalar(1.0)?)
        };
        decode().during(Stage::Decode)
    }
}

fn encoder(w: &Weights, config: &TinyConfig) -> Result<Vec<Layer>> {
    let width = config.encoder_width;
    let mut layers = Numbered::new(w);
    for (level, blocks) in config.num_encoder_blocks.into_iter().enumerate() {
        match level {
            0 => layers.push(|w| Ok(Layer::Conv(Conv2d::new(w, config.in_channels, width, 3)?)))?,
            _ => layers.push(|w| Ok(Layer::Conv(Conv2d::without_bias(w, width, width, 3)?.stride(2))))?,
        }
        layers.push_blocks(blocks, width)?;
    }
    layers.push(|w| Ok(Layer::Conv(Conv2d::new(w, width, config.latent_channels, 3)?)))?;
    Ok(layers.layers)
}

fn decoder(w: &Weights, config: &TinyConfig) -> Result<Vec<Layer>> {
    let width = config.decoder_width;
    let mut layers = Numbered::new(w);
    layers.push(|w| Ok(Layer::Conv(Conv2d::new(w, config.latent_channels, width, 3)?)))?;
    layers.push(|_| Ok(Layer::Relu))?;
    let [first, second, third, last] = config.num_decoder_blocks;
    for blocks in [first, second, third] {
        layers.push_blocks(blocks, width)?;
        layers.skip(); // the upsampling, fused with the following convolution
        layers.push(|w| Ok(Layer::Upsample(Upsample::without_bias(w, width)?)))?;
    }
    layers.push_blocks(last, width)?;
    layers.push(|w| Ok(Layer::Conv(Conv2d::new(w, width, config.out_channels, 3)?)))?;
    Ok(layers.layers)
}

/// Builder of layers named by consecutive numbers.
struct Numbered<'a> {
    weights: &'a Weights,
    number: usize,
    layers: Vec<Layer>,
}

impl<'a> Numbered<'a> {
    fn new(weights: &'a Weights) -> Self {
        Self {
            weights,
            number: 0,
            layers: Vec::new(),
        }
    }

    fn push(&mut self, layer: impl FnOnce(&Weights) -> Result<Layer>) -> Result<()> {
        self.layers.push(layer(&self.weights.at(self.number.to_string()))?);
        self.skip();
        Ok(())
    }

    fn push_blocks(&mut self, count: i64, width: i64) -> Result<()> {
        (0..count).try_for_each(|_| self.push(|w| Ok(Layer::Block(Block::new(w, width)?))))
    }

    fn skip(&mut self) {
        self.number += 1;
    }
}

#[derive(Debug)]
enum Layer {
    Conv(Conv2d),
    Relu,
    Block(Block),
    Upsample(Upsample),
}

/// Runs the layers in sequence on channels-last activations; `x` is not shared, so ReLU works in place.
fn run(layers: &[Layer], mut x: Tensor) -> Result<Tensor> {
    for layer in layers {
        x = match layer {
            Layer::Conv(conv) => conv.forward(&x)?,
            Layer::Relu => x.f_relu_()?,
            Layer::Block(block) => block.forward(&x)?,
            Layer::Upsample(upsample) => upsample.forward(&x)?,
        };
    }
    Ok(x)
}

/// A residual block: `relu(conv(relu(conv(relu(conv(x))))) + x)`.
#[derive(Debug)]
struct Block {
    conv: [Conv2d; 3],
}

impl Block {
    fn new(w: &Weights, width: i64) -> Result<Self> {
        let conv = |name: &str| Conv2d::new(&w.at(name), width, width, 3);
        Ok(Self {
            conv: [conv("conv.0")?, conv("conv.2")?, conv("conv.4")?],
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [first, second, third] = &self.conv;
        let h = first.forward(x)?.f_relu_()?;
        let h = second.forward(&h)?.f_relu_()?;
        Ok(third.forward(&h)?.f_add_(x)?.f_relu_()?)
    }
}
