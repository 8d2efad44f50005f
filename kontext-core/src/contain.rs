//! Containment of panics in other libraries.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `work`, which hands untrusted input to a library that may panic on it, and returns its result, or the
/// panic's message as an error. The values that `work` changes must not be used after an error.
///
/// The program's panic hook still runs (by default it prints the message), and a program built with
/// `panic = "abort"` ends.
///
/// # Errors
/// The message of the panic.
///
/// # Example
/// ```
/// let sizes: [usize; 0] = [];
/// assert_eq!(kontext_core::contain(|| sizes.len()), Ok(0));
/// let index = sizes.len();
/// assert!(kontext_core::contain(|| sizes[index]).unwrap_err().contains("out of bounds"));
/// ```
pub fn contain<T>(work: impl FnOnce() -> T) -> std::result::Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| panic_message(&*panic))
}

/// Returns the message of a panic's payload.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a message").to_owned()
}
