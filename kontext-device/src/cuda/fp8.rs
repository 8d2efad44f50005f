//! Capability of a card to multiply in fp8.

use kontext_core::Result;

use super::Driver;

/// The lowest compute capability whose tensor cores multiply e4m3: Ada's. Source: NVIDIA, CUDA C++ Programming Guide,
/// "Arithmetic Instructions".
const LOWEST: (i32, i32) = (8, 9);

/// Returns `true` if the CUDA device of this index multiplies in fp8; `false` if there is none.
///
/// # Errors
/// Those of [`Driver::find`].
///
/// # Example
/// ```
/// assert!(!kontext_device::cuda::has_fp8(99)?);
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn has_fp8(index: usize) -> Result<bool> {
    let device = Driver::find()?.and_then(|driver| driver.devices.get(index).map(|device| device.capability));
    Ok(device.is_some_and(multiplies))
}

fn multiplies(capability: (i32, i32)) -> bool {
    capability >= LOWEST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_from_ada_on_multiply_in_fp8() {
        let some = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)];
        assert_eq!(some.map(multiplies), [false, false, false, true, true, true, true]);
    }
}
