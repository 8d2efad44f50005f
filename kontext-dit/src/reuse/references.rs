//! Steps of a run that reuse keys and values of the references, or of unedited tokens.

use kontext_core::{Error, Kind, Result, Tensor};

use super::CachedRun;
use super::state::Keeper;
use crate::StepWork;
use crate::follow::Unfollowed;
use crate::kept::{KeptKv, KeptTokens};
use crate::pass::Pass;
use crate::references::{grid_tokens, step_work};
use crate::{Dit, EditedTokens, ReferenceReuse, Region, Run, edited_rows};

/// The first reference of a run, with which the target is compared for its edited tokens.
#[derive(Debug)]
#[allow(clippy::exhaustive_structs)] // Plain data, to be written out whole.
pub struct FirstReference {
    /// Latents as tokens [1 or N, L, in_channels], those of the run's context.
    pub latents: Tensor,
    /// Rows and columns of its tokens.
    pub grid: [i64; 2],
    /// Rows and columns of the target's tokens.
    pub target: [i64; 2],
}

/// State of the reuse in one run.
#[derive(Debug)]
pub(super) struct ReusedReferences {
    reuse: ReferenceReuse,
    work: Vec<StepWork>,
    sigmas: Vec<f32>,
    first: Option<FirstReference>,
    kept: Option<KeptKv>,
    /// Set while a step that was to keep keys and values has been skipped, and none has kept them since.
    overdue: bool,
    /// The edited tokens, once they are chosen: `None` within if there are none.
    region: Option<Option<Region>>,
    /// Velocity [N, L, C] of the step before.
    velocity: Option<Tensor>,
}

impl ReusedReferences {
    pub(super) fn new(
        reuse: &ReferenceReuse,
        run: &Run,
        sigmas: &[f32],
        first: Option<FirstReference>,
    ) -> Result<Self> {
        if reuse.edited.is_some() {
            let words = |[rows, columns]: [i64; 2]| format!("{rows} rows and {columns} columns of tokens");
            match &first {
                None => {
                    let expected = "the first reference's latents, which they are compared with";
                    return Err(Error::invalid("edited tokens", expected, "none"));
                }
                Some(first) if first.grid != first.target || grid_tokens(first.grid) != Some(run.target) => {
                    let expected = format!("a first reference of the target's {}", words(first.target));
                    return Err(Error::invalid("edited tokens", expected, words(first.grid)));
                }
                Some(_) => {}
            }
        }
        Ok(Self {
            work: reuse.schedule(sigmas, 0),
            reuse: reuse.clone(),
            sigmas: sigmas.to_vec(),
            first,
            kept: None,
            overdue: false,
            region: None,
            velocity: None,
        })
    }

    /// Computes a step that the step cache does not skip before its blocks.
    pub(super) fn step(
        &mut self,
        dit: &Dit,
        run: &Run,
        step: usize,
        target: &Tensor,
        cache: &mut CachedRun,
    ) -> Result<(Tensor, StepWork)> {
        let filled = self.kept.as_ref().is_some_and(KeptKv::is_filled);
        let (work, keeps) = step_work(&self.work, step, filled && !self.overdue);
        if let (StepWork::Edited(_) | StepWork::Estimated, Some(velocity)) = (work, &self.velocity) {
            let (velocity, work) = self.edited(dit, run, step, target, velocity, work)?;
            self.velocity = Some(velocity.shallow_clone());
            return Ok((velocity, work));
        }
        let batch = target.size()[0];
        let (velocity, work) = match (work, keeps) {
            (StepWork::WithoutReferences, _) => {
                let kept = self
                    .kept
                    .as_ref()
                    .ok_or_else(|| Error::bug("a reduced step before a full one"))?;
                kept.without_references(run, batch, |pass| followed(dit, run, step, target, pass, cache, work))?
            }
            (_, false) => followed(dit, run, step, target, &run.whole(), cache, StepWork::Computed)?,
            (_, true) => {
                let (velocity, work) = self.room(dit, run, batch)?.write(run, batch, |pass| {
                    let computed = followed(dit, run, step, target, pass, cache, StepWork::Computed)?;
                    // A first block that ends the step has kept its own only.
                    let all = computed.1 == StepWork::Computed;
                    Ok((computed, all))
                })?;
                self.overdue = work != StepWork::Computed;
                (velocity, work)
            }
        };
        if let (Some(edited), true) = (self.reuse.edited, keeps) {
            self.choose(run, step, target, &velocity, &edited)?;
            self.velocity = Some(velocity.shallow_clone());
        }
        Ok((velocity, work))
    }

