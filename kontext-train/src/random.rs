//! Random numbers of a run: functions of (seed, stream, step), so that a resumed run draws what the
//! unbroken one would have drawn.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What numbers are drawn for. Each has a stream of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// The order of the data in an epoch.
    Order = 1,
    /// Timesteps, dropout and noise of a training step.
    Step = 2,
    /// Timesteps and noise of the validation.
    Validation = 3,
    /// Values to start from.
    Initial = 4,
}

/// The generator of one step (or epoch) of a stream.
pub(crate) fn generator(seed: u64, stream: Stream, step: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream((stream as u64) << 56 | step);
    rng
}

/// Uniform in (0, 1).
pub(crate) fn uniform(rng: &mut impl Rng) -> f64 {
    // 53 bits, moved off zero by half of the smallest step.
    (rng.random::<u64>() >> 11) as f64 / (1_u64 << 53) as f64 + 0.5 / (1_u64 << 53) as f64
}

/// True with this probability.
pub(crate) fn happens(rng: &mut impl Rng, probability: f64) -> bool {
    uniform(rng) < probability
}

/// Puts the items into random order (Fisher and Yates).
pub(crate) fn shuffle<T>(rng: &mut impl Rng, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        items.swap(last, rng.random_range(0..=last));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_draws_the_same_numbers_whatever_was_drawn_before() {
        let draw = |step| uniform(&mut generator(7, Stream::Step, step));
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
        assert_ne!(draw(3), uniform(&mut generator(7, Stream::Order, 3)));
    }
}
