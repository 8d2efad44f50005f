//! Signs that a training against a critic fails.

use std::fmt;

use super::quality::Quality;
use crate::objective::Real;
use crate::run::curve::Point;

/// Mean paired accuracy from which the critic has won.
const WON: f64 = 0.98;
/// Mean paired accuracy of a group of steps up to which the critic has learned nothing. The accuracy of a sound run
/// swings about a half as critic and student catch up with each other.
const BLIND: f64 = 0.6;
/// Pairs of a group, at least: the mean of a blind critic has a standard error of 0.03.
const PAIRS: usize = 240;
/// Mean norms of the student's gradient that are a warning, and that end the run.
const LONG: [f64; 2] = [1.0, 10.0];
/// Sharpness above which edges ring.
const RINGING: f64 = 1.05;
/// Fall of the share of results that are nearest to their truths, next to two standard errors.
const FALL: f64 = 0.1;
/// Relative distance of the results of two seeds below which they are the same image.
const SAME: f64 = 1e-3;
/// Half of the patience of a run that only warns.
const ONLY_WARNED: usize = 150;

/// A sign that a training against a critic fails. It prints as a sentence's main clause.
///
/// Steps are judged in windows of half of [`crate::AdversarialObjective::patience`], one after the other,
/// held-out results at each validation. A sign in one window or validation is a warning, in two in a row it
/// ends the run, by [`kontext_core::Error::Collapsed`]; under a patience of 0 it only warns.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Sign {
    /// The critic has learned nothing: in no group of steps since the warm-up was its mean paired accuracy above
    /// 0.6. A group has at least 240 pairs. Judged in the first two windows after the warm-up, each of a group
    /// at least.
    Blind {
        /// The highest mean paired accuracy of a group.
        accuracy: f64,
    },
    /// The critic ranks nearly every pair right, at least 98 %: the student does not get nearer to real images.
    /// One that starts far from them may still learn: a longer patience lets it.
    Won {
        /// Mean paired accuracy.
        accuracy: f64,
    },
    /// The student's gradient is long, with a mean norm above 1; it ends the run only above 10.
    Gradient {
        /// Mean norm.
        norm: f64,
    },
    /// Held-out results are sharper than the truth by more than 5 %: their edges ring. If those of the first
    /// validation did, too, it ends the run only from 5 % above them. Not judged under [`crate::Real::Teacher`].
    Ringing {
        /// The sharpness.
        sharpness: f64,
    },
    /// Fewer held-out results are nearest to their truths than at the first validation, by a tenth and two
    /// standard errors. Not judged under [`crate::Real::Teacher`].
    Forgotten {
        /// The share now.
        right: f64,
        /// The share at the first validation.
        first: f64,
    },
    /// Held-out results of two seeds are the same image, within a thousandth.
    SameImages {
        /// Relative L2 distance.
        distance: f64,
    },
}

/// A sign that was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Found {
    pub(crate) sign: Sign,
    /// `true` if it ends the run.
    pub(crate) ends: bool,
}

impl Sign {
    /// Returns the settings to change.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Blind { .. } => {
                "choose lower noise levels by objective.critic_density (see the probe), or a higher objective.critic_rate"
            }
            Self::Won { .. } => {
                "lower objective.critic_rate, or choose higher noise levels by objective.critic_density (see the probe)"
            }
            Self::Gradient { .. } => "lower rate.peak or objective.adversarial_weight",
            Self::Ringing { .. } => "lower objective.adversarial_weight, or raise objective.mse_weight",
            Self::Forgotten { .. } => "raise objective.mse_weight, or take fewer steps",
            Self::SameImages { .. } => "take a larger data.batch, or raise objective.r1",
        }
    }
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blind { accuracy } => {
                write!(
                    f,
                    "the critic has learned nothing: in no {PAIRS} pairs did it rank more than {accuracy:.3} right"
                )
            }
            Self::Won { accuracy } => write!(f, "the critic has won: it ranks {accuracy:.3} of the pairs right"),
            Self::Gradient { norm } => write!(f, "the student's gradient stays long: its mean norm is {norm:.2}"),
            Self::Ringing { sharpness } => {
                write!(
                    f,
                    "held-out results ring: their sharpness is {sharpness:.3} of the truth's"
                )
            }
            Self::Forgotten { right, first } => write!(
                f,
                "held-out results are nearest to their truths in {right:.2} of the cases, after {first:.2} at the first \
                 validation"
            ),
            Self::SameImages { distance } => {
                write!(f, "results of two seeds are the same image, {distance:.1e} apart")
            }
        }
    }
}

/// The settings by which the steps of a run are judged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Judging {
    pub(crate) patience: u64,
    /// Steps of the student's warm-up.
    pub(crate) warmup: u64,
    /// Pairs of a step.
    pub(crate) pairs: usize,
}

