//! The choice of steps that are skipped.

use kontext_core::Result;
use serde::{Deserialize, Serialize};

use super::parameter::Parameter;
use super::{FirstBlock, MagCache, Taylor, TeaCache};
use crate::ReferenceReuse;
use crate::StepWork;
use crate::references::combined;

/// Rule by which steps of a run reuse the change that the blocks made at an earlier step.
///
/// The first step and the last one are always computed.
///
/// | mode | decides | gain on a GPU, as published |
/// |---|---|---|
/// | [`MagCache`] | before the run, from ratios measured on FLUX.1 Kontext | 2.0 times at its defaults |
/// | [`Taylor`] | before the run, at an interval; extrapolates | at the same interval as MagCache the same |
/// | [`FirstBlock`] | while running, from the change of the first block | 1.5 times at 0.08, 1.9 times at 0.12 (FLUX.1-dev) |
/// | [`TeaCache`] | while running, from the change of the first block's input | 2 times at its defaults |
///
/// A decision while running reads a number from the device: once a step the host waits for it. All items of a batch
/// share their decisions, so their results depend on each other.
///
/// Its text is the mode's name, and after a colon the parameters that differ from their defaults: `off`, `magcache`,
/// `magcache:threshold=0.1,most_skips=5`, `first-block`, `teacache`, `taylor`. It is read and written so by serde, too.
///
/// # Example
/// ```
/// use kontext_dit::{MagCache, StepCache, StepWork};
/// let cache: StepCache = "magcache:threshold=0.1".parse()?;
/// assert_eq!(cache, StepCache::MagCache(MagCache { threshold: 0.1, ..MagCache::default() }));
/// assert_eq!(cache.to_string(), "magcache:threshold=0.1");
/// let work = StepCache::MagCache(MagCache::default()).schedule(28, true).unwrap();
/// assert_eq!(work.iter().filter(|work| **work == StepWork::Computed).count(), 14);
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
#[non_exhaustive]
pub enum StepCache {
    /// All steps are computed.
    #[default]
    Off,
    /// A constant schedule from measured ratios.
    MagCache(MagCache),
    /// The first block of each step is computed, and the others if its change differs from that of the last computed step.
    FirstBlock(FirstBlock),
    /// Steps are computed once the changes of the first block's input add up.
    TeaCache(TeaCache),
    /// Steps are computed at an interval, and the blocks' change is extrapolated in between.
    Taylor(Taylor),
}

impl StepCache {
    /// Returns `true` if all steps are computed.
    #[must_use]
    pub fn is_off(&self) -> bool {
        *self == Self::Off
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](kontext_core::Error::InvalidArgument) with the parameter's name and range.
    pub fn validate(&self) -> Result<()> {
        let mut copy = *self;
        copy.parameters().iter().try_for_each(Parameter::check)?;
        match self {
            Self::TeaCache(cache) => cache.check(),
            _ => Ok(()),
        }
    }

    /// Returns the work of each step of a run, if it is known before the run: `None` for modes that decide while running.
    /// `references` is `true` for a run with reference images.
    #[must_use]
    pub fn schedule(&self, steps: usize, references: bool) -> Option<Vec<StepWork>> {
        match self {
            Self::Off => Some(vec![StepWork::Computed; steps]),
            Self::MagCache(cache) => Some(cache.schedule(steps, references)),
            Self::Taylor(cache) => Some(cache.schedule(steps)),
            Self::FirstBlock(_) | Self::TeaCache(_) => None,
        }
    }

    /// Returns the work of each step of a run with these noise levels that reuses references, too, if it is known before the
    /// run: `None` for modes that decide while running, and for edited tokens, which are chosen in the run.
    #[must_use]
    pub fn schedule_with(
        &self,
        reuse: Option<&ReferenceReuse>,
        sigmas: &[f32],
        references: bool,
    ) -> Option<Vec<StepWork>> {
        let work = self.schedule(sigmas.len().saturating_sub(1), references)?;
        match reuse.filter(|_| references) {
            None => Some(work),
            Some(reuse) if reuse.edited.is_some() => None,
            Some(reuse) => Some(combined(&work, &reuse.schedule(sigmas, 0))),
        }
    }

    /// Returns the work of steps with the fewest and the most operations that a run's mode and its reuse of
    /// references allow; `target` is the number of the target's tokens. For a mode that decides while running
    /// next to a reuse the fewest are a bound that no run need reach: as many steps as may be are skipped, of
    /// the full ones first.
    #[must_use]
    pub fn bounds(
        &self,
        reuse: Option<&ReferenceReuse>,
        sigmas: &[f32],
        references: bool,
        target: u32,
    ) -> [Vec<StepWork>; 2] {
        let steps = sigmas.len().saturating_sub(1);
        let most = self
            .schedule(steps, references)
            .unwrap_or_else(|| vec![StepWork::Computed; steps]);
        let Some(reuse) = reuse.filter(|_| references) else {
            return [self.fewest(steps, references), most];
        };
        let with = |work: &[StepWork], edited| combined(work, &reuse.schedule(sigmas, edited));
        let least = match self {
            Self::FirstBlock(_) | Self::TeaCache(_) => self.least_with(reuse.schedule(sigmas, 0)),
            Self::Off | Self::MagCache(_) | Self::Taylor(_) => with(&most, 0),
        };
        [least, with(&most, target)]
    }

