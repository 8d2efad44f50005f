//! bf16 tensors as slices.

use kontext_core::Tensor;

/// A bf16 tensor on the CPU with two to four sides, of which the last is dense; missing sides are of one
/// element.
pub(crate) struct View<'a> {
    data: &'a [u16],
    size: [usize; 4],
    /// Strides of all sides but the last.
    stride: [usize; 3],
}

impl<'a> View<'a> {
    #[allow(unsafe_code)]
    pub(crate) fn new(x: &'a Tensor) -> Self {
        let (sides, strides) = (x.size(), x.stride());
        let missing = 4_usize.saturating_sub(sides.len());
        let padded = |values: &[i64], pad: usize| -> [usize; 4] {
            std::array::from_fn(|side| match side.checked_sub(missing) {
                Some(side) => values.get(side).map_or(pad, |value| *value as usize),
                None => pad,
            })
        };
        let (size, [a, b, c, last]) = (padded(&sides, 1), padded(&strides, 0));
        let count = if size.contains(&0) {
            0
        } else {
            let largest = size.iter().zip([a, b, c, last]);
            1 + largest.map(|(side, stride)| (side - 1) * stride).sum::<usize>()
        };
        // SAFETY: libtorch's strides are not negative, so the last element of a tensor in memory is that of
        // the largest indices; elements are of two bytes, of which any are a value; the tensor is borrowed
        // for as long as the slice.
        let data = unsafe { std::slice::from_raw_parts(x.data_ptr().cast::<u16>(), count) };
        Self {
            data,
            size,
            stride: [a, b, c],
        }
    }

    /// Returns the elements of a row.
    pub(crate) fn width(&self) -> usize {
        self.size[3]
    }

    /// Returns the row at the indices of the other sides.
    pub(crate) fn row(&self, at: [usize; 3]) -> &'a [u16] {
        let start: usize = at.iter().zip(self.stride).map(|(index, stride)| index * stride).sum();
        &self.data[start..start + self.size[3]]
    }

    /// Returns the indices of a row, counted in the order of the sides.
    pub(super) fn indices(&self, row: usize) -> [usize; 3] {
        let [_, b, c, _] = self.size;
        [row / (b * c), row / c % b, row % c]
    }
}

/// Returns the elements of a new dense bf16 tensor on the CPU.
#[allow(unsafe_code)]
pub(super) fn values_mut(x: &mut Tensor) -> &mut [u16] {
    // SAFETY: the tensor was just made, so that nothing else refers to its elements, which lie one after the
    // other and are of two bytes, of which any are a value; it is borrowed for as long as the slice.
    unsafe { std::slice::from_raw_parts_mut(x.data_ptr().cast::<u16>(), x.numel()) }
}
