//! The shell around a training loop: folder, resume, intervals, observer and cancellation.
//!
//! A loop implements [`Training`]: its steps, its learners, and the files that it writes next to the state.
//! [`Shell`] resumes the run from its last snapshot, drives the loop, and saves at the intervals, at the end
//! and on cancellation.
//!
//! A save first writes the files that are derived from the values, then the snapshot. A run that ends between
//! the two resumes from the snapshot before, and derives the same files again; so after any end, the resumed
//! run has the files of an unbroken one.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::time::Instant;

use kontext_core::{Error, Result, Tensor};

use super::{Intervals, Snapshot};
use crate::optim::Learner;

/// Fact of a snapshot after whose step something other than the save was due: the run was cancelled before it.
const DUE: &str = "due";

/// Receives the events of a run; `Break` cancels it.
pub(crate) type Observer<'a, E> = &'a mut dyn FnMut(E) -> ControlFlow<()>;

/// A training loop. The optional methods return the event to report, if any.
pub(crate) trait Training {
    /// The type of its events.
    type Event;

    /// Trains the steps of a segment, each ended by [`Segment::finish_step`] and [`Segment::report`].
    fn train(&mut self, segment: &mut Segment<'_, Self::Event>) -> Result<()>;

    /// Returns the learners that a snapshot holds.
    fn learners(&self) -> Vec<&Learner>;

    /// Measures the loss of the last of `step` steps again, with the values after it.
    fn last_loss(&mut self, step: u64) -> Result<f64>;

    /// Returns an event if the last losses are those of a diverging run, of which the intervals save nothing.
    fn diverging(&self, _step: u64) -> Option<Self::Event> {
        None
    }

    /// Returns further text for the snapshot.
    fn facts(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// Returns further tensors for the snapshot.
    fn records(&self) -> Result<Vec<(String, Tensor)>> {
        Ok(Vec::new())
    }

    /// Measures the held-out loss.
    fn validate(&mut self, _step: u64) -> Result<Option<Self::Event>> {
        Ok(None)
    }

    /// Writes samples to `path`.
    fn sample(&mut self, _step: u64, _path: &Path) -> Result<Option<Self::Event>> {
        Ok(None)
    }

    /// Writes the files of a save that are derived from the values, before the snapshot.
    fn derive(&mut self, _step: u64) -> Result<()> {
        Ok(())
    }

    /// Reports the snapshot at `state`, the last file of a save.
    fn saved(&self, _step: u64, _state: &Path) -> Option<Self::Event> {
        None
    }
}

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
}

impl Shell {
    /// Creates the run's folder. `state` is the name of the snapshot in it.
    pub(crate) fn open(folder: &Path, state: &str, total: u64, every: Intervals) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        Ok(Self {
            folder: folder.to_owned(),
            state: Some(folder.join(state)),
            step: 0,
            paused: 0,
            total,
            every,
        })
    }

