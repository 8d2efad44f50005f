//! Cancellation by Ctrl-C, and by the signals that end a program.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use kontext::Cancel;

/// Exit code that shells report for a program ended by Ctrl-C.
const INTERRUPTED: i32 = 130;
/// Exit code that shells report for a program ended by SIGTERM.
#[cfg(unix)]
const TERMINATED: i32 = 143;

/// Installs a handler of Ctrl-C and returns the [`Cancel`] that it sets. A second Ctrl-C ends the program at once.
///
/// # Errors
/// If the program has a handler already, or the system refuses a thread.
pub fn cancel_on_ctrl_c() -> anyhow::Result<Cancel> {
    let cancel = Cancel::new();
    let remote = cancel.clone();
    set_handler(move || cancel_or_exit(&remote))?;
    Ok(cancel)
}

/// Returns a flag that is set, instead of the end of the program, when it is asked to end (SIGTERM: `kill`, a
/// shutdown, a batch system) or its terminal is closed (SIGHUP). A second SIGTERM ends the program at once. On
/// systems other than Unix the flag stays unset.
///
/// # Errors
/// If the system refuses a handler.
pub fn termination() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = hang_up()?;
    #[cfg(unix)]
    {
        use signal_hook::consts::SIGTERM;
        // The first handler acts if the flag is set already, the second one sets it.
        signal_hook::flag::register_conditional_shutdown(SIGTERM, TERMINATED, Arc::clone(&flag))?;
        signal_hook::flag::register(SIGTERM, Arc::clone(&flag))?;
    }
    Ok(flag)
}

/// Installs a handler, which gets a thread of its own.
fn set_handler(handler: impl FnMut() + Send + 'static) -> anyhow::Result<()> {
    ctrlc::set_handler(handler).context(
        "cannot start the thread that waits for Ctrl-C; allow more processes (`ulimit -u`, or the pids limit of the \
         container) or more memory",
    )
}

/// Cancels a run, or ends the program if it is cancelled already: a step may take minutes.
fn cancel_or_exit(cancel: &Cancel) {
    if cancel.check().is_break() {
        exit();
    }
    cancel.cancel();
}

/// Ends the program without the destructors of libraries: other threads may still compute.
fn exit() -> ! {
    #[cfg(unix)]
    signal_hook::low_level::exit(INTERRUPTED);
    #[cfg(not(unix))]
    std::process::exit(INTERRUPTED)
}

/// Returns a flag that is set when the terminal is closed, instead of the end of the program; on systems other than
/// Unix it stays unset.
///
/// # Errors
/// If the system refuses a handler.
pub fn hang_up() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    #[cfg(unix)]
    signal_hook::flag::register(signal_hook::consts::SIGHUP, Arc::clone(&flag))?;
    Ok(flag)
}

/// A handler of Ctrl-C for programs that wait for input between runs: it cancels the current run (a second Ctrl-C ends
/// the program at once), or ends the program if there is none.
#[derive(Debug)]
pub struct Interrupt(Arc<Mutex<Option<Cancel>>>);

impl Interrupt {
    /// Installs the handler, which calls `leave` before it ends the program between runs.
    ///
    /// # Errors
    /// If the program has a handler already, or the system refuses a thread.
    pub fn install(leave: impl Fn() + Send + 'static) -> anyhow::Result<Self> {
        let running = Arc::new(Mutex::new(None::<Cancel>));
        let seen = Arc::clone(&running);
        set_handler(move || match kontext_core::lock(&seen).as_ref() {
            Some(cancel) => cancel_or_exit(cancel),
            None => {
                leave();
                exit()
            }
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
