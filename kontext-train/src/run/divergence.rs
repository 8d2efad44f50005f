//! Detection of a diverged loss.

use std::collections::VecDeque;

use kontext_core::{Error, Result};

/// A loss above this multiple of the usual one, for [`PATIENCE`] steps in a row, has diverged.
const EXPLODED: f64 = 10.0;
const PATIENCE: usize = 20;
/// Number of steps whose mean loss is the usual one.
const USUAL_OVER: usize = 200;
/// Least number of steps with a usual loss.
const LEAST: usize = 20;

/// The recent losses.
#[derive(Debug, Default)]
pub(crate) struct DivergenceGuard {
    recent: VecDeque<f64>,
    high: usize,
}

impl DivergenceGuard {
    /// Creates a guard with the losses of the steps before.
    pub(crate) fn after(losses: impl Iterator<Item = (u64, f64)>) -> Self {
        let mut guard = Self::default();
        for (step, loss) in losses {
            // A run that had diverged may go on with a lower rate, and then has all its patience again.
            let _ = guard.check(step, loss);
        }
        guard.high = 0;
        guard
    }

    /// Records the loss of a step. Fails if the losses have diverged; an outlier is ignored.
    pub(crate) fn check(&mut self, step: u64, loss: f64) -> Result<()> {
        if self.recent.len() >= LEAST {
            let usual = self.usual();
            self.high = if loss > EXPLODED * usual { self.high + 1 } else { 0 };
            if self.high >= PATIENCE {
                return Err(Error::Diverged { step, loss, usual });
            }
            if self.high > 0 {
                return Ok(());
            }
        }
        if self.recent.len() == USUAL_OVER {
            self.recent.pop_front();
        }
        self.recent.push_back(loss);
        Ok(())
    }

    /// Returns the usual loss if the last one was far above it.
    pub(crate) fn exceeded(&self) -> Option<f64> {
        (self.high > 0).then(|| self.usual())
    }

    fn usual(&self) -> f64 {
        self.recent.iter().sum::<f64>() / self.recent.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_stays_high_stops_the_run_and_an_outlier_does_not() {
        let mut guard = DivergenceGuard::default();
        for step in 0..300 {
            let loss = if step == 250 { 50.0 } else { 1.0 };
            guard.check(step, loss).unwrap();
        }
        let result = (300..340).find_map(|step| guard.check(step, 30.0).err().map(|e| (step, e)));
        let (step, error) = result.unwrap();
        assert_eq!(step, 300 + PATIENCE as u64 - 1);
        assert!(
            error.to_string().contains("30") && error.to_string().contains("usual"),
            "{error}"
        );
    }

    #[test]
    fn a_young_run_that_explodes_is_stopped_and_says_so_before() {
        let steps = |losses: &[f64]| (0..).zip(losses.to_vec());
        let mut guard = DivergenceGuard::after(steps(&[1.0; LEAST]));
        assert_eq!(guard.exceeded(), None);
        guard.check(20, 1e6).unwrap();
        assert_eq!(guard.exceeded(), Some(1.0));
        guard.check(21, 2.0).unwrap();
        assert_eq!(guard.exceeded(), None);
        // The losses of a state are those of the run that goes on from it.
        let mut losses = vec![1.0; LEAST];
        losses.extend([1e6; PATIENCE - 1]);
        assert_eq!(DivergenceGuard::after(steps(&losses)).exceeded(), None);
        let mut guard = DivergenceGuard::after(steps(&losses));
        let stopped = (0..40).find(|step| guard.check(*step, 1e6).is_err());
        assert_eq!(stopped, Some(PATIENCE as u64 - 1));
    }
}
