//! Detection of a diverged loss.

use std::collections::VecDeque;

use kontext_core::{Error, Result};

/// A loss above this multiple of the usual one, for [`PATIENCE`] steps in a row, has diverged.
const EXPLODED: f64 = 10.0;
const PATIENCE: usize = 20;
/// Number of steps whose mean loss is the usual one.
const USUAL_OVER: usize = 200;

/// The recent losses.
#[derive(Debug, Default)]
pub(crate) struct DivergenceGuard {
    recent: VecDeque<f64>,
    high: usize,
}

impl DivergenceGuard {
    /// Records the loss of a step. Fails if the losses have diverged; an outlier is ignored.
    pub(crate) fn check(&mut self, step: u64, loss: f64) -> Result<()> {
        if self.recent.len() == USUAL_OVER {
            let usual = self.recent.iter().sum::<f64>() / self.recent.len() as f64;
            self.high = if loss > EXPLODED * usual { self.high + 1 } else { 0 };
            if self.high >= PATIENCE {
                return Err(Error::Diverged { step, loss, usual });
            }
            if self.high > 0 {
                return Ok(());
            }
            self.recent.pop_front();
        }
        self.recent.push_back(loss);
        Ok(())
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
}
