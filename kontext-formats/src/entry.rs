//! A tensor of a file, as the headers describe it.

use super::file::Stored;
use super::quant::Format;
use super::scales::{Place, SideTensors};

/// A tensor in a file: its shape and form, without its values.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Index of the file.
    pub(super) file: usize,
    /// The tensor's name in that file.
    pub(super) name: String,
    pub(super) stored: Stored,
    pub(super) side: SideTensors,
    /// Size of the side tensors in bytes.
    pub(super) side_bytes: u64,
}

impl Entry {
    pub(super) fn new(file: usize, name: &str, stored: &Stored) -> Self {
        Self {
            file,
            name: name.to_owned(),
            stored: stored.clone(),
            side: SideTensors::None,
            side_bytes: 0,
        }
    }

    pub(super) fn place(&self) -> Place {
        (self.file, self.name.clone())
    }

    /// The stored shape.
    #[must_use]
    pub fn shape(&self) -> &[i64] {
        &self.stored.shape
    }

    /// The storage format, if it is one that a linear layer can use without conversion.
    #[must_use]
    pub fn format(&self) -> Option<Format> {
        self.stored.format
    }

    /// Returns `true` if a libtorch tensor of the stored bytes would not have the tensor's values: packed formats,
    /// and weights with scales next to them.
    #[must_use]
    pub fn is_packed(&self) -> bool {
        self.stored.format.is_some() && (self.stored.kind.is_none() || !matches!(self.side, SideTensors::None))
    }

    /// Size in the file in bytes, side tensors included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.stored.range.len() as u64 + self.side_bytes
    }
}
