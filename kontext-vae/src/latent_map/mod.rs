//! Linear maps from latents to colours, for previews of a run at a ten-thousandth of a decoder's cost.

mod fit;
mod published;

use kontext_core::{Device, Error, Kind, Result, Tensor, check};

pub use fit::LatentFit;

/// A linear map from the channels of a latent to the mean colour of its 8x8 pixels: `colour = weights · latent + bias`.
///
/// Latents are scaled, as [`Autoencoder::encode_latents`](crate::Autoencoder::encode_latents) returns them; colours are
/// in [-1, 1].
///
/// # Example
/// ```
/// use kontext_core::{Device, Kind, Tensor};
/// use kontext_vae::LatentMap;
/// let colours = LatentMap::flux().on(Device::Cpu)?;
/// let image = colours.of(&Tensor::zeros([1, 16, 4, 6], (Kind::Float, Device::Cpu)))?;
/// assert_eq!(image.size(), [1, 3, 4, 6]);
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LatentMap {
    weights: Vec<[f32; 3]>,
    bias: [f32; 3],
}

/// A [`LatentMap`] on a device.
#[derive(Debug)]
pub struct LatentColours {
    /// [3, C] in f32.
    weights: Tensor,
    /// [3, 1] in f32.
    bias: Tensor,
}

impl LatentMap {
    /// Creates a map from the red, green and blue of each channel, and of latents of zero.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for no channels, or numbers that are not finite.
    pub fn new(weights: impl Into<Vec<[f32; 3]>>, bias: [f32; 3]) -> Result<Self> {
        let weights = weights.into();
        if weights.is_empty() || !weights.iter().chain([&bias]).flatten().all(|x| x.is_finite()) {
            let expected = "at least one channel, and finite numbers";
            return Err(Error::invalid(
                "map of latents",
                expected,
                format!("{weights:?}, {bias:?}"),
            ));
        }
        Ok(Self { weights, bias })
    }

    /// Returns the red, green and blue of each channel.
    #[must_use]
    pub fn weights(&self) -> &[[f32; 3]] {
        &self.weights
    }

    /// Returns the colour of latents of zero.
    #[must_use]
    pub fn bias(&self) -> [f32; 3] {
        self.bias
    }

    /// Returns the number of latent channels.
    #[must_use]
    pub fn channels(&self) -> i64 {
        self.weights.len() as i64
    }

    /// Copies the map to a device.
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails.
    pub fn on(&self, device: Device) -> Result<LatentColours> {
        let weights = Tensor::f_from_slice(self.weights.as_flattened())?.f_reshape([self.channels(), 3])?;
        let bias = Tensor::f_from_slice(&self.bias)?.f_reshape([3, 1])?;
        Ok(LatentColours {
            weights: weights.f_transpose(0, 1)?.f_contiguous()?.f_to_device(device)?,
            bias: bias.f_to_device(device)?,
        })
    }
}

impl LatentColours {
    /// Maps latents [B, C, H, W] on the map's device to an image [B, 3, H, W] in f32, roughly in [-1, 1], of one pixel a
    /// latent. Does not wait for the device.
    ///
    /// # Errors
    /// [`Error::Shape`] for another shape, [`Error::Torch`] if libtorch fails.
    pub fn of(&self, latents: &Tensor) -> Result<Tensor> {
        let [_, channels] = check::dims("map of latents", &self.weights, "[3, C]")?;
        check::shape("latents", latents, "[B, C, H, W]", &[None, Some(channels), None, None])?;
        let [batch, _, height, width] = check::dims("latents", latents, "[B, C, H, W]")?;
        let columns = latents
            .f_to_kind(Kind::Float)?
            .f_reshape([batch, channels, height * width])?;
        let colours = self.weights.f_matmul(&columns)?.f_add(&self.bias)?; // [B, 3, H W]
        Ok(colours.f_reshape([batch, 3, height, width])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_weighs_the_channels_and_adds_the_bias() {
        let map = LatentMap::new([[0.5, 0.0, -1.0], [0.0, 2.0, 0.25]], [0.1, 0.2, 0.3]).unwrap();
        let latents = Tensor::from_slice(&[1.0_f32, 2.0, -1.0, 4.0]).reshape([1, 2, 1, 2]);
        let image: Vec<f32> = map
            .on(Device::Cpu)
            .unwrap()
            .of(&latents)
            .unwrap()
            .reshape([-1])
            .try_into()
            .unwrap();
        let expected = [0.6, 1.1, -1.8, 8.2, -0.95, -0.7];
        assert!(
            image.iter().zip(expected).all(|(got, want)| (got - want).abs() < 1e-6),
            "{image:?}"
        );
        let wrong = Tensor::zeros([1, 3, 1, 2], (Kind::Float, Device::Cpu));
        assert!(map.on(Device::Cpu).unwrap().of(&wrong).is_err());
    }

    #[test]
    fn a_map_without_channels_or_with_infinite_numbers_is_refused() {
        assert!(LatentMap::new([], [0.0; 3]).is_err());
        assert!(LatentMap::new([[f32::NAN, 0.0, 0.0]], [0.0; 3]).is_err());
        assert!(LatentMap::new([[0.0; 3]], [0.0, f32::INFINITY, 0.0]).is_err());
    }
}
