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
    set_handler(move || cancel_or(&remote, || exit()))?;
    Ok(cancel)
}

/// Returns a flag that is set, instead of the end of the program, when it is asked to end (SIGTERM: `kill`, a
/// shutdown, a batch system) or its terminal is closed (SIGHUP). A second SIGTERM ends the program at once. On
/// systems other than Unix the flag stays unset. A signal that the program was started to ignore, as SIGHUP by
/// `nohup`, stays ignored; this is only known on Linux.
///
/// # Errors
/// If the system refuses a handler.
pub fn termination() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    #[cfg(unix)]
    {
        use signal_hook::consts::SIGTERM;
        use signal_hook::flag::{register, register_conditional_shutdown};
        // The first handler acts if the flag of the second is set already: by an earlier SIGTERM, not by a SIGHUP.
        let asked = Arc::new(AtomicBool::new(false));
        for signal in obeyed() {
            if signal == SIGTERM {
                register_conditional_shutdown(SIGTERM, TERMINATED, Arc::clone(&asked))?;
                register(SIGTERM, Arc::clone(&asked))?;
            }
            register(signal, Arc::clone(&flag))?;
        }
    }
    Ok(flag)
}

/// Returns a flag as [`termination`] does, and calls `act` after it is set, on a thread of its own.
///
/// # Errors
/// If the system refuses a handler or a thread.
pub fn on_termination(act: impl Fn() + Send + 'static) -> anyhow::Result<Arc<AtomicBool>> {
    // A handler ends the ignoring of a signal.
    #[cfg(unix)]
    let obeyed = obeyed();
    // Set by the handler itself, so before the program can see the end of its input.
    let flag = termination()?;
    #[cfg(unix)]
    {
        let mut signals = signal_hook::iterator::Signals::new(obeyed)?;
        let wait = move || signals.forever().for_each(|_| act());
        let thread = std::thread::Builder::new().name("signals".to_owned()).spawn(wait);
        thread.context("cannot start the thread that waits for signals")?;
    }
    #[cfg(not(unix))]
    drop(act);
    Ok(flag)
}

/// Returns the signals that ask the program to end, without those that it was started to ignore.
#[cfg(unix)]
fn obeyed() -> Vec<i32> {
    use signal_hook::consts::{SIGHUP, SIGTERM};
    let ignored = ignored_signals();
    let obeyed = [SIGHUP, SIGTERM].into_iter();
    obeyed.filter(|signal| ignored >> (signal - 1) & 1 == 0).collect()
}

/// Returns the mask of the signals that this process ignores; 0 where the system does not list them in a file, or does
/// not let it be read.
#[cfg(unix)]
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status");
    status.ok().and_then(|status| ignored_in(&status)).unwrap_or(0)
}

/// Returns the mask of ignored signals in the text of `/proc/PID/status`.
#[cfg(unix)]
fn ignored_in(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

/// Installs a handler, which gets a thread of its own.
fn set_handler(handler: impl FnMut() + Send + 'static) -> anyhow::Result<()> {
    ctrlc::set_handler(handler).context(
        "cannot start the thread that waits for Ctrl-C; allow more processes (`ulimit -u`, or the pids limit of the \
         container) or more memory",
    )
}

/// Cancels a run, or calls `leave`, which ends the program, if it is cancelled already: a step may take minutes.
fn cancel_or(cancel: &Cancel, leave: impl FnOnce()) {
    if cancel.check().is_break() {
        leave();
    } else {
        cancel.cancel();
    }
}

/// Cancels the run at the first Ctrl-C; without a run, or at the second, calls `leave`, which ends the program.
fn interrupted(running: Option<&Cancel>, leave: impl FnOnce()) {
    match running {
        Some(cancel) => cancel_or(cancel, leave),
        None => leave(),
    }
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
        set_handler(move || {
            interrupted(kontext_core::lock(&seen).as_ref(), || {
                leave();
                exit()
            });
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn the_first_ctrl_c_cancels_a_run_and_the_second_leaves_the_program() {
        let (left, cancel) = (Cell::new(0), Cancel::new());
        let press = |running: Option<&Cancel>| {
            interrupted(running, || left.set(left.get() + 1));
            left.get()
        };
        assert_eq!(press(Some(&cancel)), 0);
        assert!(cancel.check().is_break());
        assert_eq!(press(Some(&cancel)), 1);
        assert_eq!(press(None), 2);
        // A new run is cancelled first.
        assert_eq!(press(Some(&Cancel::new())), 2);
    }

    #[cfg(unix)]
    #[test]
    fn ignored_signals_are_read_from_the_status_of_a_process() {
        let status = "Name:\ta\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000440\n";
        assert_eq!(ignored_in(status), Some(0x1001));
        assert_eq!(ignored_in("Name:\ta\n"), None);
    }
}
