//! Threads of libtorch on a CPU, which are those of OpenMP.
//!
//! OpenMP's library ends the program if the system refuses one of its threads.
//! Each thread that calls libtorch gets a team of its own, at its first parallel operation.

mod library;
mod team;
mod waiting;

use std::cell::Cell;
use std::sync::{Mutex, mpsc};
use std::thread::{self, Builder};

use kontext_core::{Error, Result, lock, threads as refused};

pub use self::team::Team;
pub use self::waiting::wait_passively;

/// Stack of a thread that OpenMP starts, unless `ulimit -s` says another size.
const STACK: usize = 8 << 20;

thread_local! {
    /// The largest team that was checked.
    static CHECKED: Cell<usize> = const { Cell::new(1) };
}

/// Checks, once for each calling thread, that the system grants the threads that libtorch will start for it.
///
/// The threads are started, wait for each other and end. Others may take their places before libtorch does.
///
/// # Errors
/// [`Error::Thread`] if the system refuses one.
///
/// # Example
/// ```
/// kontext_device::openmp::check()?;
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn check() -> Result<()> {
    check_team(threads())
}

/// Checks as [`check`] does for a team of this number, which [`Team::of`] sets.
///
/// # Errors
/// [`Error::Thread`] if the system refuses one of the threads.
pub fn check_team(threads: usize) -> Result<()> {
    if threads <= CHECKED.get() {
        return Ok(());
    }
    can_start(threads.saturating_sub(1), STACK)?;
    CHECKED.set(threads);
    Ok(())
}

/// Returns the number of threads with which libtorch computes on the calling thread, at least 1.
#[must_use]
pub fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1).max(1)
}

/// Starts this many threads that live at the same time.
fn can_start(count: usize, stack: usize) -> Result<()> {
    // Each waits until the channel closes.
    let (open, closed) = mpsc::channel::<()>();
    let closed = &Mutex::new(closed);
    thread::scope(|scope| {
        let wait = move || {
            let _ = lock(closed).recv();
        };
        let start = |_| Builder::new().stack_size(stack).spawn_scoped(scope, wait);
        let refused = (0..count).map(start).find_map(std::result::Result::err);
        drop(open);
        refused.map_or(Ok(()), |error| Err(refusal(&error)))
    })
}

fn refusal(error: &std::io::Error) -> Error {
    refused::refusal("libtorch", &error.to_string(), Some("OMP_NUM_THREADS"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_the_system_refuses_are_an_error_with_a_remedy() {
        // No address space holds such a stack.
        let error = can_start(2, 1 << 50).unwrap_err();
        assert!(matches!(error, Error::Thread { .. }));
        let words = error.to_string();
        assert!(
            words.contains("threads for libtorch (") && words.contains("OMP_NUM_THREADS"),
            "{words}"
        );
    }

    #[test]
    fn threads_that_the_system_grants_end_again() {
        can_start(0, STACK).unwrap();
        can_start(8, STACK).unwrap();
        check().unwrap();
        check().unwrap();
    }
}
