//! State of a run with a step cache.

use kontext_core::{Error, Result, Tensor};

use super::first_block::FirstBlockRule;
use super::references::ReusedReferences;
use super::residual::Residual;
use super::teacache::TeaCacheRule;
use super::{FirstReference, StepCache};
use crate::StepWork;
use crate::follow::Follow;
use crate::{ReferenceReuse, Run};

/// State of the steps of one run with a step cache: what is kept from step to step, and what each did. Created by
/// [`Dit::step_cache`](crate::Dit::step_cache).
///
/// It belongs to one run, and one batch: true classifier-free guidance has one for each prompt's run.
#[derive(Debug)]
pub struct CachedRun {
    config: StepCache,
    steps: usize,
    rule: Rule,
    work: Vec<StepWork>,
    residual: Option<Residual>,
    pub(super) references: Option<ReusedReferences>,
}

/// Rule that decides which steps are skipped.
#[derive(Debug)]
enum Rule {
    Schedule(Vec<StepWork>),
    FirstBlock(FirstBlockRule),
    TeaCache(TeaCacheRule),
}

/// Decision before the blocks of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// The step is skipped.
    Skip,
    /// The blocks are computed, or the first one decides.
    Compute,
    /// The modulated input decides: [`CachedRun::skips_by_input`].
    Measure,
}

impl CachedRun {
    pub(super) fn new(config: StepCache, steps: usize, references: bool) -> Result<Self> {
        config.validate()?;
        let rule = match config {
            StepCache::FirstBlock(config) => Rule::FirstBlock(FirstBlockRule::new(config)),
            StepCache::TeaCache(config) => Rule::TeaCache(TeaCacheRule::new(config, references)),
            StepCache::Off | StepCache::MagCache(_) | StepCache::Taylor(_) => {
                Rule::Schedule(config.schedule(steps, references).unwrap_or_default())
            }
        };
        Ok(Self {
            config,
            steps,
            rule,
            work: Vec::with_capacity(steps),
            residual: None,
            references: None,
        })
    }

    /// Reuses keys and values of references, or of unedited tokens, in the steps that the step cache computes.
    ///
    /// `sigmas` are the run's noise levels, one more than its steps. A choice of edited tokens needs the first reference, and
    /// no step cache. Without references the run is unchanged.
    ///
    /// # Errors
    /// Those of [`ReferenceReuse::validate`]; [`Error::InvalidArgument`] for another number of noise levels, and for edited
    /// tokens with a step cache, without a reference, or with one of another grid than the target's.
    pub fn reuse_references(
        self,
        reuse: &ReferenceReuse,
        run: &Run,
        sigmas: &[f32],
        first: Option<FirstReference>,
    ) -> Result<Self> {
        reuse.validate()?;
        if sigmas.len() != self.steps + 1 {
            return Err(Error::invalid("sigmas", format!("{}", self.steps + 1), sigmas.len()));
        }
        if run.references() == 0 {
            return Ok(self);
        }
        if reuse.edited.is_some() && !self.config.is_off() {
            return Err(Error::invalid(
                "step cache next to edited tokens",
                "off: they have an estimated velocity instead",
                self.config,
            ));
        }
        let references = ReusedReferences::new(reuse, run, sigmas, first)?;
        // The steps that were to read kept keys may all be skipped.
        let planned = self.config.schedule_with(Some(reuse), sigmas, true);
        if planned.is_some_and(|work| !work.contains(&StepWork::WithoutReferences)) {
            return Ok(self);
        }
        Ok(Self {
            references: Some(references),
            ..self
        })
    }

    /// Returns the work of each step so far.
    #[must_use]
    pub fn work(&self) -> &[StepWork] {
        &self.work
    }

    /// Returns the work of each step so far, without a copy.
    #[must_use]
    pub fn into_work(self) -> Vec<StepWork> {
        self.work
    }

    /// Returns `true` if nothing is kept.
    pub(super) fn is_off(&self) -> bool {
        self.config.is_off() && self.references.is_none()
    }

    /// Returns `true` if no change is kept.
    pub(super) fn keeps_no_change(&self) -> bool {
        self.config.is_off()
    }

    /// Checks that `step` is the next one.
    pub(super) fn check(&self, step: usize) -> Result<()> {
        if step == self.work.len() {
            return Ok(());
        }
        let next = self.work.len();
        Err(Error::invalid(
            "step of a cached run",
            format!("{next}, the next one"),
            step,
        ))
    }

    /// Decides before the blocks of a step.
    pub(super) fn before(&self, step: usize) -> Before {
        match &self.rule {
            Rule::Schedule(work) if work.get(step) == Some(&StepWork::Skipped) => Before::Skip,
            Rule::Schedule(_) | Rule::FirstBlock(_) => Before::Compute,
            Rule::TeaCache(_) => Before::Measure,
        }
    }

    /// Decides by the modulated input of the first block.
    pub(super) fn skips_by_input(&mut self, step: usize, input: Tensor) -> Result<bool> {
        match &mut self.rule {
            Rule::TeaCache(rule) => rule.skips(step, self.steps, input),
            Rule::Schedule(_) | Rule::FirstBlock(_) => Ok(false),
        }
    }

    /// Returns the target's tokens after the last block of a skipped step, from those that the kept change is of.
    pub(super) fn skip(&self, step: usize, tokens: &Tensor) -> Result<Tensor> {
        let residual = self.residual.as_ref();
        residual.map_or_else(
            || Err(Error::bug("a skipped step before a computed one")),
            |residual| residual.add_to(tokens, step),
        )
    }

    /// Records a step.
    pub(super) fn record(&mut self, work: StepWork) {
        self.work.push(work);
    }
}

/// Observer of a step whose blocks are computed, or the first of them.
#[derive(Debug)]
pub(super) struct Keeper<'a> {
    cache: &'a mut CachedRun,
    step: usize,
    /// Tokens that the blocks' change is of: the input, or the first block's output.
    from: Option<Tensor>,
    pub(super) work: StepWork,
}

impl<'a> Keeper<'a> {
    pub(super) fn new(cache: &'a mut CachedRun, step: usize) -> Self {
        Self {
            cache,
            step,
            from: None,
            work: StepWork::Computed,
        }
    }
}

impl Follow for Keeper<'_> {
    fn entered(&mut self, tokens: impl FnOnce() -> Result<Tensor>) -> Result<()> {
        self.from = Some(tokens()?);
        Ok(())
    }

    fn after_first(&mut self, tokens: impl FnOnce() -> Result<Tensor>) -> Result<Option<Tensor>> {
        let (Rule::FirstBlock(rule), Some(entered)) = (&mut self.cache.rule, &self.from) else {
            return Ok(None);
        };
        let tokens = tokens()?;
        if rule.skips(self.step, self.cache.steps, tokens.f_sub(entered)?)? {
            self.work = StepWork::Skipped;
            return self.cache.skip(self.step, &tokens).map(Some);
        }
        self.from = Some(tokens);
        Ok(None)
    }

    fn after_last(&mut self, tokens: impl FnOnce() -> Result<Tensor>) -> Result<()> {
        let Some(from) = &self.from else {
            return Err(Error::bug("a step that was not entered"));
        };
        let change = tokens()?.f_sub(from)?;
        let extrapolate = matches!(self.cache.config, StepCache::Taylor(_));
        let residual = Residual::new(change, self.step, self.cache.residual.as_ref(), extrapolate)?;
        self.cache.residual = Some(residual);
        Ok(())
    }
}
