//! Steps that reuse the change of an earlier one.

use kontext_core::{During, Error, Result, Stage, Tensor};

use super::StepCache;
use super::state::{Before, CachedRun, Keeper};
use crate::StepWork;
use crate::flow::Flow;
use crate::follow::Follow;
use crate::model::{check_step, expand};
use crate::pass::Pass;
use crate::piece::Part;
use crate::state::State;
use crate::{Dit, Run};

impl Dit {
    /// Creates the state of a run's steps with a step cache, for [`Dit::forward_cached`]. With
    /// [`CachedRun::reuse_references`] the computed steps have fewer tokens.
    ///
    /// # Errors
    /// Those of [`StepCache::validate`].
    pub fn step_cache(&self, config: &StepCache, run: &Run) -> Result<CachedRun> {
        CachedRun::new(*config, run.steps, run.context.is_some())
    }

    /// Predicts the velocity as [`Dit::forward`] does, or from the change of an earlier step; [`CachedRun::work`] says
    /// which. Steps come in their order, each once. With [`StepCache::Off`] it is [`Dit::forward`], in any order.
    ///
    /// [`FirstBlock`](crate::FirstBlock) and [`TeaCache`](crate::TeaCache) wait for the device once a step.
    ///
    /// # Errors
    /// Those of [`Dit::forward`], [`Error::InvalidArgument`] for a step that is not the next one, another batch than that of
    /// the steps before, or a run that requires a gradient. After an error the state cannot be used.
    ///
    /// # Example
    /// ```
    /// use kontext_core::{Conditioning, Device, Kind, Tensor};
    /// use kontext_dit::{Dit, DitConfig, RunInput, StepWork};
    /// use kontext_nn::Weights;
    ///
    /// let config = DitConfig {
    ///     heads: 2, head_dim: 16, axes_dim: [4, 6, 6], mlp_width: 64, double_blocks: 1, single_blocks: 1,
    ///     context_dim: 8, pooled_dim: 4, ..DitConfig::kontext_dev()
    /// };
    /// let dit = Dit::new(&Weights::synthetic(7), &config, |_| ())?;
    /// let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
    /// let conditioning = Conditioning { prompt_embeds: ones(&[1, 5, 8]), pooled: ones(&[1, 4]) };
    /// let run = dit.prepare(&RunInput {
    ///     conditioning: &conditioning,
    ///     target_ids: &ones(&[6, 3]),
    ///     context: None,
    ///     times: &[1000.0, 750.0, 500.0, 250.0],
    ///     guidance: Some(2500.0),
    /// })?;
    /// let mut cache = dit.step_cache(&"taylor:interval=2,first=1".parse()?, &run)?;
    /// for step in 0..4 {
    ///     let velocity = dit.forward_cached(&run, step, &ones(&[1, 6, 64]), &mut cache)?;
    ///     assert_eq!(velocity.size(), [1, 6, 64]);
    /// }
    /// use StepWork::{Computed, Skipped};
    /// assert_eq!(cache.work(), [Computed, Skipped, Computed, Computed]);
    /// # Ok::<(), kontext_core::Error>(())
    /// ```
    pub fn forward_cached(&self, run: &Run, step: usize, target: &Tensor, cache: &mut CachedRun) -> Result<Tensor> {
        self.check_target(run, target)?;
        check_step(run, step)?;
        if cache.is_off() {
            let velocity = self.forward_pass(run, step as i64, target, &run.whole());
            let velocity = velocity.during(Stage::Forward)?;
            cache.record(StepWork::Computed);
            return Ok(velocity);
        }
        cache.check(step)?;
        if self.wants_gradient(run, target) {
            return Err(Error::invalid(
                "run with a step cache",
                "one without gradients: skipped steps have none",
                "weights or inputs that require one",
            ));
        }
        let (velocity, work) = self.reuse(run, step, target, cache).during(Stage::Forward)?;
        cache.record(work);
        Ok(velocity)
    }

    fn reuse(&self, run: &Run, step: usize, target: &Tensor, cache: &mut CachedRun) -> Result<(Tensor, StepWork)> {
        let index = step as i64;
        let skipped = match cache.before(step) {
            Before::Compute => None,
            Before::Skip => Some(self.img_in.forward(target)?),
            Before::Measure => {
                let tokens = self.img_in.forward(target)?;
                let input = self.modulated_input(run, index, &tokens)?;
                cache.skips_by_input(step, input)?.then_some(tokens)
            }
        };
        if let Some(tokens) = skipped {
            let tokens = cache.skip(step, &tokens)?;
            if let Some(references) = &mut cache.references {
                references.skipped(step);
            }
            return Ok((self.leave(run, index, tokens)?, StepWork::Skipped));
        }
        let Some(mut references) = cache.references.take() else {
            let mut keeper = Keeper::new(cache, step);
            let velocity = self.forward_followed(run, index, target, &run.whole(), &mut keeper)?;
            return Ok((velocity, keeper.work));
        };
        let reused = references.step(self, run, step, target, cache);
        cache.references = Some(references);
        reused
    }

    /// Computes a step of a pass that `follow` observes.
    pub(crate) fn forward_followed(
        &self,
        run: &Run,
        step: i64,
        target: &Tensor,
        pass: &Pass<'_>,
        follow: &mut impl Follow,
    ) -> Result<Tensor> {
        if let Some(kernels) = self.kernels_for(run, target) {
            return self.forward_fused(kernels, run, step, target, pass, follow);
        }
        let mut state = self.enter_checked(run, target, pass)?;
        for (index, piece) in self.pieces_at(run, step, pass).enumerate() {
            let piece = piece?;
            if index == 0 {
                follow.entered(|| piece.kept_target_of(&state))?;
            }
            if matches!(piece.part, Part::Last { .. }) {
                follow.after_last(|| piece.target_of(&state))?;
            }
            state = piece.forward(&state, &piece.modulation())?;
            if index == 0
                && let Some(tokens) = follow.after_first(|| piece.kept_target_of(&state))?
            {
                return self.leave(run, step, tokens);
            }
        }
        Ok(state.velocity()?.shallow_clone())
    }

    /// Computes the velocity from the target's tokens [N, L, D] after the last block.
    pub(crate) fn leave(&self, run: &Run, step: i64, tokens: Tensor) -> Result<Tensor> {
        let Some(last) = self.pieces_at(run, step, &run.whole()).last().transpose()? else {
            return Err(Error::bug("a step without pieces"));
        };
        if let Some(kernels) = self.kernels_for(run, &tokens) {
            let flow = Flow::new(kernels, tokens, 0, &last.part.first_norm(step, kernels)?)?;
            return flow.normed.project(&self.last_linear, 0..self.config.out_channels);
        }
        let velocity = last.forward(&State::Target(tokens), &last.modulation())?;
        Ok(velocity.velocity()?.shallow_clone())
    }

    /// Returns the modulated norm of the target's and the references' tokens [N, L + R, D] that the first block reads.
    fn modulated_input(&self, run: &Run, step: i64, tokens: &Tensor) -> Result<Tensor> {
        let image = match &run.context {
            Some(context) => Tensor::f_cat(&[tokens, &expand(context, tokens.size()[0])?], 1)?,
            None => tokens.shallow_clone(),
        };
        let Some(first) = self.pieces_at(run, step, &run.whole()).next().transpose()? else {
            return Err(Error::bug("a step without pieces"));
        };
        first.part.modulated_image(&image, step)
    }
}
