//! Scratch memory for unpacked weights, reused from layer to layer.

use std::sync::Mutex;

use tch::{Device, Kind, Tensor};

use kontext_core::Result;

/// Elements of a piece: 64 MB in f32. Unpacking and multiplication have separate thread pools, whose finished
/// threads busy-wait for a moment: with pieces of 16 MB a block in Q8_0 took 1.11 of its time in f32, with
/// these 1.05.
pub(crate) const PIECE: usize = 1 << 24;

/// Pieces not in use: as many as there were concurrent multiplications.
static IDLE: Mutex<Vec<Tensor>> = Mutex::new(Vec::new());

/// Fills an f32 matrix [rows, columns] on the CPU and passes it to `consume`, which must not keep it.
pub(crate) fn with<T>(
    rows: usize,
    columns: usize,
    fill: impl FnOnce(&mut [f32]) -> Result<()>,
    consume: impl FnOnce(&Tensor) -> Result<T>,
) -> Result<T> {
    let elements = rows * columns;
    let mut idle = kontext_core::lock(&IDLE);
    let kept = idle
        .iter()
        .position(|piece| piece.numel() >= elements)
        .map(|index| idle.swap_remove(index));
    drop(idle);
    let mut piece = match kept {
        Some(piece) => piece,
        None => Tensor::f_empty([elements.max(PIECE) as i64], (Kind::Float, Device::Cpu))?,
    };
    fill(floats(&mut piece, elements))?;
    let result = consume(
        &piece
            .f_narrow(0, 0, elements as i64)?
            .f_view([rows as i64, columns as i64])?,
    );
    kontext_core::lock(&IDLE).push(piece);
    result
}

#[allow(unsafe_code)]
fn floats(piece: &mut Tensor, elements: usize) -> &mut [f32] {
    // SAFETY: the piece is a contiguous f32 tensor on the CPU with at least this many elements, and it was
    // removed from the idle list: nothing else reads or writes it until it is put back.
    unsafe { std::slice::from_raw_parts_mut(piece.data_ptr().cast::<f32>(), elements) }
}
