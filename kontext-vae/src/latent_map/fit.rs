//! Fits of latents to colours by least squares.

use kontext_core::noise::Generator;
use kontext_core::{Device, Error, Kind, Result, Tensor, check};

use super::LatentMap;
use crate::{Autoencoder, DOWNSCALE};

/// Share of the channels' mean square that is added to each: channels without effect get weights near 0.
const RIDGE: f64 = 1e-6;
/// Side of the generated images, in pixels.
const SIDE: i64 = 128;
/// Seed of the generated images.
const SEED: u64 = 17;

/// A fit of a [`LatentMap`] by least squares: pairs of latents and images are added, and then it is solved.
#[derive(Debug)]
pub struct LatentFit {
    /// Sums over latents of the products of their channels and 1, f64 [C + 1, C + 1].
    products: Tensor,
    /// Sums of the products with colours, f64 [C + 1, 3].
    targets: Tensor,
    channels: i64,
}

impl LatentFit {
    /// Starts a fit for latents of this number of channels.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for no channels.
    pub fn new(channels: i64) -> Result<Self> {
        if channels < 1 {
            return Err(Error::invalid("channels", "at least 1", channels));
        }
        let zeros = |columns: i64| Tensor::f_zeros([channels + 1, columns], (Kind::Double, Device::Cpu));
        Ok(Self {
            products: zeros(channels + 1)?,
            targets: zeros(3)?,
            channels,
        })
    }

    /// Adds latents [B, C, H, W] and their images [B, 3, 8 H, 8 W] in [-1, 1], of which the mean colours of 8x8 pixels
    /// count.
    ///
    /// # Errors
    /// [`Error::Shape`] for other shapes.
    pub fn add(&mut self, latents: &Tensor, images: &Tensor) -> Result<()> {
        let [batch, _, height, width] = check::dims("latents", latents, "[B, C, H, W]")?;
        check::shape(
            "latents",
            latents,
            "[B, C, H, W]",
            &[None, Some(self.channels), None, None],
        )?;
        let sides = [Some(batch), Some(3), Some(DOWNSCALE * height), Some(DOWNSCALE * width)];
        check::shape("images", images, "[B, 3, 8 H, 8 W]", &sides)?;
        let colours = images.f_to_kind(Kind::Float)?.f_adaptive_avg_pool2d([height, width])?;
        let rows = |values: &Tensor| -> Result<Tensor> {
            let values = values.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?;
            Ok(values.f_permute([0, 2, 3, 1])?.f_flatten(0, 2)?) // [B H W, channels]
        };
        let latents = rows(latents)?;
        let ones = latents.f_narrow(1, 0, 1)?.f_ones_like()?;
        let latents = Tensor::f_cat(&[latents, ones], 1)?;
        let turned = latents.f_transpose(0, 1)?;
        self.products = self.products.f_add(&turned.f_matmul(&latents)?)?;
        self.targets = self.targets.f_add(&turned.f_matmul(&rows(&colours)?)?)?;
        Ok(())
    }

    /// Returns the map with the least squared error over all pairs.
    ///
    /// # Errors
    /// [`Error::Torch`] if no pair was added.
    pub fn solve(&self) -> Result<LatentMap> {
        let mut ridge = self.products.f_diagonal(0, 0, 1)?.f_narrow(0, 0, self.channels)?;
        ridge = ridge
            .f_mean(Kind::Double)?
            .f_mul_scalar(RIDGE)?
            .f_expand([self.channels], false)?;
        let ridge = Tensor::f_cat(&[ridge, Tensor::f_zeros([1], (Kind::Double, Device::Cpu))?], 0)?;
        let products = self.products.f_add(&ridge.f_diag(0)?)?;
        let solved = Tensor::f_linalg_solve(&products, &self.targets, true)?.f_to_kind(Kind::Float)?;
        let numbers = Vec::<f32>::try_from(solved.f_contiguous()?.f_reshape([-1])?)?;
        let mut rows: Vec<[f32; 3]> = numbers.as_chunks().0.to_vec();
        let bias = rows
            .pop()
            .ok_or_else(|| Error::bug("a fit without a row for its bias"))?;
        LatentMap::new(rows, bias)
    }
}

