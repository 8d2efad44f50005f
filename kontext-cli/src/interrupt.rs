//! Cancellation by Ctrl-C.

use std::sync::{Arc, Mutex};

use anyhow::Context;
use kontext::Cancel;

/// Exit code that shells report for a program ended by Ctrl-C.
const INTERRUPTED: i32 = 130;

/// Installs a handler of Ctrl-C and returns the [`Cancel`] that it sets.
///
/// # Errors
/// If the program has a handler already, or the system refuses a thread.
pub fn cancel_on_ctrl_c() -> anyhow::Result<Cancel> {
    let cancel = Cancel::new();
    let remote = cancel.clone();
    set_handler(move || remote.cancel())?;
    Ok(cancel)
}

/// Installs a handler, which gets a thread of its own.
fn set_handler(handler: impl FnMut() + Send + 'static) -> anyhow::Result<()> {
    ctrlc::set_handler(handler).context(
        "cannot start the thread that waits for Ctrl-C; allow more processes (`ulimit -u`, or the pids limit of the \
         container) or more memory",
    )
}

/// A handler of Ctrl-C for programs that wait for input between runs: it cancels the current run, or ends the program
/// if there is none.
#[derive(Debug)]
pub struct Interrupt(Arc<Mutex<Option<Cancel>>>);

impl Interrupt {
    /// Installs the handler.
    ///
    /// # Errors
    /// If the program has a handler already, or the system refuses a thread.
    pub fn install() -> anyhow::Result<Self> {
        let running = Arc::new(Mutex::new(None::<Cancel>));
        let seen = Arc::clone(&running);
        set_handler(move || match kontext_core::lock(&seen).as_ref() {
            Some(cancel) => cancel.cancel(),
            None => std::process::exit(INTERRUPTED),
        })?;
        Ok(Self(running))
    }

    /// Begins a run, which Ctrl-C cancels from now on.
    #[must_use]
    pub fn begin(&self) -> Cancel {
        let cancel = Cancel::new();
        self.set(Some(cancel.clone()));
        cancel
    }

    /// Ends the run.
    pub fn end(&self) {
        self.set(None);
    }

    fn set(&self, cancel: Option<Cancel>) {
        *kontext_core::lock(&self.0) = cancel;
    }
}
