//! The work of a plan's steps, and its floating-point operations.

use kontext_core::{Error, Result};
use kontext_dit::{DitFlops, RunCounts, StepCache, StepKind, StepWork};
use kontext_sampler::CfgMode;

use super::{ModelFacts, Plan};

/// Floating-point operations of a run's transformer: two for each multiplication of its matrix products and attentions
/// ([`DitFlops`]), for all images and both runs of true classifier-free guidance.
///
/// [`RunFlops::least`] and [`RunFlops::most`] differ if a step cache decides while running, or if edited tokens are
/// found by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RunFlops {
    /// Those of all steps computed.
    pub exact: u64,
    /// The fewest that the step cache and the reuse of references allow.
    pub least: u64,
    /// The most that they allow.
    pub most: u64,
}

impl Plan {
    /// Refuses reuse of unedited tokens where the first reference is not in the target's place.
    pub(super) fn check_region(&self) -> Result<()> {
        let region = self.reference_reuse.as_ref().filter(|reuse| reuse.edited.is_some());
        let (Some(reuse), Some(first)) = (region, self.references.first()) else {
            return Ok(());
        };
        if first.grid == self.target {
            return Ok(());
        }
        let expected = format!(
            "a first reference with the target's {}, to find edited tokens",
            self.target
        );
        Err(Error::invalid(
            "reference_reuse",
            expected,
            format!("{reuse}, and {}", first.grid),
        ))
    }

    /// Returns the tokens of each step that is computed, if some reuse references.
    pub(crate) fn kinds(&self) -> Option<Vec<StepKind>> {
        let reuse = self.reference_reuse.as_ref()?;
        Some(reuse.kinds(self.schedule.sigmas()))
    }

    /// Returns the work of steps of which a step cache skips some.
    fn with_kinds(&self, cached: Vec<StepWork>) -> Vec<StepWork> {
        let Some(kinds) = self.kinds() else {
            return cached;
        };
        let mut overdue = false;
        let work = |(cached, kind): (StepWork, StepKind)| {
            if cached == StepWork::Skipped {
                overdue |= kind == StepKind::Full;
                return cached;
            }
            // A skipped full step is made up for.
            if overdue || kind == StepKind::Full {
                overdue = false;
                return StepWork::Computed;
            }
            kind.into()
        };
        cached.into_iter().zip(kinds).map(work).collect()
    }

    /// Returns the work of the steps if as many are skipped, and as few tokens computed, as may be.
    pub(super) fn fewest(&self) -> Vec<StepWork> {
        let cached = self
            .step_cache
            .fewest(self.schedule.steps(), !self.references.is_empty());
        self.with_kinds(cached)
    }

    /// Adds the work of the steps, and the operations.
    pub(super) fn with_work(self, facts: &ModelFacts, cfg_mode: CfgMode) -> Self {
        let (steps, edit) = (self.schedule.steps(), !self.references.is_empty());
        let work = self.step_cache.schedule(steps, edit).map(|work| self.with_kinds(work));
        let flops = DitFlops::of(&facts.config, &self.counts(cfg_mode));
        let runs = self.runs(cfg_mode);
        let of = |flops: &DitFlops, work: &[StepWork]| flops.run(work, &self.step_cache).saturating_mul(runs);
        let all = vec![StepWork::Computed; steps];
        let operations = RunFlops {
            exact: flops.run(&all, &StepCache::Off).saturating_mul(runs),
            // No edited token, or all of them.
            least: of(&flops.with_region(0), &self.fewest()),
            most: of(&flops, work.as_deref().unwrap_or(&self.with_kinds(all.clone()))),
        };
        Self {
            work,
            flops: operations,
            ..self
        }
    }

    /// Returns the operations of a run whose steps did this work: that of each prompt's run; `edited` are the edited tokens.
    pub(crate) fn flops_of(&self, facts: &ModelFacts, cfg_mode: CfgMode, work: &[Vec<StepWork>], edited: u64) -> u64 {
        let flops = DitFlops::of(&facts.config, &self.counts(cfg_mode)).with_region(edited);
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
