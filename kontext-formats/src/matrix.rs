//! A matrix in the form in which its file stores it.

use std::ops::Range;
use std::sync::Arc;

use kontext_core::{Error, Result};
use memmap2::Mmap;
use tch::Tensor;

use super::quant::{Format, Packed, Scale};
use super::scales::Scales;

/// A matrix [rows, columns] in its stored form, on the host: packed bytes and their scales.
#[derive(Debug)]
pub struct StoredMatrix {
    bytes: Bytes,
    format: Format,
    rows: usize,
    columns: usize,
    scales: Scales,
}

#[derive(Debug)]
enum Bytes {
    Held(Vec<u8>),
    /// A range of the mapped file: the system reads its pages on demand and may drop them again.
    Mapped(Arc<Mmap>, Range<usize>),
}

impl StoredMatrix {
    /// A matrix in memory; `bytes` are its rows one after the other.
    ///
    /// The sizes are checked by [`StoredMatrix::view`].
    #[must_use]
    pub fn new(bytes: Vec<u8>, format: Format, [rows, columns]: [usize; 2], scales: Scales) -> Self {
        Self {
            bytes: Bytes::Held(bytes),
            format,
            rows,
            columns,
            scales,
        }
    }

    /// A matrix in a mapped file.
    pub(super) fn mapped(
        map: &Arc<Mmap>,
        range: Range<usize>,
        format: Format,
        [rows, columns]: [usize; 2],
        scales: Scales,
    ) -> Self {
        Self {
            bytes: Bytes::Mapped(Arc::clone(map), range),
            format,
            rows,
            columns,
            scales,
        }
    }

    /// The packed bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Held(bytes) => bytes,
            Bytes::Mapped(map, range) => map.get(range.clone()).unwrap_or_default(),
        }
    }

    /// Returns `true` if the bytes are left in the file.
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        matches!(self.bytes, Bytes::Mapped(..))
    }

    /// Rows and columns.
    #[must_use]
    pub fn size(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// Changes the shape to another one with as many elements, if the stored form allows it: blocks and row scales
    /// cannot be divided differently. Returns the matrix unchanged otherwise.
    #[must_use]
    pub fn reshaped(self, [rows, columns]: [usize; 2]) -> Self {
        let same = rows.checked_mul(columns) == self.rows.checked_mul(self.columns);
        let free = self.format.block() == 1 && !matches!(self.scales, Scales::Rows(_));
        if same && free {
            Self { rows, columns, ..self }
        } else {
            self
        }
    }

    /// A view from which rows and columns can be unpacked.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if bytes or scales do not fit the size.
    pub fn view(&self) -> Result<Packed<'_>> {
        let scale = match &self.scales {
            Scales::None => Scale::None,
            Scales::All(scale) => Scale::All(*scale),
            Scales::Rows(scales) => Scale::Rows(scales),
            Scales::Blocks { size, values } => Scale::Blocks { size: *size, values },
        };
        Packed::new(self.bytes(), self.format, self.rows, self.columns, scale)
    }

    /// Unpacks the matrix to f32, in the given shape, on the host.
    ///
    /// # Errors
    /// Those of [`StoredMatrix::view`]; [`Error::Torch`] for a shape with another number of elements.
    pub fn dense(&self, shape: &[i64]) -> Result<Tensor> {
        let elements = self.rows.checked_mul(self.columns);
        let elements = elements.ok_or_else(|| Error::invalid("matrix", "a size that memory can hold", "more"))?;
        let view = self.view()?;
        let mut values = vec![0.0; elements];
        view.unpack(0..self.rows, 0..self.columns, &mut values)?;
        Ok(Tensor::f_from_slice(&values)?.f_reshape(shape)?)
    }
}
