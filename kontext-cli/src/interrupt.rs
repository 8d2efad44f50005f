//! Cancellation by Ctrl-C, and requests to end: the closing of the terminal, and SIGTERM.

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
    set_handler(move || cancel_or_exit(&remote, || ()))?;
    Ok(cancel)
}

/// Returns a flag that is set, instead of the end of the program, when it is asked to end (SIGTERM: `kill`, a
/// shutdown, a batch system) or its terminal is closed (SIGHUP). A second SIGTERM ends the program at once. On
/// systems other than Unix the flag stays unset.
///
/// # Errors
/// If the system refuses a handler.
pub fn termination() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    #[cfg(unix)]
    {
        use signal_hook::consts::{SIGHUP, SIGTERM};
        use signal_hook::flag::{register, register_conditional_shutdown};
        // The first handler acts if the flag of the second is set already: by an earlier SIGTERM, not by a SIGHUP.
        let asked = Arc::new(AtomicBool::new(false));
        register_conditional_shutdown(SIGTERM, TERMINATED, Arc::clone(&asked))?;
        register(SIGTERM, asked)?;
        register(SIGTERM, Arc::clone(&flag))?;
        register(SIGHUP, Arc::clone(&flag))?;
    }
    Ok(flag)
}

/// Returns a flag as [`termination`] does, and calls `act` after it is set, on a thread of its own.
///
/// # Errors
/// If the system refuses a handler or a thread.
pub fn on_termination(act: impl Fn() + Send + 'static) -> anyhow::Result<Arc<AtomicBool>> {
    // Set by the handler itself, so before the program can see the end of its input.
    let flag = termination()?;
    #[cfg(unix)]
    {
        use signal_hook::consts::{SIGHUP, SIGTERM};
        let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGTERM])?;
        let wait = move || signals.forever().for_each(|_| act());
        let thread = std::thread::Builder::new().name("signals".to_owned()).spawn(wait);
        thread.context("cannot start the thread that waits for signals")?;
    }
    #[cfg(not(unix))]
    drop(act);
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
fn cancel_or_exit(cancel: &Cancel, leave: impl Fn()) {
    if cancel.check().is_break() {
        leave();
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

/// A handler of Ctrl-C for programs that wait for input between runs: it cancels the current run (a second Ctrl-C ends
/// the program at once), or ends the program if there is none. Clones share the run.
#[derive(Debug, Clone)]
pub struct Interrupt(Arc<Mutex<Option<Cancel>>>);

impl Interrupt {
    /// Installs the handler, which calls `leave` before it ends the program.
    ///
    /// # Errors
    /// If the program has a handler already, or the system refuses a thread.
    pub fn install(leave: impl Fn() + Send + 'static) -> anyhow::Result<Self> {
        let running = Arc::new(Mutex::new(None::<Cancel>));
        let seen = Arc::clone(&running);
        set_handler(move || match kontext_core::lock(&seen).as_ref() {
            Some(cancel) => cancel_or_exit(cancel, &leave),
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

    /// Cancels the run, if there is one.
    pub fn cancel(&self) {
        if let Some(cancel) = kontext_core::lock(&self.0).as_ref() {
            cancel.cancel();
        }
    }

    /// Ends the run.
    pub fn end(&self) {
        self.set(None);
    }

    fn set(&self, cancel: Option<Cancel>) {
        *kontext_core::lock(&self.0) = cancel;
    }
}
