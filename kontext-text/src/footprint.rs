//! Memory of encoding a prompt, computed from T5's configuration and the headers of both encoders' weights.

use kontext_core::Kind;
use kontext_formats::Quantize;
use kontext_nn::footprint::{Execution, WeightBytes, prefetch_bytes};
use kontext_nn::{Offload, Weights};

use crate::{T5Config, t5};

/// Constant bytes of encoding on a CPU; see [`Execution::constant_bytes`].
const CONSTANT_ON_CPU: u64 = 185_000_000;

/// Memory footprint of the text encoders.
///
/// The peak is T5's. CLIP runs at another time, and its activations are smaller: 77 tokens of width 768 and
/// fused attention, while T5 has a width of 4096 and holds its scores.
///
/// # Example
/// ```
/// use kontext_core::{Device, Kind};
/// use kontext_nn::Offload;
/// use kontext_nn::footprint::{Execution, WeightBytes, prefetch_bytes};
/// use kontext_text::{T5Config, TextFootprint};
///
/// let execution = Execution { device: Device::Cuda(0), kind: Kind::BFloat16 };
/// let (t5, weights) = (T5Config::xxl(), WeightBytes::default());
/// let footprint = TextFootprint { t5: &t5, weights, offload: Offload::None, execution };
/// let growth = |tokens| footprint.activations(tokens) - footprint.activations(0);
/// assert!(growth(512) > 4 * growth(128)); // the scores grow with the square
/// ```
#[derive(Debug, Clone, Copy)]
pub struct TextFootprint<'a> {
    /// Configuration of T5.
    pub t5: &'a T5Config,
    /// Bytes of both encoders' weights, from [`TextFootprint::weight_bytes`].
    pub weights: WeightBytes,
    /// Offloaded layers of T5.
    pub offload: Offload,
    /// Device and dtype of the computation.
    pub execution: Execution,
}

impl TextFootprint<'_> {
    /// Sums the tensors of the encoders' files; T5's are quantised to `to` at load, and computation is in
    /// `compute`.
    #[must_use]
    pub fn weight_bytes(t5: &Weights, clip: &Weights, to: Option<Quantize>, compute: Kind) -> WeightBytes {
        let of = |wanted: fn(&str) -> bool| WeightBytes::of(t5, to, |name| t5::held_kind(name, compute), wanted);
        // An embedding is neither prefetched nor dequantised as a whole.
        let (all, multiplied) = (of(|_| true), of(|name| !t5::is_embedding(name)));
        let clip = WeightBytes::of(clip, None, |_| compute, |_| true);
        WeightBytes {
            // CLIP is small, and always held.
            rest: all.rest.saturating_add(clip.all()),
            largest: multiplied.largest,
            largest_packed: multiplied.largest_packed,
            ..all
        }
    }

    /// Returns the bytes of weights held while the encoders run, and of the buffers that offloaded ones are
    /// prefetched to.
    #[must_use]
    pub fn held(&self) -> u64 {
        let offloaded = self.offload == Offload::All;
        let buffers = if offloaded {
            prefetch_bytes(&[self.weights], self.execution.device)
        } else {
            0
        };
        self.weights.held(offloaded).saturating_add(buffers)
    }

    /// Returns the peak bytes next to the held weights for a prompt of `tokens` T5 tokens: activations, and
    /// the weight that is being dequantised.
    #[must_use]
    pub fn activations(&self, tokens: u64) -> u64 {
        let dequantised = self.weights.dequantised(self.offload == Offload::All, self.execution);
        let constant = self.execution.constant_bytes(CONSTANT_ON_CPU, self.weights.all());
        let activations = t5::activations(self.t5, tokens, self.execution.kind);
        activations.saturating_add(dequantised).saturating_add(constant)
    }
}

#[cfg(test)]
mod tests {
    use kontext_core::Device;
    use kontext_nn::PREFETCH_BUFFERS;
    use kontext_nn::footprint::element_bytes;

    use super::*;
    use crate::ClipConfig;

    #[test]
    fn offloaded_weights_take_the_buffers_that_they_are_prefetched_to() {
        let (t5, weights) = (T5Config::xxl(), Weights::blank());
        crate::T5Encoder::new(&weights, &t5, Kind::BFloat16).unwrap();
        let weights = TextFootprint::weight_bytes(&weights, &Weights::blank(), None, Kind::BFloat16);
        let held = |device| {
            let execution = Execution {
                device,
                kind: Kind::BFloat16,
            };
            let offload = Offload::All;
            TextFootprint {
                t5: &t5,
                weights,
                offload,
                execution,
            }
            .held()
        };
        let buffers = held(Device::Cuda(0)) - held(Device::Cpu);
        assert_eq!(buffers, PREFETCH_BUFFERS as u64 * weights.largest.stored);
    }

    #[test]
    fn clip_takes_less_than_t5_does_for_prompts_of_as_many_tokens() {
        let clip = ClipConfig::large();
        let (tokens, width, inner) = (
            clip.max_position_embeddings.unsigned_abs(),
            clip.hidden_size.unsigned_abs(),
            clip.intermediate_size.unsigned_abs(),
        );
        for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
            // The residual, its norm, queries, keys, values, the attention and its projection; or the
            // residual, its norm, and the MLP before and after its activation function, whose product is a
            // third copy.
            let most = element_bytes(kind) * tokens * (7 * width).max(2 * width + 3 * inner);
            assert!(most < t5::activations(&T5Config::xxl(), tokens, kind), "{kind:?}");
        }
    }
}
