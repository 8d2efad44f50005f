//! Tensors under the names of other programs' files, which may store them in pieces.

use kontext_core::{Result, Tensor};
use kontext_formats::{NameMap, TensorMap};
use kontext_nn::ops::swap_halves;

/// A tensor, or some of its rows, under its name in a file.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) name: String,
    rows: Rows,
}

#[derive(Debug, Clone)]
enum Rows {
    All,
    Some { start: i64, count: i64 },
    SwappedHalves,
}

impl Piece {
    /// Returns the whole tensor under this name.
    pub(crate) fn whole(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            rows: Rows::All,
        }
    }

    /// Returns the piece's shape, from that of the whole.
    pub(crate) fn shape(&self, whole: &[i64]) -> Vec<i64> {
        match (&self.rows, whole) {
            (Rows::Some { count, .. }, [_, columns @ ..]) => [&[*count], columns].concat(),
            _ => whole.to_vec(),
        }
    }

    /// Returns the piece's values, from those of the whole.
    pub(crate) fn of(&self, whole: &Tensor) -> Result<Tensor> {
        Ok(match self.rows {
            Rows::All => whole.shallow_clone(),
            Rows::Some { start, count } => whole.f_narrow(0, start, count)?,
            Rows::SwappedHalves => swap_halves(whole)?,
        })
    }
}

/// Returns the pieces of a tensor of this shape under another naming scheme.
pub(crate) fn pieces(name: &str, shape: &[i64], map: NameMap, width: i64) -> Vec<Piece> {
    match map(name) {
        TensorMap::Name(name) => vec![Piece::whole(name)],
        TensorMap::SwapHalves(name) => vec![Piece {
            name,
            rows: Rows::SwappedHalves,
        }],
        TensorMap::Rows(names) => {
            // All parts but the last have as many rows as the model is wide.
            let rows = shape.first().copied().unwrap_or_default();
            let (height, last) = (rows.min(width), names.len().saturating_sub(1));
            let piece = |(index, name)| {
                let start = height * index as i64;
                let count = if index == last { rows - start } else { height };
                Piece {
                    name,
                    rows: Rows::Some { start, count },
                }
            };
            names.into_iter().enumerate().map(piece).collect()
        }
    }
}

/// Converts tensors to another naming scheme.
pub(crate) fn renamed(tensors: Vec<(String, Tensor)>, map: NameMap, width: i64) -> Result<Vec<(String, Tensor)>> {
    let mut renamed = Vec::new();
    for (name, value) in tensors {
        for piece in pieces(&name, &value.size(), map, width) {
            let value = piece.of(&value)?;
            renamed.push((piece.name, value));
        }
    }
    Ok(renamed)
}