    /// Notes that the step cache skips a step.
    pub(super) fn skipped(&mut self, step: usize) {
        self.overdue |= step_work(&self.work, step, true).1;
    }

    /// Computes a step of edited tokens, from the velocity of the step before.
    fn edited(
        &self,
        dit: &Dit,
        run: &Run,
        step: usize,
        target: &Tensor,
        velocity: &Tensor,
        work: StepWork,
    ) -> Result<(Tensor, StepWork)> {
        let Some(region) = self.region.as_ref().and_then(Option::as_ref) else {
            return Ok((velocity.shallow_clone(), StepWork::Edited(0)));
        };
        if work == StepWork::Estimated {
            let ratio = ReferenceReuse::ratio(&self.sigmas, step)?;
            let rows = region.gather(velocity)?.f_mul_scalar(ratio)?;
            return Ok((region.scatter(velocity, &rows)?, work));
        }
        let kept = self
            .kept
            .as_ref()
            .ok_or_else(|| Error::bug("edited tokens before a full step"))?;
        let rows = dit.forward_region(run, step, &region.gather(target)?, region, kept)?;
        let work = StepWork::Edited(u32::try_from(region.len()).unwrap_or(u32::MAX));
        Ok((region.scatter(velocity, &rows)?, work))
    }

    /// Chooses the edited tokens at the first full step that others follow.
    fn choose(&mut self, run: &Run, step: usize, x: &Tensor, velocity: &Tensor, edited: &EditedTokens) -> Result<()> {
        let (None, Some(first), Some(sigma)) = (&self.region, &self.first, self.sigmas.get(step)) else {
            return Ok(());
        };
        let wide = |x: &Tensor| x.f_to_kind(Kind::Float);
        let estimate = wide(x)?.f_sub(&wide(velocity)?.f_mul_scalar(f64::from(*sigma))?)?;
        let reference = first.latents.f_to_device(x.device())?;
        let rows = edited_rows(&estimate, &reference, first.grid, edited.threshold)?;
        let region = (!rows.is_empty()).then(|| Region::new(run, &rows)).transpose()?;
        self.region = Some(region);
        Ok(())
    }

    /// Returns the store, which is allocated first if need be.
    fn room(&mut self, dit: &Dit, run: &Run, batch: i64) -> Result<&mut KeptKv> {
        let kept = match self.kept.take() {
            Some(kept) => kept,
            None => KeptKv::new(dit, run, batch, self.reuse.kept_tokens())?,
        };
        Ok(self.kept.insert(kept))
    }
}

impl ReferenceReuse {
    /// Returns the tokens whose keys and values a run keeps.
    #[must_use]
    pub fn kept_tokens(&self) -> KeptTokens {
        match self.edited {
            Some(_) => KeptTokens::Image,
            None => KeptTokens::References,
        }
    }
}

/// Computes a pass, with the step cache as its observer.
fn followed(
    dit: &Dit,
    run: &Run,
    step: usize,
    target: &Tensor,
    pass: &Pass<'_>,
    cache: &mut CachedRun,
    work: StepWork,
) -> Result<(Tensor, StepWork)> {
    let index = step as i64;
    if cache.keeps_no_change() {
        let velocity = dit.forward_followed(run, index, target, pass, &mut Unfollowed)?;
        return Ok((velocity, work));
    }
    let mut keeper = Keeper::new(cache, step);
    let velocity = dit.forward_followed(run, index, target, pass, &mut keeper)?;
    let work = match keeper.work {
        StepWork::Computed => work,
        skipped => skipped,
    };
    Ok((velocity, work))
}
