//! First-block cache: a decision after the first block of each step.

use kontext_core::{Result, Tensor};

use super::mode::always_computed;
use super::parameter::{MOST_STEPS, Parameter};
use super::residual::distance;

/// Decision by the change that the first block makes to the target's tokens: if it differs by at most
/// [`FirstBlock::threshold`] from that of the last computed step, the other blocks' change of that step is reused.
///
/// The difference is relative: the mean of the magnitudes, over all features of the target's tokens. Those of references
/// are left out, because they change little and would hide the target's. Each step with a decision waits for the device
/// once.
///
/// Source: huggingface/diffusers 0.38 `hooks/first_block_cache.py`, whose default the threshold is; ParaAttention has 0.08
/// for 1.5 times and 0.12 for 1.9 times of FLUX.1-dev's speed.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(clippy::exhaustive_structs)] // Plain data, to be written out whole.
pub struct FirstBlock {
    /// Upper bound of the relative difference, from 0 (all steps are computed) to 10. Default: 0.05.
    pub threshold: f64,
    /// Upper bound of consecutive skipped steps, from 0 to 1000. Default: 1000, no bound.
    pub most_skips: usize,
    /// Number of steps, from 1 to 1000, that are computed at the beginning. Default: 1.
    pub first: usize,
}

impl Default for FirstBlock {
    fn default() -> Self {
        Self {
            threshold: 0.05,
            most_skips: MOST_STEPS,
            first: 1,
        }
    }
}

impl FirstBlock {
    pub(super) fn parameters(&mut self) -> Vec<Parameter<'_>> {
        vec![
            Parameter::threshold(&mut self.threshold),
            Parameter::steps("first", &mut self.first, 1),
            Parameter::steps("most_skips", &mut self.most_skips, 0),
        ]
    }

    /// Returns `true` if a step may be skipped.
    pub(super) fn may_skip(&self, step: usize, steps: usize) -> bool {
        self.threshold > 0.0 && step >= self.first && !always_computed(step, steps)
    }
}

/// State of the decision.
#[derive(Debug)]
pub(super) struct FirstBlockRule {
    pub(super) config: FirstBlock,
    /// The first block's change at the last computed step.
    change: Option<Tensor>,
    skipped: usize,
}

impl FirstBlockRule {
    pub(super) fn new(config: FirstBlock) -> Self {
        Self {
            config,
            change: None,
            skipped: 0,
        }
    }

    /// Returns `true` if the step is skipped whose first block makes this change.
    pub(super) fn skips(&mut self, step: usize, steps: usize, change: Tensor) -> Result<bool> {
        let skip = match &self.change {
            Some(before) if self.config.may_skip(step, steps) && self.skipped < self.config.most_skips => {
                distance(&change, before)? <= self.config.threshold
            }
            _ => false,
        };
        if skip {
            self.skipped += 1;
        } else {
            self.skipped = 0;
            self.change = Some(change);
        }
        Ok(skip)
    }
}
