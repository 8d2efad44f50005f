//! Values that a thread uses while it runs a closure.

use std::cell::RefCell;
use std::thread::LocalKey;

/// A thread's values in use, the innermost last.
pub(crate) type InUse<T> = LocalKey<RefCell<Vec<T>>>;

/// Calls `f` with one more value in use on this thread; it ends with `f`, also by a panic.
pub(crate) fn scope<T: 'static, R>(in_use: &'static InUse<T>, value: T, f: impl FnOnce() -> R) -> R {
    /// Ends the scope.
    struct End<T: 'static>(&'static InUse<T>);
    impl<T> Drop for End<T> {
        fn drop(&mut self) {
            // Dropped when the values are no longer borrowed: it may hold others that use them.
            let ended = self.0.with_borrow_mut(Vec::pop);
            drop(ended);
        }
    }
    in_use.with_borrow_mut(|values| values.push(value));
    let _end = End(in_use);
    f()
}
