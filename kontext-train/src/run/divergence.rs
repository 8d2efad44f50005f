//! Detection of a diverged loss.

use std::collections::VecDeque;

use kontext_core::{Error, Result, Tensor};

use super::Snapshot;

/// A loss above this multiple of the usual one, for [`PATIENCE`] steps in a row, has diverged.
const HIGH: f64 = 10.0;
const PATIENCE: usize = 20;
/// A run that ends after this number of high losses in a row has diverged.
const PATIENCE_AT_END: usize = 3;
/// A loss that one step raises to this multiple, on the same batch, has exploded.
const EXPLODED: f64 = 100.0;
/// Number of steps whose mean loss is the usual one.
const USUAL_OVER: usize = 200;
/// Least number of steps with a usual loss.
const LEAST: usize = 5;
/// Name of the recent losses in a state, `[N]` in f64.
const RECORD: &str = "recent_losses";

/// The recent losses.
#[derive(Debug)]
pub(crate) struct DivergenceGuard {
    recent: VecDeque<f64>,
    /// The high losses since the last usual one.
    high: Vec<f64>,
    /// The loss of the last step.
    last: Option<f64>,
    /// Remedy in the error.
    hint: &'static str,
}

/// The state of a run, by its last losses and the loss of the last step's batch after the step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Judgement {
    Sound,
    /// A loss is high: an outlier, or the start of a divergence.
    Suspicious {
        usual: f64,
    },
    Diverged {
        loss: f64,
        usual: f64,
    },
}

impl DivergenceGuard {
    /// Creates the guard of a new run. `hint` is the remedy that its error names.
    pub(crate) fn new(hint: &'static str) -> Self {
        Self {
            recent: VecDeque::new(),
            high: Vec::new(),
            last: None,
            hint,
        }
    }

    /// Takes the losses of the steps before out of the state. A run that had diverged may go on with a lower
    /// rate, and then has all its patience again.
    pub(crate) fn restore(&mut self, state: &Snapshot) -> Result<()> {
        let recent = match state.record(RECORD)? {
            Some(record) => Vec::<f64>::try_from(record.f_reshape([-1])?)?.into(),
            None => VecDeque::new(),
        };
        *self = Self {
            recent,
            ..Self::new(self.hint)
        };
        Ok(())
    }

    /// Returns the losses for a state.
    pub(crate) fn record(&self) -> Result<(String, Tensor)> {
        let losses: Vec<f64> = self.recent.iter().copied().collect();
        Ok((RECORD.to_owned(), Tensor::f_from_slice(&losses)?))
    }

    /// Records the loss of a step. Fails if the losses have diverged. Outliers count, clamped, once the loss is
    /// usual again: without them the usual loss of a noisy run would be too low.
    pub(crate) fn check(&mut self, step: u64, loss: f64) -> Result<()> {
        self.last = Some(loss);
        if let Some(usual) = self.usual() {
            if loss > HIGH * usual {
                self.high.push(HIGH * usual);
                if self.high.len() >= PATIENCE {
                    return Err(self.diverged(step, loss, usual));
                }
                return Ok(());
            }
            for clamped in std::mem::take(&mut self.high) {
                self.push(clamped);
            }
        }
        self.push(loss);
        Ok(())
    }

    fn push(&mut self, loss: f64) {
        if self.recent.len() == USUAL_OVER {
            self.recent.pop_front();
        }
        self.recent.push_back(loss);
    }

    /// Judges a run that would be saved, by the loss of the last step's batch with the values after the step.
    pub(crate) fn judge(&self, after: f64) -> Judgement {
        let Some(usual) = self.usual().or(self.last) else {
            return Judgement::Sound;
        };
        // A batch of unusual noise levels has a high loss before and after the step.
        let expected = self.last.unwrap_or(usual).max(usual);
        if self.high.len() >= PATIENCE_AT_END || after > EXPLODED * expected {
            return Judgement::Diverged { loss: after, usual };
        }
        if !self.high.is_empty() || after > HIGH * expected {
            return Judgement::Suspicious { usual };
        }
        Judgement::Sound
    }

    /// Returns the error for a diverged run.
    pub(crate) fn diverged(&self, step: u64, loss: f64, usual: f64) -> Error {
        let hint = self.hint.to_owned();
        Error::Diverged {
            step,
            loss,
            usual,
            hint,
        }
    }