    /// A short run that saves nothing.
    pub(crate) fn unsaved(total: u64) -> Self {
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
        }
    }

    /// Opens the last snapshot, if there is one.
    pub(crate) fn snapshot(&self) -> Result<Option<Snapshot>> {
        let state = self.state.as_ref().filter(|state| state.is_file());
        state.map(Snapshot::open).transpose()
    }

    /// Restores the learners and the step from the run's snapshot.
    ///
    /// # Errors
    /// A checkpoint error if the snapshot is of other learners, or of more steps than the run has.
    pub(crate) fn resume(&mut self, snapshot: &Snapshot, learners: Vec<&mut Learner>) -> Result<()> {
        let done = snapshot.step;
        if done > self.total {
            let reason = format!("it has {done} steps and the recipe {}; take more steps", self.total);
            return Err(Error::config(snapshot.path(), reason));
        }
        for learner in learners {
            snapshot.restore_learner(learner)?;
        }
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
            self.check(training)?;
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
                observe,
            })?;
            self.pause(training, observe)?;
        }
        Ok(())
    }

    /// Validates, samples and saves if due.
    fn pause<T: Training>(&mut self, training: &mut T, observe: Observer<'_, T::Event>) -> Result<()> {
        self.check(training)?;
        let step = self.step;
        if self.due(self.every.validate)
            && let Some(event) = training.validate(step)?
        {
            self.report(observe, event)?;
        }
        if self.due(self.every.sample) {
            let path = self.folder.join(format!("samples-{step:06}.png"));
            if let Some(event) = training.sample(step, &path)? {
                self.report(observe, event)?;
            }
        }
        self.paused = step;
        if step >= self.total {
            self.save(training, observe)?;
        } else if self.due(self.every.save) {
            match training.diverging(step) {
                Some(event) => self.report(observe, event)?,
                None => self.save(training, observe)?,
            }
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

    /// Checks that a run could go on from the current values: that they, the optimizer's and their loss are finite.
    fn check<T: Training>(&self, training: &mut T) -> Result<()> {
        for learner in training.learners() {
            learner.check(self.step)?;
        }
        if self.step == 0 {
            return Ok(());
        }
        let loss = match training.last_loss(self.step) {
            Err(Error::NotFinite { .. }) => f64::NAN,
            loss => loss?,
        };
        for learner in training.learners() {
            learner.check_loss(self.step, loss)?;
        }
        Ok(())
    }

    fn save<T: Training>(&self, training: &mut T, observe: Observer<'_, T::Event>) -> Result<()> {
        let Some(state) = &self.state else { return Ok(()) };
        training.derive(self.step)?;
        let mut facts = training.facts();
        if self.is_due() {
            facts.insert(DUE.to_owned(), "true".to_owned());
        }
        Snapshot::save_learners(state, &training.learners(), training.records()?, self.step, &facts)?;
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

/// The steps up to the next interval.
pub(crate) struct Segment<'a, E> {
    step: &'a mut u64,
    end: u64,
    total: u64,
    /// Start of this part of the run, and the steps finished before it.
    begin: Instant,
    first: u64,
    observe: Observer<'a, E>,
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
    pub(crate) fn finish_step(&mut self, items: u64) -> Finished {
        *self.step += 1;
        let items = (*self.step - self.first) * items;
        Finished {
            step: *self.step,
            total: self.total,
            items_per_second: items as f64 / self.begin.elapsed().as_secs_f64(),
        }
    }

    /// Passes the event of a finished step to the observer.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if it breaks off; the loop must return it.
    pub(crate) fn report(&mut self, event: E) -> Result<()> {
        report(self.observe, event, *self.step, self.total)
    }
}

fn report<E>(observe: Observer<'_, E>, event: E, done: u64, total: u64) -> Result<()> {
    if observe(event).is_break() {
        return Err(Error::Cancelled {
            done: done as usize,
            total: total as usize,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use kontext_core::{Device, ModelPart};

    use super::*;
    use crate::optim::{AdamWConfig, LearnerConfig, Params};

    /// A loop that adds 1 to its value at each step, and seems to diverge after some.
    struct Counting(Learner, &'static [u64]);

    impl Counting {
        fn new() -> Self {
            let params = Params::new(&[("w".to_owned(), Tensor::from_slice(&[0.0_f32]))], Device::Cpu).unwrap();
            let config = LearnerConfig {
                prefix: "",
                optimizer: AdamWConfig::default(),
                ema: None,
                clip: 1.0,
                part: ModelPart::Transformer,
                hint: "",
            };
            Self(Learner::new(params, config).unwrap(), &[])
        }

        fn value(&self) -> f64 {
            self.0.params.flat().double_value(&[0])
        }
    }

    impl Training for Counting {
        type Event = String;

        fn train(&mut self, segment: &mut Segment<'_, String>) -> Result<()> {
            for _ in segment.steps() {
                let _ = self.0.params.flat().shallow_clone().f_add_scalar_(1.0)?;
                let done = segment.finish_step(1);
                segment.report(format!("step {}", done.step))?;
            }
            Ok(())
        }

        fn learners(&self) -> Vec<&Learner> {
            vec![&self.0]
        }

        fn last_loss(&mut self, _step: u64) -> Result<f64> {
            Ok(self.0.params.flat().double_value(&[0]))
        }

        fn diverging(&self, step: u64) -> Option<String> {
            self.1.contains(&step).then(|| format!("not saved {step}"))
        }

        fn validate(&mut self, step: u64) -> Result<Option<String>> {
            Ok(Some(format!("validated {step}")))
        }

        fn saved(&self, step: u64, _state: &Path) -> Option<String> {
            Some(format!("saved {step}"))
        }
    }

    /// Opens the run in `folder`, trains until the event `stop`, and returns the loop and its events.
    fn run(folder: &Path, stop: &str) -> (Counting, Vec<String>, Result<()>) {
        train(folder, stop, Counting::new())
    }

    fn train(folder: &Path, stop: &str, mut training: Counting) -> (Counting, Vec<String>, Result<()>) {
        let every = Intervals {
            save: 2,
            validate: 3,
            sample: 0,
        };
        let mut shell = Shell::open(folder, "state.safetensors", 5, every).unwrap();
        let mut events = Vec::new();
        if let Some(snapshot) = shell.snapshot().unwrap() {
            shell.resume(&snapshot, vec![&mut training.0]).unwrap();
        }
        let result = shell.run(&mut training, &mut |event: String| {
            events.push(event);
            if events.last().is_some_and(|event| event == stop) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        (training, events, result)
    }

    #[test]
    fn a_run_reports_validates_and_saves_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let (training, events, result) = run(folder.path(), "");
        result.unwrap();
        let expected = "step 1, step 2, saved 2, step 3, validated 3, step 4, saved 4, step 5, validated 5, saved 5";
        assert_eq!(events.join(", "), expected);
        assert_eq!(training.value(), 5.0);
    }

    #[test]
    fn a_cancelled_run_saves_and_the_next_one_resumes_from_there() {
        let folder = tempfile::tempdir().unwrap();
        let (_, events, result) = run(folder.path(), "step 3");
        assert!(matches!(result, Err(Error::Cancelled { done: 3, total: 5 })));
        assert_eq!(events.last().unwrap(), "saved 3");
        // `Break` at a save is ignored.
        let (training, events, result) = run(folder.path(), "saved 4");
        result.unwrap();
        assert_eq!(
            (events[..2].join(", ").as_str(), training.value()),
            ("validated 3, step 4", 5.0)
        );
    }

    #[test]
    fn a_diverging_run_saves_at_its_end_and_on_cancellation_only() {
        let folder = tempfile::tempdir().unwrap();
        let diverging = || Counting(Counting::new().0, &[2, 4, 5]);
        let (_, events, _) = train(folder.path(), "step 4", diverging());
        assert_eq!(
            events.join(", "),
            "step 1, step 2, not saved 2, step 3, validated 3, step 4, saved 4"
        );
        std::fs::remove_file(folder.path().join("state.safetensors")).unwrap();
        let (_, events, result) = train(folder.path(), "", diverging());
        result.unwrap();
        assert_eq!(
            events[5..].join(", "),
            "step 4, not saved 4, step 5, validated 5, saved 5"
        );
    }

    #[test]
    fn what_was_due_when_a_run_was_cancelled_is_done_when_it_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        for (stop, expected) in [
            ("step 5", "validated 5, saved 5"),
            ("validated 5", "validated 5, saved 5"),
            ("saved 5", ""),
        ] {
            let _ = std::fs::remove_file(folder.path().join("state.safetensors"));
            let (_, _, result) = run(folder.path(), stop);
            assert_eq!(result.is_err(), stop != "saved 5", "{stop}");
            let (_, events, result) = run(folder.path(), "");
            result.unwrap();
            assert_eq!(events.join(", "), expected, "{stop}");
        }
    }
}
