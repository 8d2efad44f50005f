//! The work of a plan's steps, and its floating-point operations.

use kontext_dit::{DitFlops, RunCounts, StepWork};
use kontext_sampler::CfgMode;

use super::{ModelFacts, Plan};

/// Floating-point operations of a run's transformer: two for each multiplication of its matrix products and attentions
/// ([`DitFlops`]), for all images and both runs of true classifier-free guidance.
///
/// Without a step cache, and with one that decides before the run, all but [`RunFlops::exact`] are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RunFlops {
    /// Those of all steps computed.
    pub exact: u64,
    /// The fewest that the step cache allows.
    pub least: u64,
    /// The most that the step cache allows.
    pub most: u64,
}

impl Plan {
    /// Adds the work of the steps, and the operations.
    pub(super) fn with_work(self, facts: &ModelFacts, cfg_mode: CfgMode) -> Self {
        let (steps, edit) = (self.schedule.steps(), !self.references.is_empty());
        let work = self.step_cache.schedule(steps, edit);
        let counts = self.counts(cfg_mode);
        let flops = DitFlops::of(&facts.config, &counts);
        let runs = self.runs(cfg_mode);
        let of = |work: &[StepWork]| flops.run(work, &self.step_cache).saturating_mul(runs);
        let all = vec![StepWork::Computed; steps];
        let exact = flops.run(&all, &kontext_dit::StepCache::Off).saturating_mul(runs);
        let operations = RunFlops {
            exact,
            least: of(&self.step_cache.fewest(steps, edit)),
            most: of(work.as_deref().unwrap_or(&all)),
        };
        Self {
            work,
            flops: operations,
            ..self
        }
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
