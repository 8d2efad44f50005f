//! Memory of a run of the transformer, computed from its configuration and the headers of its weights.

use kontext_core::Kind;
use kontext_formats::Quantize;
use kontext_nn::footprint::{Execution, WeightBytes, prefetch_bytes};
use kontext_nn::{Offload, Weights};

use crate::{DitConfig, double, names, single};

/// Tensors of all tokens by the model's width that are alive at the peak of a step on a CUDA device; counted
/// from the code, not measured.
///
/// The peak is in the first single block, between its MLP and its gate: attention is fused, without a score
/// matrix. Double blocks end at 15; the f32 copies of a norm come earlier. An upper bound with own kernels, which rotate
/// queries and keys in place.
const ON_CUDA: [u64; 9] = [
    // `State::Streams`, the output of the double blocks, which the loop over pieces holds.
    1,
    // The same joined, the block's input.
    1,
    // The modulated norm.
    1,
    QUERIES_KEYS_VALUES,
    // Queries and keys, normed and rotated.
    2,
    // The attention.
    1,
    MLP,
    // The products of attention and MLP with their output projections.
    2,
    // The run's text and context.
    1,
];

/// Queries, keys and values, in one tensor.
const QUERIES_KEYS_VALUES: u64 = 3;

/// Activations of the MLP, which has four times the model's width in the published models.
const MLP: u64 = 4;

/// The same on a CPU, measured (a model of full width, edits at 256x256 and 512x512, two cores).
const ON_CPU: f64 = 18.4;

/// Tensors of the same size that attention in bf16 adds on a CPU: the packed keys and values.
const PACKED_ON_CPU: f64 = 2.0;

/// Tensors of the same size that rounding the MLP to fp8 adds on either: its values in f32 and their codes, at the peak
/// of a step. Counted from the code, not measured.
const FP8: u64 = 2 * MLP + MLP / 2;

/// Constant bytes of a step on a CPU; see [`Execution::constant_bytes`].
const CONSTANT_ON_CPU: u64 = 243_000_000;

/// Bytes of the transformer's weights.
#[derive(Debug, Clone, Copy)]
pub struct DitWeights {
    /// Weights that work in every step.
    pub blocks: WeightBytes,
    /// Weights of the modulation, which works once per run.
    pub modulation: WeightBytes,
}

impl DitWeights {
    /// Sums the tensors of files in BFL's or diffusers' naming; those of `blocks` are quantised to `to` at
    /// load, and `dtype` is the upper bound of plain ones.
    #[must_use]
    pub fn of(weights: &Weights, to: Option<Quantize>, dtype: Kind) -> Self {
        Self {
            blocks: WeightBytes::of(weights, to, |_| dtype, |name| !names::is_modulation(name)),
            modulation: WeightBytes::of(weights, None, |_| dtype, names::is_modulation),
        }
    }
}

/// Sizes of a run that determine its activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunSizes {
    /// Tokens of a sample: text, target and references.
    pub tokens: u64,
    /// Samples of a forward pass.
    pub batch: u64,
    /// Vectors that the modulation is computed for: steps times the batch of the conditioning.
    pub vectors: u64,
}

/// Memory footprint of the transformer.
///
/// # Example
/// ```
/// use kontext_core::{Device, Kind};
/// use kontext_dit::{DitConfig, DitFootprint, DitWeights, RunSizes};
/// use kontext_nn::Offload;
/// use kontext_nn::footprint::{Execution, WeightBytes};
///
/// let weights = DitWeights { blocks: WeightBytes::default(), modulation: WeightBytes::default() };
/// let execution = Execution { device: Device::Cuda(0), kind: Kind::BFloat16 };
/// let config = DitConfig::kontext_dev();
/// let footprint = DitFootprint { config: &config, weights, offload: Offload::None, execution, fp8: false };
/// let work = |tokens| footprint.activations(RunSizes { tokens, batch: 1, vectors: 28 });
/// assert_eq!(work(2000) - work(1000), 1000 * 16 * 3072 * 2); // sixteen tensors in bf16
/// ```
#[derive(Debug, Clone, Copy)]
pub struct DitFootprint<'a> {
    /// Configuration of the model.
    pub config: &'a DitConfig,
    /// Bytes of its weights.
    pub weights: DitWeights,
    /// Offloaded layers.
    pub offload: Offload,
    /// Device and dtype of the computation.
    pub execution: Execution,
    /// Set if fp8 weights are multiplied in fp8.
    pub fp8: bool,
}

