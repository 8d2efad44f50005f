//! The work of a plan's steps, and its floating-point operations.

use kontext_core::{Error, Result};
use kontext_dit::{DitFlops, RunCounts, StepWork};
use kontext_sampler::{CfgMode, Sampler};

use super::{ModelFacts, Plan};

/// Floating-point operations of a run's transformer: two for each multiplication of its matrix products and attentions
/// ([`DitFlops`]), for all images and both runs of true classifier-free guidance.
///
/// [`RunFlops::least`] and [`RunFlops::most`] are equal if all steps are known before the run: without a step
/// cache that decides while running, and without edited tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RunFlops {
    /// Those of all steps computed.
    pub exact: u64,
    /// A lower bound of those that the step cache and the reuse of references allow.
    pub least: u64,
    /// The most that the step cache and the reuse of references allow.
    pub most: u64,
}

impl Plan {
    /// Adds the work of the steps, and the operations.
    pub(super) fn with_work(self, facts: &ModelFacts, cfg_mode: CfgMode) -> Result<Self> {
        self.check_sampler()?;
        let edit = !self.references.is_empty();
        let evaluations = self.sampler.evaluations(self.schedule.steps());
        let (reuse, sigmas) = (self.reference_reuse.as_ref(), self.schedule.sigmas());
        let work = self.step_cache.schedule_with(reuse, sigmas, edit);
        let tokens = u32::try_from(self.target.tokens()).unwrap_or(u32::MAX);
        let [least, most] = self.step_cache.bounds(reuse, sigmas, edit, tokens);
        let counts = self.counts(cfg_mode);
        let flops = DitFlops::of(&facts.config, &counts);
        let runs = self.runs(cfg_mode);
        let reuses = self.reuses();
        let of = |work: &[StepWork]| flops.run(work, &self.step_cache).saturating_mul(runs);
        let all = vec![StepWork::Computed; evaluations];
        let exact = flops.run(&all, &kontext_dit::StepCache::Off).saturating_mul(runs);
        let operations = RunFlops {
            exact,
            least: if reuses { of(&least) } else { exact },
            most: if reuses { of(&most) } else { exact },
        };
        Ok(Self {
            work: if reuses { work } else { Some(all) },
            flops: operations,
            ..self
        })
    }

    /// Refuses reuse with samplers for which nothing of it is measured.
    fn check_sampler(&self) -> Result<()> {
        let (steps, sampler) = (self.schedule.steps(), self.sampler);
        let option = if self.step_cache.is_off() {
            "reference_reuse"
        } else {
            "step_cache"
        };
        if self.reuses() && sampler.evaluations(steps) != steps {
            let expected = "none with a sampler that evaluates the model several times a step; euler evaluates it once";
            return Err(Error::invalid(option, expected, sampler));
        }
        let edited = self.reference_reuse.as_ref().filter(|reuse| reuse.edited.is_some());
        match edited {
            Some(_) if sampler != Sampler::Euler => {
                let expected = "one that computes all tokens of the target, unless the sampler is euler";
                Err(Error::invalid("reference_reuse", expected, sampler))
            }
            _ => Ok(()),
        }
    }

    /// Returns `true` if steps reuse anything.
    fn reuses(&self) -> bool {
        !self.step_cache.is_off() || self.reference_reuse.is_some()
    }

    /// Returns `true` if steps may read keys and values that an earlier one kept.
    pub(crate) fn reads_kept_keys(&self) -> bool {
        let reads = |work: &Vec<StepWork>| {
            let keeps_none = [StepWork::Computed, StepWork::Skipped];
            work.iter().any(|work| !keeps_none.contains(work))
        };
        let reuse = self.reference_reuse.as_ref();
        reuse.is_some_and(|reuse| reads(&reuse.schedule(self.schedule.sigmas(), 0)))
            && self.work.as_ref().is_none_or(reads)
    }

    /// Returns the operations of a run whose steps did this work: that of each prompt's run.
    pub(crate) fn flops_of(&self, facts: &ModelFacts, cfg_mode: CfgMode, work: &[Vec<StepWork>]) -> u64 {
        let flops = DitFlops::of(&facts.config, &self.counts(cfg_mode));
        let runs = work.iter().map(|work| flops.run(work, &self.step_cache));
        runs.fold(0, u64::saturating_add)
    }

    /// Returns the runs of the transformer that are prepared: one for each prompt, unless both are in one batch.
    fn runs(&self, cfg_mode: CfgMode) -> u64 {
        match cfg_mode {
            CfgMode::Batched => 1,
            CfgMode::Sequential => self.runs_per_step as u64,
        }
    }

    /// Returns the sizes of one of them.
    fn counts(&self, cfg_mode: CfgMode) -> RunCounts {
        let batch = self.batch as u64;
        let both = self.runs_per_step as u64 / self.runs(cfg_mode);
        let samples = batch.saturating_mul(both);
        RunCounts {
            text: self.text_tokens.unsigned_abs(),
            target: self.target.tokens().unsigned_abs(),
            references: self.reference_tokens().unsigned_abs(),
            samples,
            prompts: if both == 1 { 1 } else { samples },
            steps: self.schedule.steps() as u64,
        }
    }
}
