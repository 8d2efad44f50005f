//! Memory of encoding and decoding, computed from an image's size and the headers of the weights.

use kontext_core::Kind;
use kontext_nn::Weights;
use kontext_nn::footprint::{Execution, element_bytes};

use crate::Tiling;

/// Channels of the largest activation, relative to the channels at full size: the first block of the
/// decoder's last level reads the channels of the level before.
const LARGEST: u64 = 2;

/// Activations alive at the peak of the decoder on a CUDA device, relative to the largest one; counted from
/// the code, not measured. The peak is in that block.
const DECODER_ON_CUDA: [f64; 5] = [
    // Its input.
    1.0, // The norm.
    1.0, // The norm as channels-last for the convolution, which kernels write at once.
    1.0, // The output, with half as many channels.
    0.5, // The workspace of the convolution.
    0.5,
];

/// The same in the encoder, whose first level has half the channels throughout.
const ENCODER_ON_CUDA: [f64; 5] = [0.5; 5];

/// The same on a CPU, measured (a model of full width, edits at 256x256 and 512x512, two cores).
const DECODER_ON_CPU: f64 = 2.4;
const ENCODER_ON_CPU: f64 = 2.0;

/// Constant bytes on a CPU; see [`Execution::constant_bytes`].
const DECODER_CONSTANT_ON_CPU: u64 = 329_000_000;
const ENCODER_CONSTANT_ON_CPU: u64 = 150_000_000;

/// Values per pixel of a tiled image, in f32; an upper bound: three channels each of the whole image, of the
/// row of tiles that is being assembled, and of a copy.
const WHOLE_IMAGE: u64 = 9;

/// Channels at full size if the weights do not show them, as those of tiny autoencoders: the channels of
/// FLUX.1's.
const DEFAULT_CHANNELS: i64 = 128;

/// Memory footprint of an autoencoder.
///
/// # Example
/// ```
/// use kontext_core::{Device, Kind};
/// use kontext_nn::footprint::Execution;
/// use kontext_vae::{Tiling, VaeFootprint};
///
/// let flux = VaeFootprint { weights: 335_000_000, channels: 128 };
/// let execution = Execution { device: Device::Cuda(0), kind: Kind::BFloat16 };
/// let (whole, tiled) = (None, Some(Tiling::default()));
/// let decoding = |tiling| flux.decoder(4096 * 4096, tiling, execution);
/// assert!(decoding(whole) > 34_000_000_000 && decoding(tiled) < 6_000_000_000);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VaeFootprint {
    /// Bytes of the weights.
    pub weights: u64,
    /// Channels of the layers at full image size.
    pub channels: u64,
}

impl VaeFootprint {
    /// Reads the sizes of weights, which are held in `kind`.
    #[must_use]
    pub fn of(weights: &Weights, kind: Kind) -> Self {
        let last = weights
            .shapes()
            .into_iter()
            .find(|(name, _)| name.ends_with("decoder.conv_out.weight"));
        Self {
            weights: element_bytes(kind).saturating_mul(weights.store().account().parameters),
            channels: last
                .and_then(|(_, shape)| shape.get(1).copied())
                .unwrap_or(DEFAULT_CHANNELS)
                .unsigned_abs(),
        }
    }

    /// Returns the peak bytes of encoding one image of `pixels` pixels, next to the weights and their copies.
    #[must_use]
    pub fn encoder(&self, pixels: u64, tiling: Option<Tiling>, execution: Execution) -> u64 {
        let alive = if execution.device.is_cuda() {
            ENCODER_ON_CUDA.iter().sum()
        } else {
            ENCODER_ON_CPU
        };
        let constant = execution.constant_bytes(ENCODER_CONSTANT_ON_CPU, self.weights);
        self.activations(pixels, tiling, execution, alive)
            .saturating_add(constant)
    }

    /// Returns the peak bytes of decoding to one image of `pixels` pixels, next to the weights and their copies.
    #[must_use]
    pub fn decoder(&self, pixels: u64, tiling: Option<Tiling>, execution: Execution) -> u64 {
        let alive = if execution.device.is_cuda() {
            DECODER_ON_CUDA.iter().sum()
        } else {
            DECODER_ON_CPU
        };
        let constant = execution.constant_bytes(DECODER_CONSTANT_ON_CPU, self.weights);
        self.activations(pixels, tiling, execution, alive)
            .saturating_add(constant)
    }

    /// Returns the bytes of weights held in f32 and of their copies in the dtype of runs, which the first run makes
    /// and the autoencoder keeps.
    #[must_use]
    pub fn held(&self, kind: Kind) -> u64 {
        let copies = match kind {
            Kind::Float => 0,
            _ => self.weights / element_bytes(Kind::Float) * element_bytes(kind),
        };
        self.weights.saturating_add(copies)
    }

    fn activations(&self, pixels: u64, tiling: Option<Tiling>, execution: Execution, alive: f64) -> u64 {
        let (tile, whole) = match tiling {
            // An image smaller than a tile is computed whole.
            Some(Tiling { tile, .. }) => {
                let tile = tile.unsigned_abs().saturating_pow(2).min(pixels);
                (tile, pixels.saturating_mul(WHOLE_IMAGE))
            }
            None => (pixels, 0),
        };
        let largest = (execution.element_bytes() * LARGEST)
            .saturating_mul(self.channels)
            .saturating_mul(tile);
        let whole = whole.saturating_mul(element_bytes(Kind::Float));
        (largest.saturating_add(whole) as f64 * alive) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AutoencoderKl, AutoencoderTiny, TinyConfig, VaeConfig};

    #[test]
    fn the_channels_at_full_size_are_found_and_the_first_block_there_reads_twice_as_many() {
        let config = VaeConfig {
            block_out_channels: [64, 128, 256, 256],
            ..VaeConfig::flux()
        };
        let blank = Weights::blank();
        AutoencoderKl::new(&blank, &config).unwrap();
        let footprint = VaeFootprint::of(&blank, Kind::Float);
        assert_eq!(footprint.channels, 64);
        let first = &blank.shapes()["decoder.up_blocks.3.resnets.0.conv1.weight"];
        assert_eq!(first[..2], [64, LARGEST as i64 * 64]);
        let widest = blank.shapes()["encoder.down_blocks.0.resnets.0.conv1.weight"][1];
        assert_eq!(widest, 64);
        let tiny = Weights::blank();
        AutoencoderTiny::new(&tiny, &TinyConfig::taef1()).unwrap();
        assert_eq!(VaeFootprint::of(&tiny, Kind::Float).channels, 128);
    }

    #[test]
    fn the_weights_take_the_bytes_of_their_kind() {
        let weights = Weights::from_tensors([("a".to_owned(), kontext_core::Tensor::from_slice(&[1.0_f32; 7]))]);
        let bytes = |kind| VaeFootprint::of(&weights, kind).weights;
        assert_eq!((bytes(Kind::Float), bytes(Kind::BFloat16)), (28, 14));
    }

    #[test]
    fn a_run_in_bf16_has_half_the_activations_and_holds_copies_of_the_weights() {
        let (weights, channels, device) = (400_000_000, 128, kontext_core::Device::Cuda(0));
        let flux = VaeFootprint { weights, channels };
        let bytes = |kind, pixels| flux.decoder(pixels, None, Execution { device, kind });
        assert_eq!(
            [Kind::Float, Kind::BFloat16].map(|kind| flux.held(kind)),
            [weights, 600_000_000]
        );
        let grown = |kind| bytes(kind, 1 << 20) - bytes(kind, 0);
        assert_eq!(grown(Kind::Float), 2 * grown(Kind::BFloat16));
    }
}
