//! The cores of this process, shared by its runs in turns.
//!
//! Runs that compute at the same time on more threads than there are cores wait for each other. So a run computes only
//! in its turn: between two turns it waits until enough cores are free. Turns are given in the order of start-time
//! fair queueing (Goyal, Vin and Chen, “Start-time Fair Queuing”, IEEE/ACM Transactions on Networking 5, 1997): over
//! some turns, runs that wait get the same share of the cores' time, however long their turns are. A run of many threads
//! waits for the longest of the turns before it, and cores that are free meanwhile stay free: otherwise runs of one
//! thread would keep it from ever having all of them.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use kontext_core::lock;

/// Cores, and the runs that wait for them.
///
/// # Example
/// ```
/// use kontext_device::turns::{Share, Turns};
/// let turns = Turns::new(2);
/// let run = Share::new(&turns);
/// let turn = run.turn(1);           // computing …
/// assert_eq!(turns.free(), 1);
/// drop(turn);                       // … a callback of unknown length …
/// assert_eq!(turns.free(), 2);
/// ```
#[derive(Debug)]
pub struct Turns {
    cores: usize,
    state: Mutex<State>,
    changed: Condvar,
}

/// The times are those of cores: a turn of two cores for a second is two seconds.
#[derive(Debug, Default)]
struct State {
    taken: usize,
    /// The start of the last turn, in the time that runs share.
    now: Duration,
    /// Those who wait: the start of the turn, and a number that no other has.
    waiting: BTreeSet<(Duration, u64)>,
    numbers: u64,
}

/// A run's share of the cores. Its turns are taken one after the other.
#[derive(Debug)]
pub struct Share<'a> {
    turns: &'a Turns,
    /// The end of its last turn, in the time that runs share.
    end: Cell<Duration>,
}

/// A run's turn, which ends when it is dropped.
#[derive(Debug)]
#[must_use = "the turn ends as soon as this is dropped"]
pub struct Turn<'a> {
    share: &'a Share<'a>,
    cores: usize,
    start: Duration,
    begin: Instant,
}

/// Returns the number of cores that this process may use: by its affinity and the quota of its control groups.
///
/// # Example
/// ```
/// assert!(kontext_device::turns::cores() >= 1);
/// ```
#[must_use]
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

impl Turns {
    /// Creates turns of a number of cores, at least 1.
    #[must_use]
    pub fn new(cores: usize) -> Self {
        Self {
            cores: cores.max(1),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Returns the turns of all cores of this process, which all its runs share.
    pub fn of_this_process() -> &'static Self {
        static TURNS: OnceLock<Turns> = OnceLock::new();
        TURNS.get_or_init(|| Self::new(cores()))
    }

    /// Returns the number of cores that are in no turn.
    #[must_use]
    pub fn free(&self) -> usize {
        self.cores.saturating_sub(lock(&self.state).taken)
    }

    /// Waits until it is this run's turn and this number of cores is free, takes them, and returns the turn's start.
    fn take(&self, cores: usize, end: Duration) -> Duration {
        let mut state = lock(&self.state);
        let start = end.max(state.now);
        let own = (start, state.numbers);
        state.numbers = state.numbers.wrapping_add(1);
        state.waiting.insert(own);
        while state.waiting.first() != Some(&own) || self.cores.saturating_sub(state.taken) < cores {
            state = self.wait(state);
        }
        state.waiting.remove(&own);
        state.taken = state.taken.saturating_add(cores);
        state.now = state.now.max(start);
        drop(state);
        // There may be a core for the next one, too.
        self.changed.notify_all();
        start
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, cores: usize) {
        let mut state = lock(&self.state);
        state.taken = state.taken.saturating_sub(cores);
        drop(state);
        self.changed.notify_all();
    }
}

impl<'a> Share<'a> {
    /// Creates the share of a run.
    #[must_use]
    pub fn new(turns: &'a Turns) -> Self {
        Self {
            turns,
            end: Cell::default(),
        }
    }

    /// Waits for the run's next turn, to compute with this number of threads; with more than there are cores it takes
    /// all of them. A thread that has a turn must not wait for another, as it might never come.
    pub fn turn(&self, threads: usize) -> Turn<'_> {
        let cores = threads.clamp(1, self.turns.cores);
        Turn {
            start: self.turns.take(cores, self.end.get()),
            begin: Instant::now(),
            share: self,
            cores,
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let cores = u32::try_from(self.cores).unwrap_or(u32::MAX);
        let used = self.begin.elapsed().saturating_mul(cores);
        self.share.end.set(self.start.saturating_add(used));
        self.share.turns.give_back(self.cores);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Waits until this number of runs waits.
    fn until_waiting(turns: &Turns, count: usize) {
        while lock(&turns.state).waiting.len() < count {
            thread::yield_now();
        }
    }

    #[test]
    fn turns_never_take_more_cores_than_there_are() {
        let turns = &Turns::new(3);
        let most = &Mutex::new(0);
        thread::scope(|scope| {
            for threads in [1, 2, 3, 1, 100, 2] {
                scope.spawn(move || {
                    let share = Share::new(turns);
                    for _ in 0..200 {
                        let _turn = share.turn(threads);
                        let taken = lock(&turns.state).taken;
                        let mut most = lock(most);
                        *most = taken.max(*most);
                    }
                });
            }
        });
        assert_eq!((*lock(most), turns.free()), (3, 3));
        assert_eq!(lock(&turns.state).waiting.len(), 0);
    }

    #[test]
    fn the_run_that_had_less_goes_first() {
        let turns = &Turns::new(1);
        let (sender, order) = mpsc::channel();
        let busy = Share::new(turns);
        let first = busy.turn(1);
        thread::scope(|scope| {
            // It had ten seconds, and waits first.
            let greedy = sender.clone();
            scope.spawn(move || {
                let share = Share::new(turns);
                share.end.set(Duration::from_secs(10));
                let _turn = share.turn(1);
                greedy.send("had much").unwrap();
            });
            until_waiting(turns, 1);
            scope.spawn(move || {
                let share = Share::new(turns);
                let _turn = share.turn(1);
                sender.send("had nothing").unwrap();
            });
            until_waiting(turns, 2);
            drop(first);
        });
        assert_eq!(order.iter().collect::<Vec<_>>(), ["had nothing", "had much"]);
    }

    #[test]
    fn a_run_that_needs_all_cores_is_not_overtaken_for_ever() {
        let turns = &Turns::new(2);
        let (sender, order) = mpsc::channel();
        let small = Share::new(turns);
        let turn = small.turn(1);
        thread::scope(|scope| {
            let large = sender.clone();
            scope.spawn(move || {
                let share = Share::new(turns);
                let _turn = share.turn(2);
                large.send("large").unwrap();
            });
            until_waiting(turns, 1);
            // A core is free, but it is the large run's turn.
            scope.spawn(move || {
                let share = Share::new(turns);
                let _turn = share.turn(1);
                sender.send("small").unwrap();
            });
            until_waiting(turns, 2);
            assert_eq!((turns.free(), order.try_recv().ok()), (1, None));
            drop(turn);
        });
        assert_eq!(order.iter().next(), Some("large"));
    }

    #[test]
    fn a_turn_of_two_cores_counts_twice() {
        let turns = Turns::new(2);
        let share = Share::new(&turns);
        let begin = Instant::now();
        let turn = share.turn(2);
        thread::sleep(Duration::from_millis(20));
        drop(turn);
        let most = begin.elapsed() * 2;
        assert!((Duration::from_millis(40)..=most).contains(&share.end.get()));
    }
}
