//! Bounds of the numbers that all recipes have. Beyond them a value is a typing error, which would cost
//! memory or time before it fails.

use std::ops::RangeInclusive;

/// Steps of a run, and steps between its saves.
pub(crate) const STEPS: RangeInclusive<u64> = 1..=MOST_STEPS;
/// Steps of a warm-up, or of an interval that may be off.
pub(crate) const STEPS_OR_NONE: RangeInclusive<u64> = 0..=MOST_STEPS;
/// Items of a batch.
pub(crate) const BATCH: RangeInclusive<usize> = 1..=4096;
/// Batches that one optimizer step accumulates.
pub(crate) const ACCUMULATE: RangeInclusive<usize> = 1..=1024;
/// Decay rates of moving averages: 1 would never forget the first value.
pub(crate) const DECAY: RangeInclusive<f64> = 0.0..=0.999_999_9;
/// Maximum norm of a gradient.
pub(crate) const CLIP: RangeInclusive<f64> = 1e-6..=1e9;
/// A share of a whole.
pub(crate) const SHARE: RangeInclusive<f64> = 0.0..=1.0;
/// Weights of the terms of a loss.
pub(crate) const TERM: RangeInclusive<f64> = 0.0..=1000.0;
/// Seeds: TOML has no larger integer, and the recipe is saved with the state.
pub(crate) const SEED: RangeInclusive<u64> = 0..=i64::MAX as u64;

const MOST_STEPS: u64 = 1_000_000_000;
