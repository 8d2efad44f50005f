//! The threads of parallel loops: rayon's global pool.

use std::error::Error as _;
use std::sync::OnceLock;

use rayon::ThreadPoolBuilder;

use crate::{Error, Result};

/// Starts rayon's global pool, unless it runs already; to be called before a parallel loop.
///
/// Without it, rayon starts the pool at the first loop, and panics if the system refuses a thread. It tries only
/// once in the life of a process, so an error stays. The loops of a thread of another pool run in that pool.
///
/// # Errors
/// [`Error::Thread`] if the system refuses a thread, as under a limit of processes.
///
/// # Example
/// ```
/// kontext_core::threads::start()?;
/// assert!(rayon::current_num_threads() > 0);
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn start() -> Result<()> {
    static REFUSED: OnceLock<Option<String>> = OnceLock::new();
    if rayon::current_thread_index().is_some() {
        return Ok(());
    }
    let refused = REFUSED.get_or_init(|| {
        let error = ThreadPoolBuilder::new().build_global().err()?;
        // An error without a source says that the pool runs.
        error.source().map(ToString::to_string)
    });
    match refused {
        None => Ok(()),
        Some(reason) => Err(refusal("parallel loops", reason, Some("RAYON_NUM_THREADS"))),
    }
}

/// Creates the error of threads that the system refuses. `purpose` completes "threads for …"; the variable, if there
/// is one, sets their number.
///
/// # Example
/// ```
/// let error = kontext_core::threads::refusal("the run", "too many", None);
/// assert!(error.to_string().starts_with("a thread failed: the system refuses threads for the run (too many); "));
/// ```
#[must_use]
pub fn refusal(purpose: &str, reason: &str, variable: Option<&str>) -> Error {
    let fewer = variable.map_or_else(String::new, |variable| format!(", or set {variable} to fewer"));
    Error::Thread {
        reason: format!(
            "the system refuses threads for {purpose} ({reason}); allow more processes (`ulimit -u`, or the pids limit \
             of the container) or more memory{fewer}"
        ),
    }
}
