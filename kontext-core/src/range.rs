//! Bounds of numbers that come from files and callers.

use std::fmt::Display;
use std::ops::RangeInclusive;

use crate::{Error, Result};

/// Checks that a number lies in `range`; NaN lies in none. `name` is the number's name as the caller or the
/// file knows it.
///
/// # Errors
/// [`Error::InvalidArgument`] with the range. For a number of a file, [`Error::in_config`] attaches its path.
///
/// # Example
/// ```
/// use kontext_core::range;
/// assert_eq!(range::within("max_sequence_length", 512, 1..=65_536)?, 512);
/// let error = range::within("smooth", f32::NAN, 0.0..=100.0).unwrap_err();
/// assert_eq!(error.to_string(), "invalid smooth: expected a number from 0 to 100, got NaN");
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn within<T: PartialOrd + Display>(name: &'static str, value: T, range: RangeInclusive<T>) -> Result<T> {
    if range.contains(&value) {
        return Ok(value);
    }
    let expected = format!("a number from {} to {}", range.start(), range.end());
    Err(Error::invalid(name, expected, value))
}

/// Checks that a number is neither NaN nor infinite.
///
/// # Errors
/// [`Error::InvalidArgument`] otherwise.
pub fn finite(name: &'static str, value: f64) -> Result<f64> {
    if value.is_finite() {
        return Ok(value);
    }
    Err(Error::invalid(name, "a finite number", value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_are_accepted_and_their_neighbours_refused() {
        for (value, accepted) in [(0, false), (1, true), (8, true), (9, false)] {
            assert_eq!(within("number", value, 1..=8).is_ok(), accepted, "{value}");
        }
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(finite("number", value).is_err() && within("number", value, 0.0..=1.0).is_err());
        }
    }
}