impl Judging {
    /// Returns the number of steps of a window.
    fn window(&self) -> usize {
        match self.patience as usize {
            0 => ONLY_WARNED,
            patience => patience.div_ceil(2),
        }
    }
}

/// Judges the steps so far, if a window ends with the last one.
pub(crate) fn of_steps(points: &[Point], judging: Judging) -> Vec<Found> {
    let whole = points.last().is_some_and(|last| last.step as usize == points.len());
    if !whole {
        return Vec::new();
    }
    let mut found = of_window(points, judging);
    found.extend(blind(points, judging));
    found
}

/// Returns the sign of a critic that ranked no group of pairs right since the warm-up, in which the student's images
/// are of low levels, and near to the real ones.
fn blind(points: &[Point], judging: Judging) -> Option<Found> {
    let after = points.get(judging.warmup as usize..)?;
    let group = PAIRS.div_ceil(judging.pairs.max(1));
    let window = judging.window().max(group);
    let windows = after.len() / window;
    if !after.len().is_multiple_of(window) || !(1..=2).contains(&windows) {
        return None;
    }
    let groups = after.chunks_exact(group);
    let means = groups.filter_map(|group| mean(group.iter().filter_map(accuracy)));
    let accuracy = means.max_by(f64::total_cmp)?;
    (accuracy <= BLIND).then_some(Found {
        sign: Sign::Blind { accuracy },
        ends: judging.patience > 0 && windows == 2,
    })
}

/// Judges the last window by itself, and the one before.
fn of_window(points: &[Point], judging: Judging) -> Vec<Found> {
    let (window, patience) = (judging.window(), judging.patience);
    let windows: Vec<&[Point]> = points.chunks(window).collect();
    if !points.len().is_multiple_of(window) {
        return Vec::new();
    }
    let Some((last, before)) = windows.split_last() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    if let Some(accuracy) = mean(last.iter().filter_map(accuracy))
        && accuracy >= WON
    {
        let again = before
            .last()
            .and_then(|window| mean(window.iter().filter_map(self::accuracy)));
        found.push(Found {
            sign: Sign::Won { accuracy },
            ends: patience > 0 && again.is_some_and(|accuracy| accuracy >= WON),
        });
    }
    if let Some(norm) = mean(last.iter().filter_map(norm))
        && norm > LONG[0]
    {
        let again = before
            .last()
            .and_then(|window| mean(window.iter().filter_map(self::norm)));
        found.push(Found {
            sign: Sign::Gradient { norm },
            ends: patience > 0 && norm > LONG[1] && again.is_some_and(|norm| norm > LONG[1]),
        });
    }
    found
}

fn accuracy(point: &Point) -> Option<f64> {
    point.critic.map(|critic| critic.accuracy)
}

/// Returns the student's gradient norm at a step that updated it.
fn norm(point: &Point) -> Option<f64> {
    (point.norm > 0.0).then_some(point.norm)
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

/// Judges the held-out results of the last validation, after those before. Only results of a student that learns
/// from the data's images are compared with them.
pub(crate) fn of_results(history: &[Quality], patience: u64, real: Real) -> Vec<Found> {
    let Some((last, before)) = history.split_last() else {
        return Vec::new();
    };
    let first = history.first().unwrap_or(last);
    let signs = of_quality(last, first.right, real);
    let again = before
        .last()
        .map(|quality| of_quality(quality, first.right, real))
        .unwrap_or_default();
    // A base model may be sharper than the data from the start.
    let ringing = RINGING
        * if first.sharpness > RINGING {
            first.sharpness
        } else {
            1.0
        };
    let trained = |sign: &Sign| !matches!(sign, Sign::Ringing { sharpness } if *sharpness <= ringing);
    let repeated = |sign: &Sign| {
        again
            .iter()
            .any(|other| std::mem::discriminant(other) == std::mem::discriminant(sign))
    };
    signs
        .into_iter()
        .map(|sign| Found {
            ends: patience > 0 && repeated(&sign) && trained(&sign),
            sign,
        })
        .collect()
}

fn of_quality(quality: &Quality, first: f64, real: Real) -> Vec<Sign> {
    let Quality {
        sharpness,
        right,
        distance,
        items,
        ..
    } = *quality;
    let error = (first * (1.0 - first) / items.max(1) as f64).sqrt();
    let mut signs = Vec::new();
    if real == Real::Data {
        if sharpness > RINGING {
            signs.push(Sign::Ringing { sharpness });
        }
        if right < first - FALL - 2.0 * error {
            signs.push(Sign::Forgotten { right, first });
        }
    }
    if distance < SAME {
        signs.push(Sign::SameImages { distance });
    }
    signs
}

#[cfg(test)]
mod tests;
