//! Signs that a training against a critic fails.

use std::fmt;

use super::quality::Quality;
use crate::run::curve::Point;

/// Mean paired accuracy from which the critic has won.
const WON: f64 = 0.98;
/// Mean paired accuracy of ten steps up to which the critic has learned nothing. The accuracy of a sound run swings
/// about a half as critic and student catch up with each other.
const BLIND: f64 = 0.65;
const TEN: usize = 10;
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
    /// The critic has learned nothing: in no ten steps since the first its mean paired accuracy was above 0.65.
    Blind {
        /// The highest mean paired accuracy of ten steps.
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
    /// Held-out results are sharper than the truth by more than 5 %: their edges ring.
    Ringing {
        /// The sharpness.
        sharpness: f64,
    },
    /// Fewer held-out results are nearest to their truths than at the first validation, by a tenth and two
    /// standard errors.
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
                    "the critic has learned nothing: in no ten steps did it rank more than {accuracy:.3} of the pairs right"
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

/// Judges the steps so far, if a window ends with the last one.
pub(crate) fn of_steps(points: &[Point], patience: u64) -> Vec<Found> {
    let window = match patience as usize {
        0 => ONLY_WARNED,
        patience => patience.div_ceil(2),
    };
    let windows: Vec<&[Point]> = points.chunks(window).collect();
    let whole = points.last().is_some_and(|last| last.step as usize == points.len());
    if !whole || !points.len().is_multiple_of(window) {
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
    let tens = points
        .chunks(TEN)
        .filter_map(|ten| mean(ten.iter().filter_map(self::accuracy)));
    if let Some(accuracy) = tens.max_by(f64::total_cmp)
        && accuracy <= BLIND
        && windows.len() <= 2
    {
        found.push(Found {
            sign: Sign::Blind { accuracy },
            ends: patience > 0 && windows.len() == 2,
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

/// Judges the held-out results of the last validation, after those before.
pub(crate) fn of_results(history: &[Quality], patience: u64) -> Vec<Found> {
    let Some((last, before)) = history.split_last() else {
        return Vec::new();
    };
    let first = history.first().unwrap_or(last).right;
    let signs = of_quality(last, first);
    let again = before
        .last()
        .map(|quality| of_quality(quality, first))
        .unwrap_or_default();
    let repeated = |sign: &Sign| {
        again
            .iter()
            .any(|other| std::mem::discriminant(other) == std::mem::discriminant(sign))
    };
    signs
        .into_iter()
        .map(|sign| Found {
            ends: patience > 0 && repeated(&sign),
            sign,
        })
        .collect()
}

fn of_quality(quality: &Quality, first: f64) -> Vec<Sign> {
    let Quality {
        sharpness,
        right,
        distance,
        items,
        ..
    } = *quality;
    let error = (first * (1.0 - first) / items.max(1) as f64).sqrt();
    let mut signs = Vec::new();
    // A ratio that is not a number is no sharpness at all.
    if sharpness.is_nan() || sharpness > RINGING {
        signs.push(Sign::Ringing { sharpness });
    }
    if right < first - FALL - 2.0 * error {
        signs.push(Sign::Forgotten { right, first });
    }
    if distance < SAME {
        signs.push(Sign::SameImages { distance });
    }
    signs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::CriticReport;

    fn points(count: u64, accuracy: impl Fn(u64) -> f64, norm: f64) -> Vec<Point> {
        let point = |step| Point {
            step,
            loss: 0.1,
            rate: 1e-4,
            norm,
            critic: Some(CriticReport {
                student_loss: 0.7,
                critic_loss: 0.7,
                accuracy: accuracy(step),
                critic_norm: 0.1,
            }),
            validation: None,
        };
        (1..=count).map(point).collect()
    }

    #[test]
    fn a_sign_is_a_warning_after_a_window_and_the_end_after_two() {
        let won = |count| of_steps(&points(count, |_| 1.0, 0.1), 20);
        let sign = Sign::Won { accuracy: 1.0 };
        assert_eq!(won(9), []);
        assert_eq!(won(10), [Found { sign, ends: false }]);
        assert_eq!(won(20), [Found { sign, ends: true }]);
        // A window in between starts the count again.
        let again = points(20, |step| if step <= 10 { 0.8 } else { 1.0 }, 0.1);
        assert_eq!(of_steps(&again, 20), [Found { sign, ends: false }]);
        assert_eq!(of_steps(&points(300, |_| 1.0, 0.1), 0), [Found { sign, ends: false }]);
    }

    #[test]
    fn a_critic_is_only_blind_from_the_first_step_on() {
        let blind = Sign::Blind { accuracy: 0.5 };
        assert_eq!(
            of_steps(&points(10, |_| 0.5, 0.1), 20),
            [Found {
                sign: blind,
                ends: false
            }]
        );
        assert_eq!(
            of_steps(&points(20, |_| 0.5, 0.1), 20),
            [Found {
                sign: blind,
                ends: true
            }]
        );
        assert_eq!(of_steps(&points(30, |_| 0.5, 0.1), 20), []);
        assert_eq!(
            of_steps(&points(20, |step| if step <= 10 { 0.7 } else { 0.5 }, 0.1), 20),
            []
        );
    }

    #[test]
    fn long_gradients_are_a_warning_and_very_long_ones_the_end() {
        let ends = |norm| of_steps(&points(20, |_| 0.7, norm), 20).first().map(|found| found.ends);
        assert_eq!((ends(0.9), ends(1.5), ends(11.0)), (None, Some(false), Some(true)));
    }

    #[test]
    fn held_out_results_are_judged_by_sharpness_retrieval_and_distance() {
        let quality = |sharpness, right, distance| Quality {
            step: 1,
            sharpness,
            right,
            distance,
            items: 100,
        };
        let good = quality(1.0, 0.9, 0.2);
        assert_eq!(of_results(&[good, quality(1.04, 0.75, 0.1)], 10), []);
        let bad = quality(1.2, 0.7, 1e-4);
        let signs = of_results(&[good, bad], 10);
        assert_eq!((signs.len(), signs.iter().filter(|found| found.ends).count()), (3, 0));
        assert!(of_results(&[good, bad, bad], 10).iter().all(|found| found.ends));
        assert!(of_results(&[good, bad, bad], 0).iter().all(|found| !found.ends));
        assert!(
            signs
                .iter()
                .all(|found| found.sign.remedy().contains('.') || found.sign.remedy().contains("rate"))
        );
    }
}
