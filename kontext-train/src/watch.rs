//! Notices a loss that has left its usual range for good.

use std::collections::VecDeque;

use kontext_core::{Error, Result};

/// A loss this many times the usual one, for [`PATIENCE`] steps on end, has exploded.
const EXPLODED: f64 = 10.0;
const PATIENCE: usize = 20;
/// Steps whose losses make the usual one.
const USUAL_OVER: usize = 200;

/// The losses of late.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    recent: VecDeque<f64>,
    high: usize,
}

impl Watch {
    /// Takes the loss of a step, and stops a run whose losses have exploded. An outlier does not count.
    pub(crate) fn see(&mut self, step: u64, loss: f64) -> Result<()> {
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
        let mut watch = Watch::default();
        for step in 0..300 {
            let loss = if step == 250 { 50.0 } else { 1.0 };
            watch.see(step, loss).unwrap();
        }
        let result = (300..340).find_map(|step| watch.see(step, 30.0).err().map(|e| (step, e)));
        let (step, error) = result.unwrap();
        assert_eq!(step, 300 + PATIENCE as u64 - 1);
        assert!(
            error.to_string().contains("30") && error.to_string().contains("usual"),
            "{error}"
        );
    }
}
