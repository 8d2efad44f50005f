//! Packed matrices as their files have them, and rows of them.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use memmap2::Mmap;
use tch::Device;

use crate::Result;
use crate::cuda::Copies;
use crate::prefetch::{Prefetch, Source};
use crate::quant::on_device::OnDevice;
use crate::quant::{Format, Packed, Scale};
use crate::weights::Factors;

/// Rows of one or more packed matrices, one after the other, and some of their columns. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct PackedRows {
    pub(super) parts: Vec<Part>,
    pub(super) columns: Range<usize>,
    pub(super) device: Device,
    /// The way to the device of those that are left in their file.
    pub(super) prefetch: Option<Arc<Prefetch<Copies>>>,
}

/// Some rows of a packed matrix.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) matrix: Arc<PackedMatrix>,
    pub(super) rows: Range<usize>,
}

/// A packed matrix as its file has it.
#[derive(Debug)]
pub(crate) struct PackedMatrix {
    pub(crate) bytes: Bytes,
    pub(crate) format: Format,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) factors: Factors,
}

/// Where packed bytes are.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// In memory.
    Held(Vec<u8>),
    /// In the file, which the system reads as they are needed and may forget again.
    Mapped(Arc<Mmap>, Range<usize>),
    /// In the device's memory, with their factors. Behind a lock, so that threads may share what they are part of.
    OnDevice(Mutex<OnDevice>),
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Held(bytes) => bytes,
            Bytes::Mapped(map, range) => map.get(range.clone()).unwrap_or_default(),
            Bytes::OnDevice(_) => &[],
        }
    }
}

impl Source for PackedMatrix {
    fn bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }
}

impl PackedMatrix {
    pub(crate) fn view(&self) -> Result<Packed<'_>> {
        let scale = match &self.factors {
            Factors::None => Scale::None,
            Factors::All(factor) => Scale::All(*factor),
            Factors::Rows(factors) => Scale::Rows(factors),
            Factors::Blocks { size, values } => Scale::Blocks { size: *size, values },
        };
        Packed::new(self.bytes.as_slice(), self.format, self.rows, self.columns, scale)
    }
}

impl PackedRows {
    /// All rows of these matrices, which have one number of columns. What is held in memory moves to a CUDA device.
    pub(crate) fn new(matrices: Vec<Arc<PackedMatrix>>, device: Device) -> Result<Self> {
        let columns = matrices.first().map_or(0, |matrix| matrix.columns);
        let part = |matrix: Arc<PackedMatrix>| -> Result<Part> {
            let moves = device.is_cuda() && matches!(matrix.bytes, Bytes::Held(_));
            let matrix = if moves { Arc::new(matrix.on(device)?) } else { matrix };
            Ok(Part {
                rows: 0..matrix.rows,
                matrix,
            })
        };
        let parts = matrices.into_iter().map(part).collect::<Result<_>>()?;
        Ok(Self {
            parts,
            columns: 0..columns,
            device,
            prefetch: None,
        })
    }

    /// The same, with those that are left in their file brought to the device ahead.
    pub(crate) fn prefetched(self, prefetch: Option<Arc<Prefetch<Copies>>>) -> Self {
        if let Some(prefetch) = &prefetch {
            self.parts.iter().for_each(|part| prefetch.expect(&part.matrix));
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
                    matrix: Arc::clone(&part.matrix),
                    rows,
                });
            }
            offset += part.rows.len();
        }
        Self { parts, ..self.clone() }
    }

    /// Writes the elements, row by row.
    pub(super) fn unpack(&self, mut out: &mut [f32]) -> Result<()> {
        for part in &self.parts {
            let (now, rest) = out.split_at_mut(part.rows.len() * self.columns.len());
            part.matrix
                .view()?
                .unpack(part.rows.clone(), self.columns.clone(), now)?;
            out = rest;
        }
        Ok(())
    }
}
