//! Steps of a cached run that read kept keys and values.

use kontext_core::{Error, Result, Tensor};

use super::{CachedRun, StepWork};
use crate::kept::{Absent, KeptKv};
use crate::pass::Pass;
use crate::{Dit, Run, StepKind};

impl Dit {
    /// Predicts the velocity as [`Dit::forward_cached`] does. A step that is computed keeps the keys and values of some tokens
    /// ([`StepKind::Full`]), or reads those of the references ([`StepKind::References`]).
    ///
    /// If the step cache skips a full step, the next computed one is full in its place.
    ///
    /// # Errors
    /// Those of [`Dit::forward_cached`] and of [`Dit::forward_keeping`], and [`Error::InvalidArgument`] for another kind of
    /// step, or references that no full step has kept.
    pub fn forward_cached_keeping(
        &self,
        run: &Run,
        step: usize,
        target: &Tensor,
        cache: &mut CachedRun,
        kept: &mut KeptKv,
        kind: StepKind,
    ) -> Result<Tensor> {
        self.check_target(run, target)?;
        kept.check(run, target.size()[0])?;
        match kind {
            StepKind::Full => {}
            StepKind::References if cache.is_overdue() => {}
            StepKind::References => {
                kept.check_filled()?;
                let rope = run.rope.range(0, run.txt.size()[1] + run.target)?;
                let count = run.references();
                let pass = Pass::reduced(&rope, run.target, kept, Absent::Last { count });
                return self.forward_cached_pass(run, step, target, cache, &pass, StepWork::References);
            }
            StepKind::Region | StepKind::Estimated => {
                return Err(Error::invalid(
                    "step of a cached run",
                    "one of all tokens, or of text and target",
                    format!("{kind:?}"),
                ));
            }
        }
        let pass = Pass::keeping(run, kept);
        let velocity = self.forward_cached_pass(run, step, target, cache, &pass, StepWork::Computed);
        let computed = cache.work().last() == Some(&StepWork::Computed);
        match &velocity {
            Ok(_) if computed => kept.set_filled(true),
            Ok(_) => {}
            Err(_) => kept.set_filled(false),
        }
        cache.set_overdue(!computed);
        velocity
    }
}
