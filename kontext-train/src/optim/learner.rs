//! One set of trained values with its optimizer and moving average.

use kontext_core::{Error, ModelPart, Result, Stage, Tensor, check};

use super::{AdamW, AdamWConfig, Ema, Params, gradient};

/// Hint of a run that saves its state.
pub(crate) const RESUME: &str = "the last saved state, if any, is kept; lower rate.peak, and go on from the state by \
    `accept_changes = [\"rate.peak\"]` in the recipe";

/// Constants of a [`Learner`].
#[derive(Debug, Clone)]
pub(crate) struct LearnerConfig {
    /// Prefix of its names in a snapshot: empty for the only learner of a run, distinct for each of several.
    pub(crate) prefix: &'static str,
    pub(crate) optimizer: AdamWConfig,
    /// EMA decay; `None` keeps no average.
    pub(crate) ema: Option<f64>,
    /// Maximum norm of the gradient; longer ones are clipped.
    pub(crate) clip: f64,
    /// The trained part, for errors.
    pub(crate) part: ModelPart,
    /// Remedy in the error for a loss or gradient that is not finite.
    pub(crate) hint: &'static str,
}

/// Trained values with everything that a step updates. A run has one learner per optimizer.
#[derive(Debug)]
pub(crate) struct Learner {
    pub(crate) params: Params,
    pub(crate) optimizer: AdamW,
    pub(crate) ema: Option<Ema>,
    config: LearnerConfig,
}

impl Learner {
    pub(crate) fn new(params: Params, config: LearnerConfig) -> Result<Self> {
        let optimizer = AdamW::new(&params, config.optimizer)?;
        let ema = config.ema.map(|decay| Ema::new(&params, decay)).transpose()?;
        Ok(Self {
            params,
            optimizer,
            ema,
            config,
        })
    }

    pub(crate) fn prefix(&self) -> &'static str {
        self.config.prefix
    }

    /// Updates the values and their average by the accumulated gradient. Returns the gradient's norm before
    /// clipping.
    ///
    /// `step` counts from 0; `loss` is only checked.
    ///
    /// # Errors
    /// [`kontext_core::Error::NotFinite`] if the loss or the gradient is not finite; the values are then
    /// unchanged.
    pub(crate) fn update(&mut self, step: u64, loss: f64, lr: f64) -> Result<f64> {
        let gradient = gradient::collect(&self.params)?;
        let norm = gradient::norm(&gradient)?;
        gradient::check(loss, norm, self.stage(step + 1), self.config.hint)?;
        let gradient = gradient::clip(gradient, norm, self.config.clip)?;
        self.optimizer.step(&self.params, &gradient, lr)?;
        if let Some(ema) = &mut self.ema {
            ema.update(&self.params, step)?;
        }
        Ok(norm)
    }

    /// Checks that the values after `step` steps, the optimizer's and their moving average are finite.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if one of them is not.
    pub(crate) fn check(&self, step: u64) -> Result<()> {
        let (mean, square, _) = self.optimizer.state();
        let average = self.ema.as_ref().map(Ema::average);
        for values in [self.params.flat(), mean, square].into_iter().chain(average) {
            if !check::is_finite(values)? {
                return Err(self.not_finite(step));
            }
        }
        Ok(())
    }

    /// Checks that the loss of the values after `step` steps is finite.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if it is not.
    pub(crate) fn check_loss(&self, step: u64, loss: f64) -> Result<()> {
        loss.is_finite().then_some(()).ok_or_else(|| self.not_finite(step))
    }

    /// Returns the error for values after `step` steps that are not finite.
    pub(crate) fn not_finite(&self, step: u64) -> Error {
        Error::NotFinite {
            stage: self.stage(step),
            hint: self.config.hint.to_owned(),
        }
    }

    fn stage(&self, step: u64) -> Stage {
        Stage::Train {
            part: self.config.part,
            step,
        }
    }

    /// Returns the tensors by name: their moving average if there is one, else the current values.
    pub(crate) fn averaged(&self) -> Result<Vec<(String, Tensor)>> {
        match &self.ema {
            Some(ema) => self.params.named(ema.average()),
            None => self.params.values(),
        }
    }

    /// Runs `work` with the moving average in the tensors, if there is one, and restores the current values.
    pub(crate) fn with_average<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        match &self.ema {
            Some(ema) => self.params.with_values(ema.average(), work),
            None => work(),
        }
    }
}
