//! Attention of a block of queries over all keys of a head.

use std::f32::consts::LOG2_E;
use std::ops::Range;

use kontext_core::Result;

use super::pack::{self, COLUMNS, LANES, PANEL, Register};
use super::tile;
use crate::bf16_rows::View;

/// Queries of a block: a multiple of a tile's rows.
pub(super) const QUERIES: usize = 16 * tile::ROWS;
/// Keys whose scores are held at a time: the values of a panel of them fit into the L1 cache, the scores of
/// the block into the L2 cache.
const KEYS: usize = 256;

/// Keys and values of a head, packed.
pub(super) struct Keys {
    k: Vec<Register>,
    v: Vec<Register>,
    count: usize,
}

impl Keys {
    pub(super) fn pack(k: &View<'_>, v: &View<'_>, at: [usize; 2], count: usize, width: usize) -> Result<Self> {
        Ok(Self {
            k: pack::keys(k, at, count, width)?,
            v: pack::values(v, at, count, width, KEYS)?,
            count,
        })
    }
}

/// Memory of a thread.
pub(super) struct Scratch {
    width: usize,
    /// Pairs of the queries [`QUERIES`, D / 2].
    q: Vec<u32>,
    /// Scores [`QUERIES`, `KEYS`].
    scores: Vec<[[f32; LANES]; PANEL]>,
    /// Weights, as pairs of bf16 values [`QUERIES`, `KEYS` / 2].
    weights: Vec<[u32; LANES / 2]>,
    /// Sums of weighted values [`QUERIES`, D].
    sums: Vec<[[f32; LANES]; PANEL]>,
    /// Of each query, its highest score so far (to the base 2), the sum of its weights, and the factor from
    /// the maximum before to this one.
    highest: [f32; QUERIES],
    totals: [f32; QUERIES],
    factors: [f32; QUERIES],
}

impl Scratch {
    /// Allocates for heads of a width that is a multiple of [`COLUMNS`].
    pub(super) fn new(width: usize) -> Self {
        Self {
            width,
            q: vec![0; QUERIES * width / 2],
            scores: vec![[[0.0; LANES]; PANEL]; QUERIES * KEYS / COLUMNS],
            weights: vec![[0; LANES / 2]; QUERIES * KEYS / LANES],
            sums: vec![[[0.0; LANES]; PANEL]; QUERIES * width / COLUMNS],
            highest: [0.0; QUERIES],
            totals: [0.0; QUERIES],
            factors: [0.0; QUERIES],
        }
    }

    /// Computes the attention of some queries of a head; [`Scratch::result`] returns its rows.
    ///
    /// Only for a CPU for which [`tile::is_supported`] is true.
    #[allow(unsafe_code)]
    pub(super) fn attend(&mut self, q: &View<'_>, at: [usize; 2], queries: Range<usize>, keys: &Keys, scale: f32) {
        let (width, rows) = (self.width, queries.len());
        for (query, out) in queries.zip(self.q.chunks_exact_mut(width / 2)) {
            pack::pairs(q.row([at[0], at[1], query]), out);
        }
        self.highest = [f32::NEG_INFINITY; QUERIES];
        self.totals = [0.0; QUERIES];
        self.factors = [0.0; QUERIES];
        self.sums.fill([[0.0; LANES]; PANEL]);
        let (panels, key_panel, value_panel) = (width / COLUMNS, width / 2 * PANEL, KEYS / 2 * PANEL);
        for start in (0..keys.count).step_by(KEYS) {
            let count = KEYS.min(keys.count - start);
            let used = count.div_ceil(COLUMNS);
            for panel in 0..used {
                let k = &keys.k[(start / COLUMNS + panel) * key_panel..][..key_panel];
                let scores = &mut self.scores[panel..];
                // SAFETY: the CPU has the features, as the caller made sure.
                unsafe { tile::multiply_add(&self.q, width / 2, k, scores, KEYS / COLUMNS, rows, None) };
            }
            for row in 0..rows {
                let scores = self.scores[row * KEYS / COLUMNS..][..KEYS / COLUMNS].as_flattened();
                let weights = &mut self.weights[row * KEYS / LANES..][..KEYS / LANES];
                let before = self.highest[row];
                // SAFETY: as above.
                let (highest, sum) = unsafe { tile::weights(scores, count, scale * LOG2_E, before, weights) };
                let factor = (before - highest).exp2();
                self.highest[row] = highest;
                self.factors[row] = factor;
                self.totals[row] = self.totals[row] * factor + sum;
            }
            // Only the pairs of keys that there are.
            let pairs = count.div_ceil(2);
            for panel in 0..panels {
                let v = &keys.v[(start / KEYS * panels + panel) * value_panel..][..pairs * PANEL];
                let (weights, sums) = (self.weights.as_flattened(), &mut self.sums[panel..]);
                // SAFETY: as above.
                unsafe { tile::multiply_add(weights, KEYS / 2, v, sums, panels, rows, Some(&self.factors)) };
            }
        }
    }

    /// Writes the result of a query, rounded to bf16.
    #[allow(unsafe_code)]
    pub(super) fn result(&self, row: usize, out: &mut [u16]) {
        let panels = self.width / COLUMNS;
        let sums = self.sums[row * panels..][..panels].as_flattened();
        let factor = 1.0 / self.totals[row];
        for (sums, out) in sums.iter().zip(out.as_chunks_mut::<LANES>().0) {
            // SAFETY: as in `attend`, without which there is no result.
            let pairs = unsafe { tile::narrowed(sums, factor) };
            for (pair, out) in pairs.iter().zip(out.as_chunks_mut::<2>().0) {
                *out = [*pair as u16, (pair >> 16) as u16];
            }
        }
    }
}
