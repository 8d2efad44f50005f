//! Operands in the order of the units' registers: pairs of bf16 values that are multiplied and added together.

use kontext_core::{Result, buffer};

use crate::bf16_rows::View;

/// The purpose of the memory, for its error.
const PURPOSE: &str = "the packed keys and values of the attention";

/// Lanes of a register.
pub(super) const LANES: usize = 16;
/// Registers of a panel, the columns of a tile.
pub(super) const PANEL: usize = 4;
/// Columns of a panel.
pub(super) const COLUMNS: usize = LANES * PANEL;

/// A register of pairs of bf16 values, the first of each pair in the lower half.
pub(super) type Register = [u32; LANES];

/// Writes the values of a row as pairs.
pub(super) fn pairs(row: &[u16], out: &mut [u32]) {
    let (row, _) = row.as_chunks::<2>();
    for (pair, out) in row.iter().zip(out) {
        *out = join(pair[0], pair[1]);
    }
}

/// Packs keys so that a lane is a key: panels of [`COLUMNS`] keys, in each [D / 2][`PANEL`] registers. Keys
/// beyond the last are zeros.
pub(super) fn keys(k: &View<'_>, at: [usize; 2], count: usize, width: usize) -> Result<Vec<Register>> {
    let panels = count.div_ceil(COLUMNS);
    let mut out = buffer::filled([0; LANES], panels * width / 2 * PANEL, PURPOSE)?;
    for key in 0..count {
        let (panel, register, lane) = (key / COLUMNS, key % COLUMNS / LANES, key % LANES);
        let panel = &mut out[panel * width / 2 * PANEL..];
        let (row, _) = k.row([at[0], at[1], key]).as_chunks::<2>();
        for (pair, registers) in row.iter().zip(panel.chunks_exact_mut(PANEL)) {
            registers[register][lane] = join(pair[0], pair[1]);
        }
    }
    Ok(out)
}

/// Packs values so that a lane is a feature and a pair two keys: blocks of `block` keys, in each D /
/// [`COLUMNS`] panels of [`block` / 2][`PANEL`] registers. Keys beyond the last are zeros.
pub(super) fn values(v: &View<'_>, at: [usize; 2], count: usize, width: usize, block: usize) -> Result<Vec<Register>> {
    let blocks = count.div_ceil(block);
    let (panel_size, panels) = (block / 2 * PANEL, width / COLUMNS);
    let mut out = buffer::filled([0; LANES], blocks * panels * panel_size, PURPOSE)?;
    let zeros = vec![0; width];
    for first in (0..count).step_by(2) {
        let row = v.row([at[0], at[1], first]);
        let next = if first + 1 < count {
            v.row([at[0], at[1], first + 1])
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
    Ok(out)
}

fn join(first: u16, second: u16) -> u32 {
    u32::from(first) | u32::from(second) << 16
}
