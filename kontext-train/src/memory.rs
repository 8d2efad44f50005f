//! The memory that a training takes at least, compared with the free memory before any of it is taken.

use kontext_core::{Device, Error, Result, Stage};
use kontext_device::memory;

/// Copies of each trained value in f32 at the peak of an optimizer step: the values, two moments, the mask of
/// the weight decay, the gradient by tensor and flat, its square, the root of the second moment, and the
/// step.
const COPIES: u128 = 9;
/// Bytes of an f32.
const F32: u128 = 4;

/// The parts of the memory of a training.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    /// Number of trained values.
    pub(crate) values: u128,
    /// `true` if the moving average of the values is held, too.
    pub(crate) average: bool,
    /// Bytes of the activations of a batch.
    pub(crate) work: u128,
}

impl Need {
    /// Refuses a training that takes more than the free memory. `remedies` are the settings that lower the
    /// memory of the values and of the activations.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub(crate) fn check(self, device: Device, stage: Stage, remedies: [&str; 2]) -> Result<()> {
        // If the free memory is unknown, the allocator answers.
        memory::free(device).map_or(Ok(()), |free| self.check_in(free, stage, remedies))
    }

    /// As [`Need::check`], with this much free memory in bytes.
    pub(crate) fn check_in(self, free: u64, stage: Stage, [fewer_values, less_work]: [&str; 2]) -> Result<()> {
        let copies = COPIES + u128::from(self.average);
        let state = self.values.saturating_mul(copies * F32);
        let needed = state.saturating_add(self.work);
        if needed <= u128::from(free) {
            return Ok(());
        }
        let megabytes = |bytes: u128| u64::try_from(bytes.div_ceil(1_000_000)).unwrap_or(u64::MAX);
        Err(Error::Memory {
            stage,
            needed_mb: megabytes(needed),
            available_mb: free / 1_000_000,
            remedy: if state > self.work { fewer_values } else { less_work }.to_owned(),
        })
    }
}

/// Counts the elements of tensors with these shapes.
pub(crate) fn elements<'a>(shapes: impl IntoIterator<Item = &'a Vec<i64>>) -> u128 {
    let count = |shape: &Vec<i64>| {
        shape
            .iter()
            .map(|side| u128::from(side.unsigned_abs()))
            .product::<u128>()
    };
    shapes.into_iter().map(count).sum()
}

#[cfg(test)]
mod tests {
    use kontext_core::ModelPart;

    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_the_setting_that_takes_most() {
        let need = |values, work| Need {
            values,
            average: true,
            work,
        };
        let stage = Stage::Train {
            part: ModelPart::Transformer,
            step: 1,
        };
        let check = |need: Need, free| need.check_in(free, stage, ["lower the rank", "lower the batch"]);
        check(need(1_000, 500), 40_500).unwrap();
        for (need, words) in [
            (
                need(1_000_000, 500),
                "takes 41 MB of memory and 0 MB are free; lower the rank",
            ),
            (need(1_000, 1 << 40), "lower the batch"),
            (need(u128::MAX, u128::MAX), "takes 18446744073709551615 MB"),
        ] {
            let error = check(need, 40_499).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(
            elements([&vec![2, 3], &vec![], &vec![i64::MAX, 2]]),
            7 + 2 * i64::MAX as u128
        );
    }
}
