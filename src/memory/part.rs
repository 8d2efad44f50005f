//! Bytes of a part's weights, in memory and in its files.

use kontext_core::Kind;
use kontext_formats::Quantize;
use kontext_nn::Weights;

/// Bytes of a part: matrices, which may be offloaded to their file, and all other tensors.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Part {
    /// Matrices as held in memory.
    pub(super) matrices: u64,
    /// Matrices as stored in their files.
    pub(super) stored: u64,
    pub(super) rest: u64,
    /// The largest matrix, in transit to the device if offloaded.
    pub(super) largest: Matrix,
    /// The largest matrix held in another form than the one it is multiplied in.
    pub(super) largest_packed: Matrix,
}

/// Sizes of a matrix.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Matrix {
    pub(super) elements: u64,
    /// Bytes in its file.
    pub(super) stored: u64,
}

impl Part {
    /// Sums the tensors selected by `wanted`; plain ones are held in at most the width of their dtype.
    pub(super) fn of(
        weights: &Weights,
        to: Option<Quantize>,
        kind: impl Fn(&str) -> Kind,
        wanted: impl Fn(&str) -> bool,
    ) -> Self {
        let mut part = Self::default();
        for (name, (shape, stored)) in weights
            .store()
            .stored_sizes()
            .into_iter()
            .filter(|(name, _)| wanted(name))
        {
            let elements = shape.iter().product::<i64>().unsigned_abs();
            let wide = size_of(kind(&name)) * elements;
            match shape.as_slice() {
                [_, columns] => {
                    let held = packed(to, *columns, elements, stored).min(wide);
                    let matrix = Matrix { elements, stored };
                    part.matrices += held;
                    part.stored += stored;
                    part.largest = part.largest.max(matrix);
                    if held != wide {
                        part.largest_packed = part.largest_packed.max(matrix);
                    }
                }
                // A tensor stored wider is narrowed.
                _ => part.rest += stored.min(wide),
            }
        }
        part
    }

    pub(super) fn all(self) -> u64 {
        self.matrices + self.rest
    }
}

/// Returns the bytes of a matrix after quantisation at load, if it is requested and the file holds a plain
/// matrix.
fn packed(to: Option<Quantize>, columns: i64, elements: u64, stored: u64) -> u64 {
    const HALF: u64 = 2;
    match to.filter(|to| to.fits(columns) && stored >= HALF * elements) {
        Some(to) => elements / to.format().block() as u64 * to.format().bytes() as u64,
        None => stored,
    }
}

/// Returns the bytes of an element.
pub(super) fn size_of(kind: Kind) -> u64 {
    kind.elt_size_in_bytes() as u64
}