impl DitFootprint<'_> {
    /// Returns the bytes of weights held during a run, and of the buffers that offloaded ones are prefetched
    /// to.
    #[must_use]
    pub fn held(&self) -> u64 {
        let DitWeights { blocks, modulation } = self.weights;
        match self.offload {
            Offload::None => blocks.all().saturating_add(modulation.all()),
            Offload::Once => blocks.all().saturating_add(modulation.rest),
            Offload::All => blocks
                .rest
                .saturating_add(modulation.rest)
                .saturating_add(prefetch_bytes(&[blocks, modulation], self.execution.device)),
        }
    }

    /// Returns the peak bytes of a run next to the held weights: activations, modulation tables, and the
    /// weight that is being dequantised.
    #[must_use]
    pub fn activations(&self, run: RunSizes) -> u64 {
        let (execution, DitWeights { blocks, modulation }) = (self.execution, self.weights);
        let element = execution.element_bytes();
        let alive = if execution.device.is_cuda() {
            ON_CUDA.iter().sum::<u64>() as f64
        } else if execution.kind == Kind::BFloat16 {
            ON_CPU + PACKED_ON_CPU
        } else {
            ON_CPU
        };
        let alive = alive + if self.fp8 { FP8 as f64 } else { 0.0 };
        let all_tokens = run
            .tokens
            .saturating_mul(run.batch)
            .saturating_mul(self.config.width().unsigned_abs());
        let blocks_work = element.saturating_mul((alive * all_tokens as f64) as u64);
        let step = blocks_work.saturating_add(blocks.dequantised(self.offload == Offload::All, execution));
        // `Dit::prepare` computes the tables before any activations exist.
        let preparation = modulation.dequantised(self.offload != Offload::None, execution);
        let constant = execution.constant_bytes(CONSTANT_ON_CPU, blocks.all());
        let tables = element.saturating_mul(table_elements(self.config, run.vectors));
        step.max(preparation).saturating_add(tables).saturating_add(constant)
    }
}

/// Returns the elements of a run's modulation tables, which are held until its end.
fn table_elements(config: &DitConfig, vectors: u64) -> u64 {
    /// Shift and scale of the last layer.
    const LAST: i64 = 2;
    let double = config.double_blocks.saturating_mul(2 * double::PARTS);
    let rows = config
        .single_blocks
        .saturating_mul(single::PARTS)
        .saturating_add(double)
        .saturating_add(LAST);
    rows.unsigned_abs()
        .saturating_mul(config.width().unsigned_abs())
        .saturating_mul(vectors)
}

#[cfg(test)]
mod tests {
    use kontext_core::{Conditioning, Device, Tensor};

    use super::*;
    use crate::{Dit, Piece, RunInput};

    #[test]
    fn the_tables_have_the_counted_elements() {
        let config = DitConfig {
            heads: 2,
            head_dim: 8,
            axes_dim: [4, 2, 2],
            mlp_width: 64,
            double_blocks: 2,
            single_blocks: 3,
            context_dim: 6,
            pooled_dim: 5,
            ..DitConfig::kontext_dev()
        };
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        let dit = Dit::new(&Weights::synthetic(1), &config, |_| ()).unwrap();
        let (steps, batch) = (4_usize, 2_i64);
        let run = dit.prepare(&RunInput {
            conditioning: &Conditioning {
                prompt_embeds: zeros(&[batch, 3, 6]),
                pooled: zeros(&[batch, 5]),
            },
            target_ids: &zeros(&[4, 3]),
            context: None,
            times: &vec![500.0; steps],
            guidance: Some(2500.0),
        });
        let run = run.unwrap();
        let pieces = dit.pieces(&run, 0).unwrap();
        let tables = pieces.iter().flat_map(Piece::modulation);
        let elements: usize = tables.map(|table| table.numel()).sum();
        assert_eq!(table_elements(&config, steps as u64 * batch as u64), elements as u64);
    }

    #[test]
    fn the_counted_widths_of_a_single_block_are_those_of_its_first_layer() {
        let config = DitConfig {
            double_blocks: 0,
            single_blocks: 1,
            ..DitConfig::kontext_dev()
        };
        let blank = Weights::blank();
        Dit::new(&blank, &config, |_| ()).unwrap();
        let [rows, columns] = blank.shapes()["single_blocks.0.linear1.weight"][..] else {
            panic!("a matrix")
        };
        assert_eq!(rows, (QUERIES_KEYS_VALUES + MLP) as i64 * columns);
    }

    #[test]
    fn offloaded_weights_are_held_in_buffers_on_cuda_and_nowhere_on_a_cpu() {
        let part = |matrices, rest| WeightBytes {
            matrices,
            rest,
            largest: kontext_nn::footprint::MatrixBytes {
                elements: matrices,
                stored: matrices,
            },
            ..WeightBytes::default()
        };
        let held = |offload, device| {
            let footprint = DitFootprint {
                config: &DitConfig::kontext_dev(),
                weights: DitWeights {
                    blocks: part(1000, 10),
                    modulation: part(100, 1),
                },
                offload,
                execution: Execution {
                    device,
                    kind: Kind::Float,
                },
                fp8: false,
            };
            footprint.held()
        };
        let on_cpu = [Offload::None, Offload::Once, Offload::All].map(|offload| held(offload, Device::Cpu));
        assert_eq!(on_cpu, [1111, 1011, 11]);
        assert_eq!(held(Offload::All, Device::Cuda(0)), 2 * 1000 + 11);
    }
}
