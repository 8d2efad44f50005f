//! Waiting of OpenMP's threads for each other, by sleeping instead of spinning.
//!
//! GNU's OpenMP reads from the environment how long a waiting thread spins, when it is loaded; no function sets it. By
//! default it is some milliseconds, in which another program could use the core. But the library spins for some
//! microseconds only while it has started more threads than there are processors ("very short spinning", gcc 14
//! `libgomp/env.c` and `libgomp/config/linux/wait.h`). So one team that is that large is started, and then sleeps.

use std::sync::{OnceLock, mpsc};
use std::thread::{self, Builder};

use super::library::Library;
use super::{STACK, can_start};

/// Makes OpenMP's threads sleep while they wait for each other, from now on and in the whole process.
///
/// It starts one more thread than there are processors, once, which sleep until the process ends. Returns `false`,
/// with nothing changed, if OpenMP's library is not GNU's (that of libtorch for Linux is), or if the system refuses
/// the threads. `OMP_WAIT_POLICY` and `GOMP_SPINCOUNT` in the environment decide still if they say less spinning.
pub fn wait_passively() -> bool {
    static STARTED: OnceLock<bool> = OnceLock::new();
    *STARTED.get_or_init(|| start().is_some())
}

fn start() -> Option<()> {
    let library = Library::loaded();
    let threads = library.gnu_processors()?.checked_add(1)?;
    let team = u32::try_from(threads).ok()?;
    // OpenMP ends the program if a thread is refused.
    can_start(threads, STACK).ok()?;
    let (started, wait) = mpsc::channel();
    let sleeper = move || {
        library.start_gnu_team(team);
        let _ = started.send(());
        loop {
            thread::park();
        }
    };
    Builder::new().name("openmp".to_owned()).spawn(sleeper).ok()?;
    wait.recv().ok()
}
