//! Memory whose size follows from a user's input.

use image::RgbImage;

use crate::{Error, Result};

/// Returns an empty vector with room for `len` elements.
///
/// [`Vec::with_capacity`] ends the program if the memory cannot be had; this returns an error. `purpose`
/// completes "cannot allocate 5 MB for …".
///
/// # Errors
/// [`Error::Allocation`].
///
/// # Example
/// ```
/// let row = kontext_core::buffer::with_room::<u8>(640, "a row of the image")?;
/// assert!(row.is_empty() && row.capacity() >= 640);
/// let error = kontext_core::buffer::with_room::<u64>(usize::MAX, "the image").unwrap_err();
/// assert!(error.is_out_of_memory());
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn with_room<T>(len: usize, purpose: &'static str) -> Result<Vec<T>> {
    let mut room = Vec::new();
    room.try_reserve_exact(len).map_err(|_| {
        let bytes = (len as u128).saturating_mul(std::mem::size_of::<T>() as u128);
        Error::Allocation {
            purpose,
            mb: bytes.div_ceil(1_000_000),
        }
    })?;
    Ok(room)
}

/// Returns a vector of `len` copies of `value`, as [`with_room`].
///
/// # Errors
/// [`Error::Allocation`].
pub fn filled<T: Clone>(value: T, len: usize, purpose: &'static str) -> Result<Vec<T>> {
    let mut all = with_room(len, purpose)?;
    all.resize(len, value);
    Ok(all)
}

/// Returns a copy of a slice, as [`with_room`].
///
/// # Errors
/// [`Error::Allocation`].
pub fn copied<T: Copy>(values: &[T], purpose: &'static str) -> Result<Vec<T>> {
    let mut all = with_room(values.len(), purpose)?;
    all.extend_from_slice(values);
    Ok(all)
}

/// Checks that the system grants `bytes` at once, before a library takes as much in a way that would end the program.
/// Another thread may take them in between.
///
/// # Errors
/// [`Error::Allocation`].
pub fn can_have(bytes: u64, purpose: &'static str) -> Result<()> {
    let len = usize::try_from(bytes).unwrap_or(usize::MAX);
    // The compiler may not drop an allocation that it sees used.
    std::hint::black_box(with_room::<u8>(len, purpose)?);
    Ok(())
}

/// Returns a copy of an image, as [`with_room`].
///
/// # Errors
/// [`Error::Allocation`].
pub fn copied_image(image: &RgbImage) -> Result<RgbImage> {
    let bytes = copied(image.as_raw(), "a copy of the image")?;
    let missing = || Error::bug("a copy of an image with missing pixels");
    RgbImage::from_raw(image.width(), image.height(), bytes).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_no_machine_has_is_an_error_with_its_megabytes() {
        let error = filled(0_u8, usize::MAX / 2, "the image").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("cannot allocate 9223372036855 MB for the image; "),
            "{error}"
        );
        assert_eq!(filled(7_u8, 3, "the image").unwrap(), [7, 7, 7]);
        assert_eq!(copied(&[1.5, 2.5], "values").unwrap(), [1.5, 2.5]);
        assert!(can_have(1000, "the image").is_ok() && can_have(u64::MAX / 2, "the image").is_err());
    }
}
