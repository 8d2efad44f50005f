//! Random numbers of a run, as functions of (seed, stream, step): a resumed run draws the numbers of an
//! unbroken one.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Independent random streams, by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Order of the data in an epoch.
    Order = 1,
    /// Timesteps, dropout and noise of a training step.
    Step = 2,
    /// Timesteps and noise of the validation.
    Validation = 3,
    /// Initial values.
    Initial = 4,
    /// Noise levels and noise of the critic's images.
    Critic = 5,
    /// Initial values of the critic.
    Heads = 6,
    /// Noise of the teacher's images.
    Teacher = 7,
    /// Batches and noise of a probe.
    Probe = 8,
}

/// Returns the generator of one step (or epoch) of a stream.
pub(crate) fn generator(seed: u64, stream: Stream, step: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream((stream as u64) << 56 | step);
    rng
}

/// Draws a uniform number in (0, 1).
pub(crate) fn uniform(rng: &mut impl Rng) -> f64 {
    // 53 bits, shifted off zero by half of the smallest step.
    (rng.random::<u64>() >> 11) as f64 / (1_u64 << 53) as f64 + 0.5 / (1_u64 << 53) as f64
}

/// Returns `true` with this probability.
pub(crate) fn happens(rng: &mut impl Rng, probability: f64) -> bool {
    uniform(rng) < probability
}

/// Shuffles the items (Fisher and Yates).
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
