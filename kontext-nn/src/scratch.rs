//! Scratch memory for unpacked weights, reused from layer to layer.

use std::sync::Mutex;

use half::bf16;
use tch::{Device, Kind, Tensor};

use kontext_core::Result;
use kontext_formats::quant::Element;

/// Bytes of a piece. Unpacking and multiplication have separate thread pools, whose finished threads
/// busy-wait for a moment: with pieces of 16 MB a block in Q8_0 took 1.11 of its time in f32, with these
/// 1.05.
const PIECE: usize = 1 << 26;

/// An element that weights are unpacked to: one that libtorch multiplies on a CPU.
pub(crate) trait Multiplied: Element {
    /// libtorch's name for it.
    const KIND: Kind;
    /// Elements of a piece.
    const PIECE: usize = PIECE / size_of::<Self>();
}

impl Multiplied for f32 {
    const KIND: Kind = Kind::Float;
}

impl Multiplied for bf16 {
    const KIND: Kind = Kind::BFloat16;
}

/// Pieces not in use: as many as there were concurrent multiplications.
static IDLE: Mutex<Vec<Tensor>> = Mutex::new(Vec::new());

/// Fills a matrix [rows, columns] on the CPU and passes it to `consume`, which must not keep it.
pub(crate) fn with<E: Multiplied, T>(
    rows: usize,
    columns: usize,
    fill: impl FnOnce(&mut [E]) -> Result<()>,
    consume: impl FnOnce(&Tensor) -> Result<T>,
) -> Result<T> {
    let elements = rows * columns;
    // Counted in f32, the kind of the pieces.
    let floats = (elements * size_of::<E>()).div_ceil(size_of::<f32>());
    let mut idle = kontext_core::lock(&IDLE);
    let kept = idle
        .iter()
        .position(|piece| piece.numel() >= floats)
        .map(|index| idle.swap_remove(index));
    drop(idle);
    let mut piece = match kept {
        Some(piece) => piece,
        None => Tensor::f_empty([floats.max(f32::PIECE) as i64], (Kind::Float, Device::Cpu))?,
    };
    fill(slice(&mut piece, elements))?;
    let result = consume(
        &piece
            .f_view_dtype(E::KIND)?
            .f_narrow(0, 0, elements as i64)?
            .f_view([rows as i64, columns as i64])?,
    );
    kontext_core::lock(&IDLE).push(piece);
    result
}

#[allow(unsafe_code)]
fn slice<E: Multiplied>(piece: &mut Tensor, elements: usize) -> &mut [E] {
    // SAFETY: the piece is a contiguous f32 tensor on the CPU with at least this many elements of `E`, which
    // is f32 or of half its width, and has a value for all bits; it was removed from the idle list: nothing
    // else reads or writes it until it is put back.
    unsafe { std::slice::from_raw_parts_mut(piece.data_ptr().cast::<E>(), elements) }
}
