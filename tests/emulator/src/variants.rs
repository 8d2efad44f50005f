//! The variants of the kernels' text that are compiled; read by the build script, too.

/// Shapes that the emulator has: width, width of a head, width of the MLP.
pub const SHAPES: [[i64; 3]; 4] = [
    // Flux.
    [3072, 128, 12_288],
    // The small model of the repository: rows that end within a warp.
    [192, 32, 768],
    // Heads of 64, rows of two and a quarter warps, an MLP that is no multiple of the width.
    [576, 64, 1336],
    // The least, for tests of whole models.
    [64, 32, 256],
];

/// The shape of the faulty variants: of more than one warp.
pub const FAULTY_SHAPE: [i64; 3] = SHAPES[2];

/// All faults.
pub const FAULTS: [Fault; 5] = [
    Fault::MissingBarrier,
    Fault::ReusedScratch,
    Fault::DivergentShuffle,
    Fault::RowTooMany,
    Fault::Misaligned,
];

/// A fault that is planted in the kernels' text, to show that the emulator finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No barrier between the warps' results of a reduction and their use.
    MissingBarrier,
    /// Both reductions of a layer norm in the same scratch, without a barrier between them.
    ReusedScratch,
    /// A shuffle that only the threads of heads take part in.
    DivergentShuffle,
    /// A slab that does not end with the picture.
    RowTooMany,
    /// Values of the MLP read from an address that is no multiple of 16 bytes.
    Misaligned,
}

impl Fault {
    /// Returns the correct text and the faulty one.
    #[allow(dead_code, reason = "used by the build script")]
    pub(crate) fn patch(self) -> (&'static str, &'static str) {
        match self {
            Self::MissingBarrier => (
                "    if (lane == 0) scratch[warp] = value;\n    __syncthreads();\n",
                "    if (lane == 0) scratch[warp] = value;\n",
            ),
            Self::ReusedScratch => (
                "block_reduce<Sum>(squares, scratch + WARP,",
                "block_reduce<Sum>(squares, scratch,",
            ),
            Self::DivergentShuffle => (
                "    norm_and_turn(k, weight_k, turn, eps);",
                "    if (is_head) norm_and_turn(k, weight_k, turn, eps);",
            ),
            Self::RowTooMany => (
                "min(begin + slab, pixels);\n    float sum[VECTOR]",
                "begin + slab;\n    float sum[VECTOR]",
            ),
            Self::Misaligned => ("load(mlp_row + (at - before))", "load(mlp_row + (at - before) + 1)"),
        }
    }
}
