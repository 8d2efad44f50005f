//! The shell around a training loop: folder, resume, intervals, observer and cancellation.
//!
//! [`Shell`] resumes the run from its last snapshot, drives the loop, and saves at the intervals, at the end
//! and on cancellation.
//!
//! A save first writes the files that are derived from the values, then the snapshot. A run that ends between
//! the two resumes from the snapshot before, and derives the same files again; so after any end, the resumed
//! run has the files of an unbroken one.

use std::path::{Path, PathBuf};
use std::time::Instant;

use kontext_core::{Error, Result, create_folder};

use super::divergence::{DivergenceGuard, Judgement};
use super::segment::{Observer, Segment, report};
use super::training::Training;
use super::{Intervals, Snapshot};
use crate::optim::{Learner, RESUME};

/// Fact of a snapshot of a run that was cancelled before all that was due after its step had been done.
const DUE: &str = "due";

/// A run: its folder, its progress and its intervals.
#[derive(Debug)]
pub(crate) struct Shell {
    folder: PathBuf,
    /// The snapshot's path; `None` for a run that saves nothing.
    state: Option<PathBuf>,
    step: u64,
    /// The last step after which all that was due has been done.
    paused: u64,
    total: u64,
    every: Intervals,
    guard: DivergenceGuard,
}

