//! Locks whose poisoning is ignored.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex, also if a thread panicked while it held it. Only for values that are whole between any two
/// operations on them, so that a panic leaves nothing half-changed.
///
/// # Example
/// ```
/// use std::sync::Mutex;
/// let names = Mutex::new(vec!["a"]);
/// kontext_core::lock(&names).push("b");
/// assert_eq!(kontext_core::lock(&names).len(), 2);
/// ```
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
