//! The velocity of a run's steps, some of which reuse what earlier ones kept.

use kontext_core::{Error, Result, Tensor};
use kontext_dit::{CachedRun, Dit, KeptKv, KeptTokens, Region, Run, StepKind, StepWork};
use kontext_nn::without_fp8;
use kontext_sampler::{Conformance, guidance};

use super::Pipeline;
use super::adapted::Adapted;
use super::region::Edited;
use crate::Plan;

/// A prompt's run of the transformer, and what its steps keep.
pub(super) struct PromptRun {
    run: Run,
    cache: CachedRun,
    kept: Option<KeptKv>,
    /// Edited rows of the target.
    region: Option<Region>,
}

impl PromptRun {
    pub(super) fn new(dit: &Dit, run: Run, plan: &Plan) -> Result<Self> {
        Ok(Self {
            cache: dit.step_cache(&plan.step_cache, &run)?,
            run,
            kept: None,
            region: None,
        })
    }

    /// Predicts the velocity of a step: of all tokens of the target, or of the edited ones.
    fn forward(
        &mut self,
        dit: &Dit,
        step: usize,
        x: &Tensor,
        kind: Option<StepKind>,
        kept: KeptTokens,
    ) -> Result<Tensor> {
        let Self {
            run,
            cache,
            kept: store,
            region,
        } = self;
        let Some(kind) = kind else {
            return dit.forward_cached(run, step, x, cache);
        };
        let store = match store {
            Some(store) => store,
            None => store.insert(KeptKv::new(dit, run, x.size()[0], kept)?),
        };
        match (kind, region) {
            (StepKind::Region, Some(region)) => {
                dit.forward_cached_region(run, step, &region.gather(x)?, region, cache, store)
            }
            _ => dit.forward_cached_keeping(run, step, x, cache, store, kind),
        }
    }
}

/// Predictor of the velocity, by one run of the transformer or by two.
pub(super) struct Predictor<'a> {
    pub(super) pipe: &'a Pipeline,
    pub(super) plan: &'a Plan,
    pub(super) dit: &'a Adapted<'a, Dit>,
    pub(super) positive: PromptRun,
    /// Run of the negative prompt, unless it is in the batch of the other.
    pub(super) negative: Option<PromptRun>,
    pub(super) true_cfg: f64,
    /// Tokens of each step, if some reuse references.
    pub(super) kinds: Option<Vec<StepKind>>,
    /// Edited tokens, if only they are computed.
    pub(super) edited: Option<Edited>,
}

impl Predictor<'_> {
    /// Predicts the velocity at a step, from latents in any dtype; returns it in the pipeline's dtype.
    pub(super) fn velocity(&mut self, x: &Tensor, step: usize) -> Result<Tensor> {
        let kind = self.kinds.as_ref().and_then(|kinds| kinds.get(step)).copied();
        let Some(kind) = kind.filter(|_| self.edited.is_some()) else {
            return self.guided(x, step, kind);
        };
        let sigmas = self.plan.schedule.sigmas();
        if kind == StepKind::Full {
            let velocity = self.guided(x, step, Some(kind))?;
            let sigma = sigmas.get(step).copied().unwrap_or_default();
            if let Some(edited) = &mut self.edited {
                edited.keep(x, &velocity, sigma)?;
            }
            return Ok(velocity);
        }
        let rows = self.edited.as_mut().map(Edited::rows).transpose()?.unwrap_or_default();
        if kind == StepKind::Estimated || rows.is_empty() {
            let runs = [Some(&mut self.positive), self.negative.as_mut()].into_iter().flatten();
            for run in runs {
                run.cache.estimated(step)?;
            }
            return self.moved(sigmas, step, None);
        }
        for run in [Some(&mut self.positive), self.negative.as_mut()].into_iter().flatten() {
            if run.region.is_none() {
                run.region = Some(Region::new(&run.run, &rows)?);
            }
        }
        let velocity = self.guided(x, step, Some(kind))?;
        self.moved(sigmas, step, Some(&velocity))
    }

    /// Returns the velocity of all tokens, from that of the edited ones; `None` to estimate it.
    fn moved(&mut self, sigmas: &[f32], step: usize, computed: Option<&Tensor>) -> Result<Tensor> {
        let Some(edited) = &mut self.edited else {
            return Err(Error::bug("edited tokens that no run asked for"));
        };
        edited.velocity(self.positive.region.as_ref(), sigmas, step, computed)
    }

    /// Predicts the velocity with guidance.
    fn guided(&mut self, x: &Tensor, step: usize, kind: Option<StepKind>) -> Result<Tensor> {
        let Self {
            pipe,
            plan,
            dit,
            positive,
            negative,
            true_cfg,
            edited,
            ..
        } = self;
        let kept = if edited.is_some() {
            KeptTokens::Image
        } else {
            KeptTokens::References
        };
        let forward = |run: &mut PromptRun, x: &Tensor| {
            let forward = || dit.with(|dit| run.forward(dit, step, x, kind, kept));
            // Runs that follow another program have its roundings, unless the builder sets these.
            if plan.fp8 || plan.conformance == Conformance::Native {
                pipe.attention.scope(forward)
            } else {
                without_fp8(|| pipe.attention.scope(forward))
            }
        };
        // The transformer computes in the kind of its conditioning.
        let x = x.f_to_kind(plan.compute.transformer)?;
        let v = if let Some(negative) = negative {
            guidance::combine(&forward(positive, &x)?, &forward(negative, &x)?, *true_cfg)?
        } else if plan.runs_per_step == 2 {
            guidance::combine_batched(&forward(positive, &Tensor::f_cat(&[&x, &x], 0)?)?, *true_cfg)?
        } else {
            forward(positive, &x)?
        };
        Ok(v.f_to_kind(pipe.precision.dtype)?)
    }

    /// Ends the run, and returns its work.
    pub(super) fn done(self) -> Done {
        let runs = [Some(self.positive), self.negative].into_iter().flatten();
        Done {
            work: runs.map(|run| run.cache.into_work()).collect(),
            edited: self.edited.map(|edited| edited.count()),
        }
    }
}

/// Work of a run.
#[derive(Debug)]
pub(super) struct Done {
    /// Of each prompt's steps.
    pub(super) work: Vec<Vec<StepWork>>,
    /// Edited tokens, if they were to be found.
    pub(super) edited: Option<u64>,
}
