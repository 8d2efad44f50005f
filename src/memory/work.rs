//! Activation memory of a run's stages, apart from weights.

use kontext_nn::Offload;

use super::Footprint;
use super::part::{Matrix, Part, size_of};
use crate::Plan;

/// Bytes of an f32.
const F32: u64 = 4;
/// Largest area the codec does not tile, and the area of its tiles including their overlap.
const UNTILED_AREA: u64 = crate::encode::UNTILED_AREA as u64;
const TILE_AREA: u64 = 1024 * 1024;
/// Values per pixel of a whole tiled image: its pixels, the sum over tiles, and the sum's weights.
const IMAGES: u64 = 9;

/// Peak activation rates of a kind of device.
struct Rates {
    /// Values alive in the autoencoder, relative to its largest activation (twice its channels at the image's
    /// size).
    encoder: f64,
    decoder: f64,
    /// Values alive in a block, relative to a tensor of all tokens by the transformer's width.
    block: f64,
    /// Bytes of a stage that do not grow with the image.
    fixed_text: u64,
    fixed_encoder: u64,
    fixed_block: u64,
    fixed_decoder: u64,
}

/// On a CPU, measured (a model of full width, edits at 256x256 and 512x512, two cores). The constants cover
/// the unpacked piece of a weight, buffers of libtorch's threads, and gaps in the heap; a part with fewer
/// bytes of weights takes no more than those.
const CPU: Rates = Rates {
    encoder: 2.0,
    decoder: 2.4,
    block: 18.4,
    fixed_text: 185_000_000,
    fixed_encoder: 150_000_000,
    fixed_block: 243_000_000,
    fixed_decoder: 329_000_000,
};

/// On a CUDA device, counted from the code and not measured.
///
/// `block` counts tensors of all tokens by width in the first single block, between its MLP and its gate: the
/// double blocks' output, the same joined, its norm, queries, keys and values in one (3), queries and keys
/// normed and rotated (2), attention (fused: no score matrix), the MLP's activations (4), both products (2),
/// and the run's own text and context: 1 + 1 + 1 + 3 + 2 + 1 + 4 + 2 + 1 = 16. Double blocks end at 15; the
/// f32 copies of a norm come earlier.
///
/// `decoder` counts, in the last level, a block's input, its norm, the norm as channels-last for the
/// convolution, and the output with half as many channels: 3.5, and 0.5 for the convolution itself. In the
/// encoder each has half the channels.
///
/// The constants cover the growth of the device's context after its creation, when kernels are loaded, and
/// the workspaces of cuBLAS (32 MB on an H100) and cuDNN.
const CUDA: Rates = Rates {
    encoder: 2.5,
    decoder: 4.0,
    block: 16.0,
    fixed_text: 600_000_000,
    fixed_encoder: 600_000_000,
    fixed_block: 600_000_000,
    fixed_decoder: 600_000_000,
};

/// Most bytes alive per element while a matrix is dequantised on a CUDA device, apart from the result: with
/// four bits and a lookup table, a 4-byte index for two elements and both of them in f32.
const UNPACKING: u64 = 6;

impl Footprint {
    fn rates(&self) -> &'static Rates {
        if self.machine.device.is_cuda() { &CUDA } else { &CPU }
    }

    /// Returns the bytes of dequantising one matrix of a part on a CUDA device: its largest, in stored form
    /// too, if matrices are left in their file, else its largest packed one. 0 on a CPU, whose constants
    /// include it.
    fn unpacked(&self, part: &Part, left: bool) -> u64 {
        let matrix = if left {
            part.largest
        } else {
            Matrix {
                stored: 0,
                ..part.largest_packed
            }
        };
        let bytes = matrix.elements * (size_of(self.machine.compute) + UNPACKING) + matrix.stored;
        if self.machine.device.is_cuda() { bytes } else { 0 }
    }

    /// Returns a constant of the rates, on a CPU at most the bytes of the part's weights.
    fn fixed(&self, constant: u64, weights: u64) -> u64 {
        if self.machine.device.is_cuda() {
            constant
        } else {
            constant.min(weights)
        }
    }

    pub(super) fn text_work(&self, plan: &Plan, left: Offload) -> u64 {
        let compute = size_of(self.machine.compute);
        let (tokens, inner) = (
            plan.text_tokens.unsigned_abs(),
            (self.t5.num_heads * self.t5.d_kv).unsigned_abs(),
        );
        let (width, hidden) = (self.t5.d_model.unsigned_abs(), self.t5.d_ff.unsigned_abs());
        let scores = self.t5.num_heads.unsigned_abs() * tokens * tokens;
        // Attention holds the bias and the scores before and after adding it, or before and after the
        // softmax, which is f32. The MLP holds both its halves, which are f32 in an f16 run.
        let attention = (2 * compute + F32) * scores + 4 * compute * tokens * inner;
        let mlp = compute * scores + 3 * F32 * tokens * hidden;
        let unpacked = self.unpacked(&self.text, left == Offload::All);
        let fixed = self.fixed(self.rates().fixed_text, self.text.all());
        attention.max(mlp) + 3 * F32 * tokens * width + unpacked + fixed
    }

    pub(super) fn step_work(&self, plan: &Plan, left: Offload) -> u64 {
        let compute = size_of(self.machine.compute);
        let width = self.config.width().unsigned_abs();
        let batch = plan.batch as u64 * if plan.runs_per_step == 2 { 2 } else { 1 };
        let tokens = plan.tokens().unsigned_abs() * batch;
        let vectors = 12 * self.config.double_blocks + 3 * self.config.single_blocks + 2;
        let tables = vectors.unsigned_abs() * width * plan.schedule.steps() as u64 * plan.runs_per_step as u64;
        let activations = compute * (self.rates().block * (tokens * width) as f64) as u64;
        // The tables are computed before any activations exist.
        let making = self.unpacked(&self.modulation, left != Offload::None);
        let step = activations + self.unpacked(&self.dit, left == Offload::All);
        step.max(making) + compute * tables + self.fixed(self.rates().fixed_block, self.dit.all())
    }

    pub(super) fn encoder_work(&self, plan: &Plan, area: u64) -> u64 {
        let fixed = self.fixed(self.rates().fixed_encoder, self.vae);
        self.image_work(plan, area, self.rates().encoder) + fixed
    }

    pub(super) fn decoder_work(&self, plan: &Plan, area: u64) -> u64 {
        let fixed = self.fixed(self.rates().fixed_decoder, self.vae);
        self.image_work(plan, area, self.rates().decoder) + fixed
    }

    fn image_work(&self, plan: &Plan, area: u64, alive: f64) -> u64 {
        // Above this area the codec works tile by tile and also keeps the whole image.
        let (tile, image) = if area > UNTILED_AREA {
            (TILE_AREA, IMAGES * area)
        } else {
            (area, 0)
        };
        let value = size_of(plan.conformance.vae_kind(self.machine.compute));
        let largest = value * 2 * self.vae_channels * tile + F32 * image;
        (largest as f64 * alive) as u64
    }
}