    /// Skips as many of the steps as may be, of the full ones first.
    fn least_with(&self, mut work: Vec<StepWork>) -> Vec<StepWork> {
        let steps = work.len();
        let fewest = self.fewest(steps, true);
        let mut left = fewest.iter().filter(|work| **work == StepWork::Skipped).count();
        for full in [true, false] {
            for (step, work) in work.iter_mut().enumerate() {
                let first = *work == StepWork::Computed;
                if left > 0 && *work != StepWork::Skipped && first == full && self.may_skip(step, steps) {
                    *work = StepWork::Skipped;
                    left -= 1;
                }
            }
        }
        work
    }

    /// Returns `true` if a mode that decides while running may skip a step.
    fn may_skip(&self, step: usize, steps: usize) -> bool {
        match self {
            Self::FirstBlock(cache) => cache.may_skip(step, steps),
            Self::TeaCache(cache) => cache.may_skip(step, steps),
            Self::Off | Self::MagCache(_) | Self::Taylor(_) => false,
        }
    }

    /// Returns the schedule with the most skipped steps that the mode's limits allow: its only one, if it is known before
    /// the run.
    #[must_use]
    pub fn fewest(&self, steps: usize, references: bool) -> Vec<StepWork> {
        let allowed = |most_skips: usize| {
            let mut skipped = 0;
            let work = |step| {
                let skip = self.may_skip(step, steps) && skipped < most_skips;
                skipped = if skip { skipped + 1 } else { 0 };
                if skip { StepWork::Skipped } else { StepWork::Computed }
            };
            (0..steps).map(work).collect()
        };
        match self {
            Self::FirstBlock(cache) => allowed(cache.most_skips),
            Self::TeaCache(cache) => allowed(cache.most_skips),
            Self::Off | Self::MagCache(_) | Self::Taylor(_) => self.schedule(steps, references).unwrap_or_default(),
        }
    }

    /// Returns the rows of width D, for each sample, that are kept from step to step, or during one: in a run
    /// with these numbers of tokens.
    #[must_use]
    pub fn kept_rows(&self, target: u64, references: u64) -> u64 {
        let image = target.saturating_add(references);
        match self {
            Self::Off => 0,
            // The change, and the input of the step that is computed.
            Self::MagCache(_) => target.saturating_mul(2),
            // Also the slope.
            Self::Taylor(_) => target.saturating_mul(3),
            // Also the first block's output and its change.
            Self::FirstBlock(_) => target.saturating_mul(4),
            // Also the first block's input, normed, of target and references, at this step and the one before.
            Self::TeaCache(_) => target.saturating_add(image).saturating_mul(2),
        }
    }

    /// Returns the mode's name.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::MagCache(_) => "magcache",
            Self::FirstBlock(_) => "first-block",
            Self::TeaCache(_) => "teacache",
            Self::Taylor(_) => "taylor",
        }
    }

    /// Returns the parameters of the mode.
    pub(super) fn parameters(&mut self) -> Vec<Parameter<'_>> {
        match self {
            Self::Off => Vec::new(),
            Self::MagCache(cache) => cache.parameters(),
            Self::FirstBlock(cache) => cache.parameters(),
            Self::TeaCache(cache) => cache.parameters(),
            Self::Taylor(cache) => cache.parameters(),
        }
    }
}

/// Returns `true` for a step that every mode computes.
pub(super) fn always_computed(step: usize, steps: usize) -> bool {
    step == 0 || step + 1 >= steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DitConfig, DitFlops, RunCounts};

    /// All choices that the modes may make in a run of ten steps.
    #[test]
    fn no_run_has_fewer_operations_than_the_least() {
        let sigmas: Vec<f32> = (0..=10).rev().map(|step| step as f32 / 10.0).collect();
        let counts = RunCounts {
            text: 512,
            target: 4096,
            references: 4096,
            samples: 1,
            prompts: 1,
            steps: 10,
        };
        let flops = DitFlops::of(&DitConfig::kontext_dev(), &counts);
        for (cache, most_skips) in [
            ("teacache:start=0.2,end=0.9", 1000),
            ("teacache:start=0,end=1,most_skips=1", 1),
            ("first-block:most_skips=2", 2),
        ] {
            let cache: StepCache = cache.parse().unwrap();
            for reuse in [
                "references",
                "references:every=7,warmup=3",
                "references:warmup=14,refresh=20+25",
            ] {
                let reuse: ReferenceReuse = reuse.parse().unwrap();
                let least = flops.run(&cache.bounds(Some(&reuse), &sigmas, true, 4096)[0], &cache);
                let work = |choice: u32| -> Vec<StepWork> {
                    let skip = |step: usize| choice & (1 << step) != 0 && cache.may_skip(step, 10);
                    let of = |step| {
                        if skip(step) {
                            StepWork::Skipped
                        } else {
                            StepWork::Computed
                        }
                    };
                    (0..10).map(of).collect()
                };
                let allowed = |work: &Vec<StepWork>| {
                    let runs = work.split(|work| *work == StepWork::Computed);
                    runs.map(<[_]>::len).max() <= Some(most_skips)
                };
                let runs = (0..1 << 10).map(work).filter(allowed);
                let run = |work: Vec<StepWork>| flops.run(&combined(&work, &reuse.schedule(&sigmas, 0)), &cache);
                let fewest = runs.map(run).min().unwrap();
                assert!(least <= fewest, "{cache}, {reuse}: {least}, {fewest}");
                // A bound of use.
                assert!(
                    least as f64 > 0.7 * fewest as f64,
                    "{cache}, {reuse}: {least}, {fewest}"
                );
            }
        }
    }
}