impl LatentMap {
    /// Fits a map to an autoencoder by its encodings of eight generated images of 128x128 pixels: blocks of colours and
    /// smooth gradients, most of them on white, the same at each call. `kind` and `device` are those that it computes with.
    ///
    /// # Errors
    /// Those of [`Autoencoder::encode_latents`].
    pub fn of(autoencoder: &Autoencoder, kind: Kind, device: Device) -> Result<Self> {
        let images = generated()?;
        let latents = autoencoder.encode_latents(&images.f_to_kind(kind)?.f_to_device(device)?)?;
        let mut fit = LatentFit::new(autoencoder.latent_channels())?;
        fit.add(&latents, &images)?;
        fit.solve()
    }
}

/// Returns images [8, 3, 128, 128] in [-1, 1]: random colours of which some are saturated, in blocks and in gradients; six
/// of them as smooth shapes on white and one on black, because flat areas are what many pictures have around their subject.
fn generated() -> Result<Tensor> {
    let mut generator = Generator::new(SEED);
    let mut drawn = |shape: [i64; 4]| generator.randn(&shape, Kind::Float, Device::Cpu);
    let mut images = Vec::new();
    for cells in [4, 8, 16, 32] {
        let colours = drawn([1, 3, cells, cells])?.f_clamp(-1.0, 1.0)?;
        images.push(colours.f_upsample_nearest2d([SIDE, SIDE], None, None)?);
    }
    for (count, cells) in [(1, 16), (1, 6), (2, 3)] {
        let colours = drawn([count, 3, cells, cells])?.f_clamp(-1.0, 1.0)?;
        images.push(colours.f_upsample_bilinear2d([SIDE, SIDE], true, None, None)?);
    }
    let images = Tensor::f_cat(&images, 0)?;
    let grounds = [1.0_f32, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0];
    let count = grounds.len() as i64;
    let grounds = Tensor::f_from_slice(&grounds)?.f_reshape([count, 1, 1, 1])?;
    let shapes = drawn([count, 1, 6, 6])?.f_upsample_bilinear2d([SIDE, SIDE], true, None, None)?;
    let shown = images
        .f_narrow(0, 0, count)?
        .f_where_self(&shapes.f_gt(0.0)?, &grounds)?;
    Ok(Tensor::f_cat(&[shown, images.f_narrow(0, count, 1)?], 0)?)
}

#[cfg(test)]
mod tests {
    use kontext_core::noise::randn;

    use super::*;

    #[test]
    fn a_fit_finds_the_map_that_made_the_colours() {
        let map = LatentMap::new([[0.5, 0.0, -0.3], [0.0, 0.2, 0.25], [0.1, -0.1, 0.0]], [0.1, 0.2, -0.3]).unwrap();
        let latents = randn(&[2, 3, 4, 5], 7, Kind::Float, Device::Cpu).unwrap();
        let colours = map.on(Device::Cpu).unwrap().of(&latents).unwrap();
        let images = colours.upsample_nearest2d([32, 40], None, None);
        let mut fit = LatentFit::new(3).unwrap();
        // In two parts, as photos are added one by one.
        for item in 0..2 {
            fit.add(&latents.narrow(0, item, 1), &images.narrow(0, item, 1))
                .unwrap();
        }
        let found = fit.solve().unwrap();
        let numbers = |map: &LatentMap| [map.weights(), &[map.bias()]].concat().concat();
        let errors = numbers(&found)
            .into_iter()
            .zip(numbers(&map))
            .map(|(a, b)| (a - b).abs());
        // The ridge moves weights by a millionth of themselves.
        assert!(errors.fold(0.0, f32::max) < 1e-5, "{found:?}");
        assert!(fit.add(&latents, &images.narrow(3, 0, 32)).is_err());
    }

    #[test]
    fn the_generated_images_are_the_same_each_time_and_have_all_colours() {
        let images = generated().unwrap();
        assert_eq!(images.size(), [8, 3, SIDE, SIDE]);
        assert!(images.equal(&generated().unwrap()));
        let (least, most) = (images.min().double_value(&[]), images.max().double_value(&[]));
        assert!(least == -1.0 && most == 1.0);
        let white = images
            .eq(1.0)
            .all_dim(1, false)
            .to_kind(Kind::Float)
            .mean(Kind::Float)
            .double_value(&[]);
        assert!((0.2..0.6).contains(&white), "{white}");
    }
}
