//! What the stages of a run take beside weights.

use kontext_nn::LeftInFile;

use super::Footprint;
use super::part::{Matrix, Part, size_of};
use crate::Plan;

/// Bytes of an f32.
const F32: u64 = 4;
/// The codec's bound, and the area of its tiles with their overlap.
const UNTILED_AREA: u64 = crate::encode::UNTILED_AREA as u64;
const TILE_AREA: u64 = 1024 * 1024;
/// Values of a pixel of a whole picture: as pixels, as their sum of tiles, and its weights.
const PICTURES: u64 = 9;

/// How much is alive at once on a kind of device.
struct Rates {
    /// Values in the autoencoder, of its largest activation (twice its channels at the picture's size).
    encoder: f64,
    decoder: f64,
    /// Values in a block, of a tensor of all tokens by the transformer's width.
    block: f64,
    /// Bytes of a stage that do not grow with the picture.
    beside_text: u64,
    beside_encoder: u64,
    beside_block: u64,
    beside_decoder: u64,
}

/// On a CPU, by experiment (a model of full width, edits at 256x256 and 512x512, two cores). Beside activations there are
/// the unpacked piece of a weight, buffers of libtorch's threads, and gaps in the heap; parts whose weights are fewer
/// take no more than those.
const CPU: Rates = Rates {
    encoder: 2.0,
    decoder: 2.4,
    block: 18.4,
    beside_text: 185_000_000,
    beside_encoder: 150_000_000,
    beside_block: 243_000_000,
    beside_decoder: 329_000_000,
};

/// On a CUDA device, counted from the code and not measured. Tensors of all tokens by width in the first single block,
/// between its MLP and its gate: the double blocks' output, the same joined, normed, queries, keys and values in one, the
/// first two normed and turned, attention (fused: no matrix of scores), the MLP's four, both products, and the run's own
/// text and context: 1 + 1 + 1 + 3 + 2 + 1 + 4 + 2 + 1 = 16. Double blocks end at 15; the f32 copies of a norm come earlier.
/// In the decoder's last level: a block's input, its norm, the same channels-last for the convolution, and half as many
/// channels behind it: 3.5, and 0.5 for the convolution's own; in the encoder each has half the channels.
/// Beside them stands what the device's context takes later than it is made, when kernels are loaded, and workspaces of
/// cuBLAS (32 MB on an H100) and cuDNN.
const CUDA: Rates = Rates {
    encoder: 2.5,
    decoder: 4.0,
    block: 16.0,
    beside_text: 600_000_000,
    beside_encoder: 600_000_000,
    beside_block: 600_000_000,
    beside_decoder: 600_000_000,
};

/// Bytes of an element that are alive while a matrix is unpacked on a CUDA device, at most, beside the matrix itself: of
/// four bits with a table, an index of 4 bytes for two elements and both of them in f32.
const UNPACKING: u64 = 6;

impl Footprint {
    fn rates(&self) -> &'static Rates {
        if self.machine.device.is_cuda() { &CUDA } else { &CPU }
    }

    /// The matrix of a part that is just unpacked on a CUDA device: any of them where they are left in their file, from
    /// where they come as they are stored, else the packed ones. On a CPU the constants have it.
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

    /// A constant of the rates; on a CPU, parts whose weights are fewer take no more than those.
    fn beside(&self, constant: u64, weights: u64) -> u64 {
        if self.machine.device.is_cuda() {
            constant
        } else {
            constant.min(weights)
        }
    }

    pub(super) fn text_work(&self, plan: &Plan, left: LeftInFile) -> u64 {
        let compute = size_of(self.machine.compute);
        let (tokens, inner) = (
            plan.text_tokens.unsigned_abs(),
            (self.t5.num_heads * self.t5.d_kv).unsigned_abs(),
        );
        let (width, hidden) = (self.t5.d_model.unsigned_abs(), self.t5.d_ff.unsigned_abs());
        let scores = self.t5.num_heads.unsigned_abs() * tokens * tokens;
        // The bias, and scores before and behind it or before and behind the softmax, which is f32; or both halves of
        // the MLP, which are f32 in f16.
        let attention = (2 * compute + F32) * scores + 4 * compute * tokens * inner;
        let mlp = compute * scores + 3 * F32 * tokens * hidden;
        let unpacked = self.unpacked(&self.text, left == LeftInFile::All);
        let beside = self.beside(self.rates().beside_text, self.text.all());
        attention.max(mlp) + 3 * F32 * tokens * width + unpacked + beside
    }

    pub(super) fn step_work(&self, plan: &Plan, left: LeftInFile) -> u64 {
        let compute = size_of(self.machine.compute);
        let width = self.config.width().unsigned_abs();
        let batch = plan.batch as u64 * if plan.runs_per_step == 2 { 2 } else { 1 };
        let tokens = plan.tokens().unsigned_abs() * batch;
        let vectors = 12 * self.config.double_blocks + 3 * self.config.single_blocks + 2;
        let tables = vectors.unsigned_abs() * width * plan.schedule.steps() as u64 * plan.runs_per_step as u64;
        let activations = compute * (self.rates().block * (tokens * width) as f64) as u64;
        // The tables are made before there are activations.
        let making = self.unpacked(&self.modulation, left != LeftInFile::None);
        let step = activations + self.unpacked(&self.dit, left == LeftInFile::All);
        step.max(making) + compute * tables + self.beside(self.rates().beside_block, self.dit.all())
    }

    pub(super) fn encoder_work(&self, plan: &Plan, area: u64) -> u64 {
        let beside = self.beside(self.rates().beside_encoder, self.vae);
        self.picture_work(plan, area, self.rates().encoder) + beside
    }

    pub(super) fn decoder_work(&self, plan: &Plan, area: u64) -> u64 {
        let beside = self.beside(self.rates().beside_decoder, self.vae);
        self.picture_work(plan, area, self.rates().decoder) + beside
    }

    fn picture_work(&self, plan: &Plan, area: u64, alive: f64) -> u64 {
        // Above this the codec works tile by tile, and keeps the whole picture beside the tile.
        let (tile, picture) = if area > UNTILED_AREA {
            (TILE_AREA, PICTURES * area)
        } else {
            (area, 0)
        };
        let value = size_of(plan.conformance.vae_kind(self.machine.compute));
        let largest = value * 2 * self.vae_channels * tile + F32 * picture;
        (largest as f64 * alive) as u64
    }
}