    fn usual(&self) -> Option<f64> {
        let count = self.recent.len();
        (count >= LEAST).then(|| self.recent.iter().sum::<f64>() / count as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_stays_high_stops_the_run_and_an_outlier_does_not() {
        let mut guard = DivergenceGuard::new("lower the rate");
        for step in 0..300 {
            let loss = if step == 250 { 50.0 } else { 1.0 };
            guard.check(step, loss).unwrap();
        }
        let result = (300..340).find_map(|step| guard.check(step, 30.0).err().map(|e| (step, e)));
        let (step, error) = result.unwrap();
        assert_eq!(step, 300 + PATIENCE as u64 - 1);
        assert!(
            error.to_string().contains("30") && error.to_string().ends_with("above its usual 1.0450; lower the rate"),
            "{error}"
        );
    }

    #[test]
    fn outliers_count_clamped_once_the_loss_is_usual_again() {
        let mut guard = after(&[1.0; LEAST]);
        guard.check(5, 1e9).unwrap();
        assert_eq!(guard.usual(), Some(1.0));
        guard.check(6, 1.0).unwrap();
        assert_eq!(guard.usual(), Some((6.0 + HIGH) / 7.0));
        // A third of the losses is twenty times the others: in the end none of them is suspicious.
        let noisy: Vec<f64> = (0..300).map(|step| if step % 3 == 2 { 20.0 } else { 1.0 }).collect();
        assert_eq!(after(&noisy).judge(20.0), Judgement::Sound);
    }

    fn after(losses: &[f64]) -> DivergenceGuard {
        let mut guard = DivergenceGuard::new("lower the rate");
        for (step, loss) in (0..).zip(losses) {
            guard.check(step, *loss).unwrap();
        }
        guard
    }

    #[test]
    fn a_young_run_that_explodes_is_stopped() {
        let mut guard = after(&[1.0; LEAST]);
        let stopped = (0..40).find(|step| guard.check(*step, 1e6).is_err());
        assert_eq!(stopped, Some(PATIENCE as u64 - 1));
    }

    #[test]
    fn a_state_is_judged_by_its_last_losses_and_by_the_last_step() {
        let (suspicious, diverged) = (Judgement::Suspicious { usual: 1.0 }, |loss| Judgement::Diverged {
            loss,
            usual: 1.0,
        });
        assert_eq!(DivergenceGuard::new("").judge(1e9), Judgement::Sound);
        // Two steps have no usual loss, but the last one's is known before and after it.
        let young = after(&[0.5, 1.0]);
        assert_eq!(young.judge(9.0), Judgement::Sound);
        assert_eq!(young.judge(11.0), suspicious);
        assert_eq!(young.judge(101.0), diverged(101.0));
        let calm = after(&[1.0; LEAST]);
        assert_eq!((calm.judge(1.0), calm.judge(11.0)), (Judgement::Sound, suspicious));
        let high = |count: usize| after(&[&[1.0; LEAST][..], &vec![50.0; count]].concat());
        assert_eq!((high(1).judge(50.0), high(2).judge(50.0)), (suspicious, suspicious));
        assert_eq!(high(3).judge(50.0), diverged(50.0));
        let again = after(&[&[1.0; LEAST][..], &[50.0, 50.0, 2.0]].concat());
        assert_eq!(again.judge(2.0), Judgement::Sound);
    }

    #[test]
    fn a_run_that_goes_on_knows_its_losses_and_has_its_patience_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.safetensors");
        let before = after(&[&[1.0; LEAST][..], &[50.0; 19]].concat());
        let record = vec![before.record().unwrap()];
        Snapshot::save_learners(&path, &[], record, 24, &std::collections::BTreeMap::new()).unwrap();
        let mut guard = DivergenceGuard::new("");
        guard.restore(&Snapshot::open(&path).unwrap()).unwrap();
        assert_eq!((guard.usual(), guard.judge(1.0)), (Some(1.0), Judgement::Sound));
        let stopped = (0..40).find(|step| guard.check(*step, 50.0).is_err());
        assert_eq!(stopped, Some(PATIENCE as u64 - 1));
    }
}
