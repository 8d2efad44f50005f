//! The class that a configuration names.

use std::path::Path;

use crate::{Error, Result, printable};

/// Checks the class that a configuration names, as `_class_name` in diffusers; one without a class is
/// accepted. `field` is the field's name, `path` the configuration's.
///
/// # Errors
/// A checkpoint error that names the class, if it is none of `expected`.
///
/// # Example
/// ```
/// use kontext_core::check_class;
/// let check = |got| check_class("config.json", "_class_name", got, &["AutoencoderKL", "AutoencoderTiny"]);
/// assert!(check(Some("AutoencoderKL")).is_ok() && check(None).is_ok());
/// assert!(check(Some("AutoencoderDC")).is_err());
/// ```
pub fn check_class(path: impl AsRef<Path>, field: &str, got: Option<&str>, expected: &[&str]) -> Result<()> {
    wrong_class(field, got, expected).map_or(Ok(()), |reason| Err(Error::config(path.as_ref(), reason)))
}

/// Returns the problem and its remedy if a configuration names none of the `expected` classes; see
/// [`check_class`].
#[must_use]
pub fn wrong_class(field: &str, got: Option<&str>, expected: &[&str]) -> Option<String> {
    let got = printable(got.filter(|got| !expected.contains(got))?);
    let expected = expected.join(" or ");
    Some(format!(
        "`{field}` is {got}, expected {expected}: it is of another model, fetch the right one"
    ))
}
