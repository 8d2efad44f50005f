//! Features of images in a network, layer by layer.

use std::path::Path;

use image::RgbImage;
use kontext_core::{Device, During, Kind, Result, Stage, Tensor, array, images};
use kontext_nn::{Conv2d, Weights};

use super::backbone::{Backbone, Step};
use super::naming::{self, Naming};
use crate::metrics::{Embedder, at_least};

/// Pixels per batch: VGG's first layers take 512 bytes for each.
const BATCH_PIXELS: usize = 1 << 20;
const EMBEDDING: Stage = Stage::Other("embedding images");

/// A network whose layers [`super::Perceptual`] compares, and a general-purpose embedder.
///
/// As an [`Embedder`] it returns the last layer's features, averaged over their positions: a vector of the
/// image's content, whatever its size and layout. It distinguishes subjects, not persons.
#[derive(Debug)]
pub struct Features {
    backbone: Backbone,
    layers: Vec<Layer>,
    colours: Colours,
    device: Device,
    name: String,
}

#[derive(Debug)]
enum Layer {
    Conv(Conv2d),
    Pool { kernel: i64, ceil: bool },
    Fire { squeeze: Conv2d, expand: [Conv2d; 2] },
    Compare,
}

/// Colour convention of a network's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colours {
    /// RGB of mean 0 and standard deviation 1, as torchvision's networks were trained.
    Torch,
    /// BGR levels from 0 to 255, minus their means, as Caffe's networks were trained.
    Caffe,
}

impl Features {
    /// Opens a safetensors file and detects the network by the names and shapes of its tensors.
    ///
    /// Supported are torchvision's names (`features.0.weight`), those of the lpips package
    /// (`net.slice1.0.weight`) and those of Caffe's SqueezeNet 1.1 (`fire2.squeeze1x1.weight`), which has its
    /// own colour convention.
    ///
    /// # Errors
    /// The errors of [`Weights::open`]; [`kontext_core::Error::Checkpoint`] if the file holds none of these
    /// networks, or tensors of it are missing, unknown or of another shape.
    pub fn open(weights: &Path, device: Device) -> Result<Self> {
        let weights = Weights::open(weights)?;
        let (backbone, naming) = naming::detect(&weights)?;
        let colours = if naming == Naming::Caffe {
            Colours::Caffe
        } else {
            Colours::Torch
        };
        let named = naming.apply(weights);
        let features = Self::build(backbone, &named, colours, device)?;
        named.ignore(naming::is_beside);
        named.finish()?;
        Ok(features)
    }

    /// Creates a network from weights in torchvision's names, such as those of [`Weights::synthetic`].
    ///
    /// # Errors
    /// The errors of [`Weights::tensor`].
    pub fn new(backbone: Backbone, weights: &Weights, device: Device) -> Result<Self> {
        Self::build(backbone, weights, Colours::Torch, device)
    }

    fn build(backbone: Backbone, weights: &Weights, colours: Colours, device: Device) -> Result<Self> {
        let weights = weights.at("features").device(device).kind(Kind::Float);
        let layers = backbone
            .steps()
            .iter()
            .map(|step| Layer::new(&weights, *step))
            .collect::<Result<_>>()?;
        let form = if colours == Colours::Caffe { "-caffe" } else { "" };
        Ok(Self {
            backbone,
            layers,
            colours,
            device,
            name: format!("pooled-{backbone}{form}"),
        })
    }

    /// Returns the network.
    #[must_use]
    pub fn backbone(&self) -> Backbone {
        self.backbone
    }

    /// Returns the network's name, with the framework whose colours it takes if it is not torchvision:
    /// "squeezenet1.1-caffe".
    #[must_use]
    pub fn network(&self) -> &str {
        self.name.trim_start_matches("pooled-")
    }

    /// Returns a vector of each image: the means over positions of each compared layer, one layer after the
    /// other, of [`Backbone::channels`] values each. Early layers have textures, late ones contents.
    ///
    /// # Errors
    /// [`kontext_core::Error::InvalidArgument`] if an image is smaller than [`Backbone::least_side`];
    /// [`kontext_core::Error::Torch`] if libtorch fails.
    ///
    /// # Example
    /// ```
    /// use image::RgbImage;
    /// use kontext_bench::metrics::{Backbone, Features};
    /// use kontext_core::Device;
    /// use kontext_nn::Weights;
    /// let features = Features::new(Backbone::AlexNet, &Weights::synthetic(0), Device::Cpu)?;
    /// assert_eq!(features.pooled(&[&RgbImage::new(40, 32)])?[0].len(), 64 + 192 + 384 + 256 + 256);
    /// # Ok::<(), kontext_core::Error>(())
    /// ```
    pub fn pooled(&self, images: &[&RgbImage]) -> Result<Vec<Vec<f32>>> {
        let mut vectors = Vec::with_capacity(images.len());
        for batch in batches(images, |image| *image, 1) {
            let mut layers = Vec::new();
            self.each(batch, |features| {
                layers.push(features.f_mean_dim([2_i64, 3].as_slice(), false, Kind::Float)?); // [B, C]
                Ok(())
            })
            .during(EMBEDDING)?;
            append_rows(&mut vectors, &Tensor::f_cat(&layers, 1)?, batch.len())?;
        }
        Ok(vectors)
    }