impl Shell {
    /// Creates the run's folder. `state` is the name of the snapshot in it.
    pub(crate) fn open(folder: &Path, state: &str, total: u64, every: Intervals) -> Result<Self> {
        create_folder(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
            state: Some(folder.join(state)),
            step: 0,
            paused: 0,
            total,
            every,
            guard: DivergenceGuard::new(RESUME),
        })
    }

    /// A short run that saves nothing. `hint` is the remedy if it diverges.
    pub(crate) fn unsaved(total: u64, hint: &'static str) -> Self {
        let never = Intervals {
            save: 0,
            validate: 0,
            sample: 0,
        };
        Self {
            folder: PathBuf::new(),
            state: None,
            step: 0,
            paused: 0,
            total,
            every: never,
            guard: DivergenceGuard::new(hint),
        }
    }

    /// Opens the last snapshot, if there is one.
    pub(crate) fn snapshot(&self) -> Result<Option<Snapshot>> {
        let state = self.state.as_ref().filter(|state| state.is_file());
        state.map(Snapshot::open).transpose()
    }

    /// Checks that the run has the steps of its snapshot.
    ///
    /// # Errors
    /// A checkpoint error if the snapshot is of more steps.
    pub(crate) fn check_steps(&self, snapshot: &Snapshot) -> Result<()> {
        let done = snapshot.step;
        if done > self.total {
            let reason = format!("it has {done} steps and the recipe {}; take more steps", self.total);
            return Err(Error::config(snapshot.path(), reason));
        }
        Ok(())
    }

    /// Restores the learners and the step from the run's snapshot; also the usual loss, unless `new_loss`: another
    /// objective, or other data, has another one.
    ///
    /// # Errors
    /// A checkpoint error if the snapshot is of other learners, or of more steps than the run has.
    pub(crate) fn resume(&mut self, snapshot: &Snapshot, learners: Vec<&mut Learner>, new_loss: bool) -> Result<()> {
        self.check_steps(snapshot)?;
        for learner in learners {
            snapshot.restore_learner(learner)?;
        }
        if !new_loss {
            self.guard.restore(snapshot)?;
        }
        let done = snapshot.step;
        self.step = done;
        self.paused = if snapshot.facts.contains_key(DUE) { 0 } else { done };
        Ok(())
    }

    /// Returns the number of finished steps.
    pub(crate) fn step(&self) -> u64 {
        self.step
    }

    /// Trains to the last step. Validates, samples and saves at the intervals; saves at the end and on
    /// cancellation. A run that is complete already derives its files again.
    pub(crate) fn run<T: Training>(&mut self, training: &mut T, observe: Observer<'_, T::Event>) -> Result<()> {
        let result = self.segments(training, observe);
        if let Err(Error::Cancelled { .. }) = &result {
            self.check(training, true)?;
            self.save(training, observe)?;
        }
        result
    }

    fn segments<T: Training>(&mut self, training: &mut T, observe: Observer<'_, T::Event>) -> Result<()> {
        let (begin, first) = (Instant::now(), self.step);
        if self.is_due() {
            self.pause(training, observe)?;
        } else if self.step >= self.total {
            training.derive(self.step)?;
        }
        while self.step < self.total {
            let end = self.every.next(self.step, self.total);
            training.train(&mut Segment {
                step: &mut self.step,
                end,
                total: self.total,
                begin,
                first,
                guard: &mut self.guard,
                observe,
            })?;
            self.pause(training, observe)?;
        }
        Ok(())
    }

    /// Validates, samples and saves if due.
    fn pause<T: Training>(&mut self, training: &mut T, observe: Observer<'_, T::Event>) -> Result<()> {
        let (step, last) = (self.step, self.step >= self.total);
        let suspicious = self.check(training, last)?;
        if self.due(self.every.validate) {
            training.validate(step, &mut |event| self.report(observe, event))?;
        }
        if self.due(self.every.sample) {
            let path = self.folder.join(format!("samples-{step:06}.png"));
            if let Some(event) = training.sample(step, &path)? {
                self.report(observe, event)?;
            }
        }
        self.paused = step;
        match suspicious {
            _ if last => self.save(training, observe)?,
            None if self.due(self.every.save) => self.save(training, observe)?,
            Some(usual) if self.due(self.every.save) => {
                if let Some(event) = training.not_saved(step, usual) {
                    self.report(observe, event)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Returns `true` if something other than a save is due after the current step and has not been done.
    fn is_due(&self) -> bool {
        let last = self.step >= self.total;
        self.paused != self.step && (last || self.due(self.every.validate) || self.due(self.every.sample))
    }

    fn due(&self, interval: u64) -> bool {
        interval > 0 && (self.step.is_multiple_of(interval) || self.step >= self.total)
    }

    /// Checks that a run could go on from the current values: they, the optimizer's and their loss are finite,
    /// and the loss is not that of a diverged run. Returns the usual loss if it may be, or if it is and the run is
    /// not `ending`.
    fn check<T: Training>(&self, training: &mut T, ending: bool) -> Result<Option<f64>> {
        for learner in training.learners() {
            learner.check(self.step)?;
        }
        if self.step == 0 {
            return Ok(None);
        }
        let after = match training.last_loss(self.step) {
            Err(Error::NotFinite { .. }) => f64::NAN,
            loss => loss?,
        };
        for learner in training.learners() {
            learner.check_loss(self.step, after)?;
        }
        match self.guard.judge(after) {
            Judgement::Sound => Ok(None),
            Judgement::Diverged { loss, usual } if ending => Err(self.guard.diverged(self.step, loss, usual)),
            Judgement::Suspicious { usual } | Judgement::Diverged { usual, .. } => Ok(Some(usual)),
        }
    }

    fn save<T: Training>(&self, training: &mut T, observe: Observer<'_, T::Event>) -> Result<()> {
        let Some(state) = &self.state else { return Ok(()) };
        training.derive(self.step)?;
        let mut facts = training.facts();
        if self.is_due() {
            facts.insert(DUE.to_owned(), "true".to_owned());
        }
        let mut records = training.records()?;
        records.push(self.guard.record()?);
        Snapshot::save_learners(state, &training.learners(), records, self.step, &facts)?;
        if let Some(event) = training.saved(self.step, state) {
            // `Break` is ignored here: the next step's report asks again.
            let _ = observe(event);
        }
        Ok(())
    }

    /// Passes an event to the observer.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if it breaks off.
    pub(crate) fn report<E>(&self, observe: Observer<'_, E>, event: E) -> Result<()> {
        report(observe, event, self.step, self.total)
    }
}

#[cfg(test)]
mod tests;
