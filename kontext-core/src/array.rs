//! Conversion between tensors and ndarray arrays.

use ndarray::{ArrayD, ArrayViewD};
use tch::{Device, Kind, Tensor};

use crate::{Error, Result, buffer};

/// Copies a tensor of any dtype and device to an f32 array.
///
/// # Errors
/// [`Error::Torch`] if libtorch fails, [`Error::Allocation`] if the system refuses the memory.
///
/// # Example
/// ```
/// use kontext_core::{array, Tensor};
/// let tensor = Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0]).reshape([2, 2]);
/// let array = array::to_array(&tensor)?;
/// assert_eq!(array[[1, 0]], 3.0);
/// assert!(array::from_array(&array.view())?.equal(&tensor));
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn to_array(tensor: &Tensor) -> Result<ArrayD<f32>> {
    let shape: Vec<usize> = tensor.size().iter().map(|&s| s as usize).collect();
    let values = to_vec(tensor)?;
    ArrayD::from_shape_vec(shape, values).map_err(|e| Error::invalid("tensor", "a shape that an array can have", e))
}

/// Copies a tensor of any dtype and device to a flat vector of f32, in row-major order.
///
/// # Errors
/// [`Error::Torch`] if libtorch fails, [`Error::Allocation`] if the system refuses the memory.
pub fn to_vec(tensor: &Tensor) -> Result<Vec<f32>> {
    let flat = tensor
        .f_to_device(Device::Cpu)?
        .f_to_kind(Kind::Float)?
        .f_contiguous()?
        .f_reshape([-1])?;
    let mut values = buffer::filled(0.0, flat.numel(), "the values of a tensor")?;
    let count = values.len();
    flat.f_copy_data(&mut values, count)?;
    Ok(values)
}

/// Copies an f32 array to a tensor on the CPU.
///
/// # Errors
/// [`Error::Torch`] if libtorch fails, [`Error::Allocation`] if the system refuses the memory.
pub fn from_array(array: &ArrayViewD<'_, f32>) -> Result<Tensor> {
    let shape: Vec<i64> = array.shape().iter().map(|&s| s as i64).collect();
    let mut values = buffer::with_room(array.len(), "the values of an array")?;
    values.extend(array.iter().copied());
    Ok(Tensor::f_from_slice(&values)?.f_reshape(shape)?)
}