    pub(super) fn device(&self) -> Device {
        self.device
    }

    /// Calls `see` with the features of each compared layer, [B, C, H, W], from the first.
    pub(super) fn each(&self, images: &[&RgbImage], mut see: impl FnMut(&Tensor) -> Result<()>) -> Result<()> {
        for image in images {
            at_least(
                image,
                self.backbone.least_side(),
                "so that the network's last layer sees something",
            )?;
        }
        let tensors = images.iter().map(|p| images::to_tensor(p, Kind::Float, self.device));
        let mut x = self.coloured(&Tensor::f_cat(&tensors.collect::<Result<Vec<_>>>()?, 0)?)?;
        for layer in &self.layers {
            match layer {
                Layer::Compare => see(&x)?,
                layer => x = layer.forward(&x)?,
            }
        }
        Ok(())
    }

    /// Converts [-1, 1] to the network's colours.
    fn coloured(&self, x: &Tensor) -> Result<Tensor> {
        /// Means and standard deviations of red, green and blue on ImageNet in [-1, 1], as the lpips package
        /// rounds them.
        const SHIFT: [f32; 3] = [-0.030, -0.088, -0.188];
        const SCALE: [f32; 3] = [0.458, 0.448, 0.450];
        /// Means of blue, green and red in levels.
        const MEANS: [f32; 3] = [103.939, 116.779, 123.68];
        let row = |values: &[f32; 3]| {
            Tensor::f_from_slice(values)?
                .f_reshape([1, 3, 1, 1])?
                .f_to_device(self.device)
        };
        Ok(match self.colours {
            Colours::Torch => x.f_sub(&row(&SHIFT)?)?.f_div(&row(&SCALE)?)?,
            Colours::Caffe => x
                .f_add_scalar(1.0)?
                .f_mul_scalar(127.5)?
                .f_flip([1])?
                .f_sub(&row(&MEANS)?)?,
        })
    }
}

impl Layer {
    fn new(w: &Weights, step: Step) -> Result<Self> {
        Ok(match step {
            Step::Conv {
                index,
                input,
                output,
                kernel,
                stride,
                padding,
            } => {
                let conv = Conv2d::new(&w.at(index.to_string()), input, output, kernel)?;
                Layer::Conv(conv.stride(stride).padding(padding))
            }
            Step::Pool { kernel, ceil } => Layer::Pool { kernel, ceil },
            Step::Fire {
                index,
                input,
                squeeze,
                expand,
            } => {
                let w = w.at(index.to_string());
                Layer::Fire {
                    squeeze: Conv2d::new(&w.at("squeeze"), input, squeeze, 1)?,
                    expand: [
                        Conv2d::new(&w.at("expand1x1"), squeeze, expand, 1)?,
                        Conv2d::new(&w.at("expand3x3"), squeeze, expand, 3)?,
                    ],
                }
            }
            Step::Compare => Layer::Compare,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Layer::Conv(conv) => conv.forward(x)?.f_relu_()?,
            Layer::Pool { kernel, ceil } => x.f_max_pool2d([*kernel; 2], [2, 2], [0, 0], [1, 1], *ceil)?,
            Layer::Fire { squeeze, expand } => {
                let x = squeeze.forward(x)?.f_relu_()?;
                let [one, three] = expand;
                Tensor::f_cat(&[one.forward(&x)?, three.forward(&x)?], 1)?.f_relu_()?
            }
            Layer::Compare => x.shallow_clone(),
        })
    }
}

impl Embedder for Features {
    fn name(&self) -> &str {
        &self.name
    }

    fn embed(&self, images: &[&RgbImage]) -> Result<Vec<Vec<f32>>> {
        let mut vectors = Vec::with_capacity(images.len());
        for batch in batches(images, |image| *image, 1) {
            let mut last = None;
            self.each(batch, |features| {
                last = Some(features.shallow_clone());
                Ok(())
            })
            .during(EMBEDDING)?;
            let Some(last) = last else { continue };
            let pooled = last.f_mean_dim([2_i64, 3].as_slice(), false, Kind::Float)?; // [B, C]
            append_rows(&mut vectors, &pooled, batch.len())?;
        }
        Ok(vectors)
    }
}

/// Appends the rows of a matrix [rows, C].
fn append_rows(vectors: &mut Vec<Vec<f32>>, matrix: &Tensor, rows: usize) -> Result<()> {
    for row in 0..rows as i64 {
        vectors.push(array::to_vec(&matrix.f_select(0, row)?)?);
    }
    Ok(())
}

/// Splits items into batches: consecutive items with images of one size, as many as fit in a network's batch;
/// each item holds `each` images.
pub(super) fn batches<T>(items: &[T], image: impl Fn(&T) -> &RgbImage, each: usize) -> Vec<&[T]> {
    let size = |item: &T| image(item).dimensions();
    let most = |run: &[T]| {
        let (width, height) = run.first().map(size).unwrap_or_default();
        (BATCH_PIXELS / each / (width as usize * height as usize).max(1)).max(1)
    };
    items
        .chunk_by(|a, b| size(a) == size(b))
        .flat_map(|run| run.chunks(most(run)))
        .collect()
}
