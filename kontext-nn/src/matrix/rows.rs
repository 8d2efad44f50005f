//! Rows of packed matrices, on the host or on a device.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use kontext_core::{Error, Result};
use kontext_formats::StoredMatrix;
use kontext_formats::quant::Element;
use tch::Device;

use crate::dequant::OnDevice;
use crate::prefetch::{Copies, Prefetch};

/// Rows of one or more packed matrices, one after the other, and some of their columns. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct PackedRows {
    pub(super) parts: Vec<Part>,
    pub(super) columns: Range<usize>,
    pub(super) device: Device,
    /// Prefetcher of the matrices that are left in their file.
    pub(super) prefetch: Option<Arc<Prefetch<Copies>>>,
    /// Set if the rows are multiplied in fp8.
    pub(super) fp8: bool,
}

/// Some rows of a packed matrix.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) matrix: Held,
    pub(super) rows: Range<usize>,
}

/// A packed matrix, on the host or in a device's memory.
#[derive(Debug, Clone)]
pub(super) enum Held {
    Host(Arc<StoredMatrix>),
    /// In a `Mutex`, so that threads may share it: tensors are `Send` only.
    Device(Arc<Mutex<OnDevice>>),
}

impl PackedRows {
    /// All rows of these matrices, which have the same number of columns. Those held in memory move to a CUDA device.
    pub(crate) fn new(matrices: Vec<StoredMatrix>, device: Device) -> Result<Self> {
        let columns = matrices.first().map_or(0, |matrix| matrix.size()[1]);
        let part = |matrix: StoredMatrix| -> Result<Part> {
            let rows = 0..matrix.size()[0];
            let matrix = if device.is_cuda() && !matrix.is_mapped() {
                Held::on(&matrix, device)?
            } else {
                Held::Host(Arc::new(matrix))
            };
            Ok(Part { matrix, rows })
        };
        Ok(Self {
            parts: matrices.into_iter().map(part).collect::<Result<_>>()?,
            columns: 0..columns,
            device,
            prefetch: None,
            fp8: false,
        })
    }

    /// Prefetches the matrices that are left in their file.
    pub(crate) fn prefetched(self, prefetch: Option<Arc<Prefetch<Copies>>>) -> Self {
        if let Some(prefetch) = &prefetch {
            for part in &self.parts {
                if let Held::Host(matrix) = &part.matrix {
                    prefetch.expect(matrix);
                }
            }
        }
        Self { prefetch, ..self }
    }

    /// The second half of the rows before the first.
    pub(crate) fn halves_swapped(&self) -> Self {
        let (rows, half) = (self.rows(), self.rows() / 2);
        let (first, second) = (self.only_rows(0, half), self.only_rows(half, rows - half));
        Self {
            parts: second.parts.into_iter().chain(first.parts).collect(),
            ..self.clone()
        }
    }

    /// [out, in].
    pub(crate) fn size(&self) -> [i64; 2] {
        [self.rows() as i64, self.columns.len() as i64]
    }

    pub(super) fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows.len()).sum()
    }

    pub(super) fn only_rows(&self, start: usize, count: usize) -> Self {
        let (mut parts, mut offset) = (Vec::new(), 0);
        for part in &self.parts {
            let from = start.max(offset).min(offset + part.rows.len()) - offset;
            let to = (start + count).max(offset).min(offset + part.rows.len()) - offset;
            if from < to {
                let rows = part.rows.start + from..part.rows.start + to;
                parts.push(Part {
                    matrix: part.matrix.clone(),
                    rows,
                });
            }
            offset += part.rows.len();
        }
        Self { parts, ..self.clone() }
    }

    /// Writes the elements row by row, with the kernels of the host.
    pub(super) fn unpack<E: Element>(&self, mut out: &mut [E]) -> Result<()> {
        for part in &self.parts {
            let (now, rest) = out.split_at_mut(part.rows.len() * self.columns.len());
            let Held::Host(matrix) = &part.matrix else {
                return Err(Error::bug("rows on a device for the kernels of the host"));
            };
            matrix.view()?.unpack(part.rows.clone(), self.columns.clone(), now)?;
            out = rest;
        }
        Ok(())
    }
}
