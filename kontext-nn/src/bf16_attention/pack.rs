//! Operands in the order of the units' registers: pairs of bf16 values that are multiplied and added together.

use kontext_core::Tensor;

/// Lanes of a register.
pub(super) const LANES: usize = 16;
/// Registers of a panel, the columns of a tile.
pub(super) const PANEL: usize = 4;
/// Columns of a panel.
pub(super) const COLUMNS: usize = LANES * PANEL;

/// A register of pairs of bf16 values, the first of each pair in the lower half.
pub(super) type Register = [u32; LANES];

/// A bf16 tensor [B, H, L, D] with a dense last dimension.
pub(super) struct View<'a> {
    data: &'a [u16],
    /// Strides of B, H and L.
    strides: [usize; 3],
}

impl<'a> View<'a> {
    /// `x` has four sides and elements.
    #[allow(unsafe_code)]
    pub(super) fn new(x: &'a Tensor) -> Self {
        let (size, stride) = (x.size(), x.stride());
        let last: i64 = size
            .iter()
            .zip(&stride)
            .map(|(side, stride)| (side - 1).max(0) * stride)
            .sum();
        let count = if size.contains(&0) { 0 } else { last as usize + 1 };
        // SAFETY: libtorch's strides are not negative, so the last element of a tensor in memory is that of the largest
        // indices; the tensor is borrowed for as long as the slice.
        let data = unsafe { std::slice::from_raw_parts(x.data_ptr().cast::<u16>(), count) };
        let strides = [0, 1, 2].map(|side| stride.get(side).map_or(0, |stride| *stride as usize));
        Self { data, strides }
    }

    /// Returns `width` values of a token of a head.
    pub(super) fn row(&self, [item, head]: [usize; 2], token: usize, width: usize) -> &'a [u16] {
        let at = item * self.strides[0] + head * self.strides[1] + token * self.strides[2];
        &self.data[at..at + width]
    }
}

/// Writes the values of a row as pairs.
pub(super) fn pairs(row: &[u16], out: &mut [u32]) {
    let (row, _) = row.as_chunks::<2>();
    for (pair, out) in row.iter().zip(out) {
        *out = join(pair[0], pair[1]);
    }
}

/// Packs keys so that a lane is a key: panels of [`COLUMNS`] keys, in each [D / 2][`PANEL`] registers. Keys beyond
/// the last are zeros.
pub(super) fn keys(k: &View<'_>, at: [usize; 2], count: usize, width: usize) -> Vec<Register> {
    let panels = count.div_ceil(COLUMNS);
    let mut out = vec![[0; LANES]; panels * width / 2 * PANEL];
    for key in 0..count {
        let (panel, register, lane) = (key / COLUMNS, key % COLUMNS / LANES, key % LANES);
        let panel = &mut out[panel * width / 2 * PANEL..];
        let (row, _) = k.row(at, key, width).as_chunks::<2>();
        for (pair, registers) in row.iter().zip(panel.chunks_exact_mut(PANEL)) {
            registers[register][lane] = join(pair[0], pair[1]);
        }
    }
    out
}

/// Packs values so that a lane is a feature and a pair two keys: blocks of `block` keys, in each D / [`COLUMNS`] panels
/// of [`block` / 2][`PANEL`] registers. Keys beyond the last are zeros.
pub(super) fn values(v: &View<'_>, at: [usize; 2], count: usize, width: usize, block: usize) -> Vec<Register> {
    let blocks = count.div_ceil(block);
    let (panel_size, panels) = (block / 2 * PANEL, width / COLUMNS);
    let mut out = vec![[0; LANES]; blocks * panels * panel_size];
    let zeros = vec![0; width];
    for first in (0..count).step_by(2) {
        let row = v.row(at, first, width);
        let next = if first + 1 < count {
            v.row(at, first + 1, width)
        } else {
            &zeros
        };
        let (inside, start) = (first % block / 2, first / block * panels * panel_size);
        for (index, (a, b)) in row.chunks_exact(LANES).zip(next.chunks_exact(LANES)).enumerate() {
            let (panel, register) = (index / PANEL, index % PANEL);
            let out = &mut out[start + panel * panel_size + inside * PANEL + register];
            for (out, (a, b)) in out.iter_mut().zip(a.iter().zip(b)) {
                *out = join(*a, *b);
            }
        }
    }
    out
}

fn join(first: u16, second: u16) -> u32 {
    u32::from(first) | u32::from(second) << 16
}
