//! The steps of a run between two intervals.

use std::ops::{ControlFlow, Range};
use std::time::Instant;

use kontext_core::{Error, Result};

use super::divergence::DivergenceGuard;

/// Receives the events of a run; `Break` cancels it.
pub(crate) type Observer<'a, E> = &'a mut dyn FnMut(E) -> ControlFlow<()>;

/// The steps up to the next interval.
pub(crate) struct Segment<'a, E> {
    pub(super) step: &'a mut u64,
    pub(super) end: u64,
    pub(super) total: u64,
    /// Start of this part of the run, and the steps finished before it.
    pub(super) begin: Instant,
    pub(super) first: u64,
    pub(super) guard: &'a mut DivergenceGuard,
    pub(super) observe: Observer<'a, E>,
}

/// The progress after a step.
pub(crate) struct Finished {
    /// Finished steps.
    pub(crate) step: u64,
    /// Steps of the run.
    pub(crate) total: u64,
    /// Throughput of this part of the run.
    pub(crate) items_per_second: f64,
}

impl<E> Segment<'_, E> {
    /// Returns the steps still to train, counted from 0.
    pub(crate) fn steps(&self) -> Range<u64> {
        *self.step..self.end
    }

    /// Counts a step of `items` items as finished.
    ///
    /// # Errors
    /// [`Error::Diverged`] if the losses have diverged; the loop must return it.
    pub(crate) fn finish_step(&mut self, items: u64, loss: f64) -> Result<Finished> {
        *self.step += 1;
        self.guard.check(*self.step, loss)?;
        let items = (*self.step - self.first) * items;
        Ok(Finished {
            step: *self.step,
            total: self.total,
            items_per_second: items as f64 / self.begin.elapsed().as_secs_f64(),
        })
    }

    /// Passes the event of a finished step to the observer.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if it breaks off; the loop must return it.
    pub(crate) fn report(&mut self, event: E) -> Result<()> {
        report(self.observe, event, *self.step, self.total)
    }
}

/// Passes an event to the observer.
///
/// # Errors
/// [`Error::Cancelled`] if it breaks off.
pub(crate) fn report<E>(observe: &mut dyn FnMut(E) -> ControlFlow<()>, event: E, done: u64, total: u64) -> Result<()> {
    if observe(event).is_break() {
        return Err(Error::Cancelled {
            done: done as usize,
            total: total as usize,
        });
    }
    Ok(())
}
