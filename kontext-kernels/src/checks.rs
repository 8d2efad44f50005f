//! Checks of tensors before their addresses are passed to a kernel.

use std::ffi::c_void;

use kontext_core::{Device, Error, Kind, Result, Tensor};

use crate::{Access, Buffer, KernelShape};

/// Bytes that a thread moves at once, which addresses are multiples of.
const ALIGNMENT: usize = 16;
/// Most batch items of a launch, which are the grid's second axis.
const MOST_ITEMS: i64 = 65_535;

/// A tensor [batch, rows, width] that was checked: bf16, of any distance between rows and between items.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    pub(crate) data: *mut c_void,
    pub(crate) batch: i64,
    pub(crate) rows: i64,
    pub(crate) width: i64,
    /// Values from one item to the next.
    pub(crate) batch_stride: i64,
    /// Values from one row to the next.
    pub(crate) row_stride: i64,
}

impl Rows {
    /// Checks a tensor of the shape that `expected` words. With `writes`, no two rows may share memory.
    pub(crate) fn of(
        name: &'static str,
        expected: &'static str,
        tensor: &Tensor,
        device: Device,
        writes: bool,
    ) -> Result<Self> {
        check(name, tensor, device, Kind::BFloat16)?;
        let [batch, rows, width] = kontext_core::check::dims(name, tensor, expected)?;
        if batch > MOST_ITEMS || i32::try_from(rows).is_err() {
            let limits = format!("at most {MOST_ITEMS} items of 2^31 - 1 rows");
            return Err(Error::invalid(name, limits, format!("{batch} of {rows}")));
        }
        let (batch_stride, row_stride, step) = tensor.stride3()?;
        // Of a single row or item, libtorch allows any distance.
        let row_stride = if rows == 1 { width } else { row_stride };
        let batch_stride = if batch == 1 { rows * row_stride } else { batch_stride };
        let of_vectors = |stride: i64| stride % KernelShape::VECTOR == 0;
        if (width > 1 && step != 1) || !of_vectors(row_stride) || !of_vectors(batch_stride) {
            let wanted = "dense rows that start every multiple of 8 values (make it contiguous)";
            return Err(Error::invalid(name, wanted, format!("strides {:?}", tensor.stride())));
        }
        let checked = Self {
            data: tensor.data_ptr(),
            batch,
            rows,
            width,
            batch_stride,
            row_stride,
        };
        let [(outer_count, outer), (inner_count, inner)] = checked.axes();
        let inner_extent = (inner_count - 1) * inner + width;
        let shares = (inner_count > 1 && inner < width) || (outer_count > 1 && outer < inner_extent);
        if shares || (writes && outer_count * inner_count != batch * rows) {
            let wanted = "rows that share no memory (make it contiguous)";
            return Err(Error::invalid(name, wanted, format!("strides {:?}", tensor.stride())));
        }
        Ok(checked)
    }

    /// Returns `true` if there is nothing to compute.
    pub(crate) fn is_empty(&self) -> bool {
        self.batch == 0 || self.rows == 0 || self.width == 0
    }

    /// Count and stride of items and rows, the larger stride first; those of a repeated axis are one.
    fn axes(&self) -> [(i64, i64); 2] {
        let once = |count: i64, stride: i64| if stride == 0 { (1, 0) } else { (count, stride) };
        let axes = [once(self.batch, self.batch_stride), once(self.rows, self.row_stride)];
        if axes[0].1 >= axes[1].1 {
            axes
        } else {
            [axes[1], axes[0]]
        }
    }

    /// Returns the memory of the first `width` values of each row.
    pub(crate) fn buffer(&self, width: i64, access: Access) -> Buffer {
        let [(outer, outer_stride), (inner, inner_stride)] = self.axes();
        Buffer {
            address: self.data,
            bytes: bytes_of(width),
            counts: [outer as usize, inner as usize],
            strides: [bytes_of(outer_stride), bytes_of(inner_stride)],
            access,
        }
    }

    /// Returns the grid of a block for each row.
    pub(crate) fn grid(&self) -> [u32; 2] {
        [self.rows as u32, self.batch as u32]
    }
}

fn bytes_of(values: i64) -> usize {
    values as usize * 2
}

/// Checks the vectors [batch or 1, width] of a modulation, also with a middle axis of 1. Returns the address,
/// the values from one item's vector to the next, and the memory.
pub(crate) fn vectors(
    name: &'static str,
    tensor: &Tensor,
    rows: &Rows,
    device: Device,
) -> Result<(*const c_void, i64, Buffer)> {
    let expected = "[batch or 1, width]";
    let flat = match tensor.size()[..] {
        [_, 1, _] => tensor.f_select(1, 0)?,
        _ => tensor.shallow_clone(),
    };
    let [count, width] = kontext_core::check::dims(name, &flat, expected)?;
    if width != rows.width || (count != 1 && count != rows.batch) {
        return Err(Error::Shape {
            tensor: name,
            expected,
            got: tensor.size(),
        });
    }
    let vectors = Rows::of(name, expected, &flat.f_unsqueeze(1)?, device, false)?;
    let stride = if count == 1 { 0 } else { vectors.batch_stride };
    Ok((vectors.data, stride, vectors.buffer(width, Access::Read)))
}

/// Checks a dense f32 tensor of these sizes. Returns its address and memory.
pub(crate) fn dense(
    name: &'static str,
    expected: &'static str,
    tensor: &Tensor,
    sizes: &[i64],
    device: Device,
) -> Result<(*const c_void, Buffer)> {
    check(name, tensor, device, Kind::Float)?;
    if tensor.size() != sizes {
        return Err(Error::Shape {
            tensor: name,
            expected,
            got: tensor.size(),
        });
    }
    if !tensor.is_contiguous() {
        return Err(Error::invalid(
            name,
            "a contiguous tensor",
            format!("strides {:?}", tensor.stride()),
        ));
    }
    let buffer = whole(tensor, Access::Read);
    Ok((buffer.address, buffer))
}

/// Checks that a tensor is on the kernels' device, of the kind, aligned, and without a gradient.
pub(crate) fn check(name: &'static str, tensor: &Tensor, device: Device, kind: Kind) -> Result<()> {
    if tensor.device() != device {
        return Err(Error::invalid(
            name,
            format!("a tensor on {device:?}"),
            format!("{:?}", tensor.device()),
        ));
    }
    if tensor.kind() != kind {
        return Err(Error::invalid(
            name,
            format!("{kind:?}"),
            format!("{:?}", tensor.kind()),
        ));
    }
    if tensor.requires_grad() {
        let expected =
            "a tensor without a gradient, as the kernels have none (detach it, or take libtorch's operations)";
        return Err(Error::invalid(name, expected, "one with a gradient"));
    }
    if !tensor.data_ptr().addr().is_multiple_of(ALIGNMENT) {
        let expected = format!("an address that is a multiple of {ALIGNMENT} (copy it)");
        return Err(Error::invalid(name, expected, format!("{:?}", tensor.data_ptr())));
    }
    Ok(())
}

/// Returns the memory of a dense tensor, such as a fresh one.
pub(crate) fn whole(tensor: &Tensor, access: Access) -> Buffer {
    let bytes = tensor.numel() * tensor.kind().elt_size_in_bytes();
    Buffer {
        address: tensor.data_ptr(),
        bytes,
        counts: [1, 1],
        strides: [0, 0],
        access,
    }
}
