//! Training runs with progress on stderr, limited by time, Ctrl-C and the signals that end a program.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kontext::{Cancel, Device, Error};
use kontext_core::range::within;
use kontext_train::{
    AutoencoderEvent, AutoencoderRecipe, AutoencoderTrainer, Recipe, RecipeWarning, TrainEvent, Trainer,
};

use crate::interrupt::{cancel_on_ctrl_c, termination};
use crate::program::note;
use crate::progress::{Reporter, above};

/// The conditions that stop a run before its last step: Ctrl-C, a time limit, or a request to end (SIGTERM, SIGHUP).
#[derive(Debug)]
pub struct Limit {
    cancel: Cancel,
    ended: Arc<AtomicBool>,
    end: Option<Instant>,
}

impl Limit {
    /// Installs the handlers of the signals and starts the clock; `None` sets no time limit, which is of 10^6 minutes
    /// at most.
    ///
    /// # Errors
    /// If the program has a handler already, or for another time.
    pub fn new(minutes: Option<f64>) -> anyhow::Result<Self> {
        Ok(Self {
            end: minutes.map(end).transpose()?,
            cancel: cancel_on_ctrl_c()?,
            ended: termination()?,
        })
    }

    /// Returns `Break` once a run has to stop.
    pub fn check(&self) -> ControlFlow<()> {
        let ended = self.ended.load(Ordering::Relaxed);
        if ended || self.end.is_some_and(|end| Instant::now() > end) {
            ControlFlow::Break(())
        } else {
            self.cancel.check()
        }
    }
}

/// Returns the time after this many minutes, 10^6 at most.
fn end(minutes: f64) -> kontext::Result<Instant> {
    let minutes = within("--minutes", minutes, 0.0..=1e6)?;
    Ok(Instant::now() + Duration::from_secs_f64(60.0 * minutes))
}

/// Trains a transformer; returns `true` if the last step was reached.
///
/// # Errors
/// If the recipe, its model or its data cannot be used, or a step fails.
pub fn train(recipe: Recipe, limit: &Limit) -> anyhow::Result<bool> {
    let (out, total) = (recipe.out.clone(), recipe.steps);
    let mut encoding: Option<(&'static str, Reporter)> = None;
    let opened = Trainer::open(recipe, |event| {
        match event {
            TrainEvent::Warning(warning) => warn(warning),
            TrainEvent::Encoding(fill) => {
                if encoding.as_ref().is_none_or(|(what, _)| *what != fill.what) {
                    encoding = Some((fill.what, Reporter::new("encoding", fill.total as u64)));
                }
                if let Some((_, reporter)) = &mut encoding {
                    reporter.set(fill.done as u64, fill.what.to_owned());
                }
            }
            TrainEvent::Skipped(skipped) => above(format_args!("skipped {skipped}")),
            TrainEvent::Unseen(prompts) => above(prompts),
            TrainEvent::Ready {
                training,
                validation,
                values,
                resumed,
            } => {
                note(format_args!(
                    "{training} examples to train on, {validation} held out, {values} trained values"
                ));
                if resumed > 0 {
                    note(format_args!("going on after step {resumed} in {}", out.display()));
                }
            }
            _ => {}
        }
        limit.check()
    });
    let mut trainer = match opened {
        Err(Error::Cancelled { .. }) => {
            note("stopped before training began; what was encoded is kept, run the same command to go on");
            return Ok(false);
        }
        opened => opened?,
    };
    let mut reporter = Reporter::new("training", total);
    let result = trainer.run(|event| {
        match event {
            TrainEvent::Step(r) => {
                let speed = r.items_per_second;
                let critic = r.critic.map_or_else(String::new, |critic| {
                    format!(", student {:.3}, critic {:.3}", critic.student_loss, critic.critic_loss)
                        + &format!(", pairs right {:.2}", critic.accuracy)
                });
                reporter.set(
                    r.step,
                    format!("loss {:.4}, gradient {:.2}{critic}, {speed:.1} images/s", r.loss, r.norm),
                );
            }
            TrainEvent::Validated { step, loss } => above(format_args!("step {step}: held-out loss {loss:.4}")),
            TrainEvent::Compared(quality) => above(format_args!(
                "step {}: held-out results in one step: sharpness {:.3} of the truth's, {:.0} % nearest to their truths, \
                 two seeds {:.3} apart",
                quality.step,
                quality.sharpness,
                100.0 * quality.right,
                quality.distance
            )),
            TrainEvent::Failing { step, sign } => {
                above(format_args!("warning: step {step}: {sign}; {}", sign.remedy()));
            }
            TrainEvent::NotSaved { step, usual } => above(not_saved(step, usual)),
            TrainEvent::Sampled { path, .. } => above(format_args!("wrote {}", path.display())),
            _ => {}
        }
        limit.check()
    });
    Ok(!stopped(result, SAVED)?)
}

/// Trains an autoencoder on image files, on the CPU; returns the trainer, and `true` if the last step was reached.
///
/// # Errors
/// If the recipe or the images cannot be used, or a step fails.
pub fn train_autoencoder(
    label: &'static str,
    recipe: AutoencoderRecipe,
    images: &[PathBuf],
    folder: &Path,
    limit: &Limit,
) -> anyhow::Result<(AutoencoderTrainer, bool)> {
    recipe.warnings().iter().for_each(warn);
    let mut reporter = Reporter::new(label, recipe.steps);
    let mut trainer = AutoencoderTrainer::open(recipe, images, folder, Device::Cpu)?;
    let result = trainer.run(|event| {
        match event {
            AutoencoderEvent::Step(r) => reporter.set(
                r.step,
                format!(
                    "loss {:.4}, {:.1} dB, {:.1} crops/s",
                    r.loss, r.psnr, r.items_per_second
                ),
            ),
            AutoencoderEvent::NotSaved { step, usual } => above(not_saved(step, usual)),
            _ => {}
        }
        limit.check()
    });
    Ok((trainer, !stopped(result, SAVED)?))
}

/// Prints a warning of a recipe.
pub fn warn(warning: &RecipeWarning) {
    above(format_args!("warning: {warning}"));
}

fn not_saved(step: u64, usual: f64) -> String {
    format!("step {step}: not saved, the loss is far above its usual {usual:.4}; the state before is kept")
}

/// The words about a stopped run that saves its state.
const SAVED: &str = "the state is saved, run the same command to go on";

/// Returns `true` if a training was stopped by its limit, and says so on stderr, with what it `leaves`.
///
/// # Errors
/// Any other error of the training.
pub fn stopped(result: Result<(), Error>, leaves: &str) -> anyhow::Result<bool> {
    match result {
        Ok(()) => Ok(false),
        Err(Error::Cancelled { done, total }) => {
            note(format_args!("stopped after step {done} of {total}; {leaves}"));
            Ok(true)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_that_no_clock_counts_are_an_error_and_not_a_panic() {
        for minutes in [-1.0, f64::NAN, f64::INFINITY, 3e17, 1e308] {
            let error = end(minutes).unwrap_err().to_string();
            assert!(error.starts_with("invalid --minutes: ") && error.len() < 300, "{error}");
        }
        for minutes in [0.0, 0.5, 1e6] {
            end(minutes).unwrap();
        }
    }
}
