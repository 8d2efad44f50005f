//! Shows a training run, and stops it by Ctrl-C or after a time.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use kontext::{Cancel, Error};
use kontext_train::{Recipe, TrainEvent, Trainer};

use super::progress;

/// Lines on a stderr that is no terminal come this often.
const LINES: Duration = Duration::from_secs(30);

/// What stops a run before its last step: Ctrl-C, or the time that it was given.
pub struct Limit {
    cancel: Cancel,
    end: Option<Instant>,
}

impl Limit {
    /// Listens for Ctrl-C from now on.
    pub fn new(minutes: Option<f64>) -> anyhow::Result<Self> {
        let cancel = Cancel::new();
        let remote = cancel.clone();
        ctrlc::set_handler(move || remote.cancel())?;
        Ok(Self {
            cancel,
            end: minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(60.0 * minutes)),
        })
    }

    pub fn check(&self) -> ControlFlow<()> {
        if self.end.is_some_and(|end| Instant::now() > end) {
            ControlFlow::Break(())
        } else {
            self.cancel.check()
        }
    }
}

/// A bar that becomes a line now and then where stderr is no terminal.
pub struct Shown {
    bar: ProgressBar,
    last: Instant,
}

impl Shown {
    pub fn new(what: &'static str, total: u64) -> Self {
        Self {
            bar: progress::bar(what, total as usize),
            last: Instant::now(),
        }
    }

    pub fn set(&mut self, done: u64, message: String) {
        self.bar.set_position(done);
        if self.bar.is_hidden() && self.last.elapsed() > LINES {
            eprintln!("{done}: {message}");
            self.last = Instant::now();
        }
        self.bar.set_message(message);
    }

    pub fn say(&self, text: &str) {
        if self.bar.is_hidden() {
            eprintln!("{text}");
        } else {
            self.bar.println(text);
        }
    }
}

/// Opens and runs a training; returns it, and whether it came to its end.
pub fn train(recipe: Recipe, limit: &Limit) -> anyhow::Result<(Trainer, bool)> {
    let (out, total) = (recipe.out.clone(), recipe.steps);
    let mut filling: Option<(&'static str, Shown)> = None;
    let mut trainer = Trainer::open(recipe, |event| {
        match event {
            TrainEvent::Encoding(fill) => {
                if filling.as_ref().is_none_or(|(what, _)| *what != fill.what) {
                    filling = Some((fill.what, Shown::new("encoding", fill.total as u64)));
                }
                if let Some((_, shown)) = &mut filling {
                    shown.set(fill.done as u64, fill.what.to_owned());
                }
            }
            TrainEvent::Skipped(skipped) => eprintln!("skipped {skipped}"),
            TrainEvent::Ready {
                training,
                validation,
                values,
                resumed,
            } => {
                eprintln!("{training} examples to train on, {validation} held out, {values} trained values");
                if resumed > 0 {
                    eprintln!("going on after step {resumed} in {}", out.display());
                }
            }
            _ => {}
        }
        limit.check()
    })?;
    let mut shown = Shown::new("training", total);
    let result = trainer.run(|event| {
        match event {
            TrainEvent::Step(r) => {
                let speed = r.items_per_second;
                shown.set(
                    r.step,
                    format!("loss {:.4}, gradient {:.2}, {speed:.1} pictures/s", r.loss, r.norm),
                );
            }
            TrainEvent::Validated { step, loss } => shown.say(&format!("step {step}: held-out loss {loss:.4}")),
            TrainEvent::Sampled { path, .. } => shown.say(&format!("wrote {}", path.display())),
            _ => {}
        }
        limit.check()
    });
    Ok((trainer, !stopped(result)?))
}

/// Whether a part of a training was stopped before its end.
pub fn stopped(result: Result<(), Error>) -> anyhow::Result<bool> {
    match result {
        Ok(()) => Ok(false),
        Err(Error::Cancelled { done, total }) => {
            eprintln!("stopped after step {done} of {total}; the state is saved, run the same command to go on");
            Ok(true)
        }
        Err(error) => Err(error.into()),
    }
}
