//! RegionE's estimate of a step's velocity from that of the step before.
//!
//! Source: Peyton-Chen/RegionE@974da98 `src/FluxKontext/inplace.py`, `gamma`.

/// Ratios of the velocity of FLUX.1 Kontext at each of 28 steps to that of the step before, apart from the
/// difference of their noise levels.
const GAMMA: [f64; 27] = [
    0.8352, 0.9986, 1.0090, 1.0097, 1.0161, 1.0152, 1.0160, 1.0173, 1.0177, 1.0199, 1.0213, 1.0203, 1.0257, 1.0236,
    1.0235, 1.0278, 1.0302, 1.0311, 1.0352, 1.0371, 1.0391, 1.0459, 1.0498, 1.0581, 1.0693, 1.0866, 1.1090,
];

/// Largest distance of a run's first noise level from 1, that of pure noise.
const NEAR_NOISE: f32 = 1e-3;

/// Returns the ratio of a step's velocity to that of the step before, or `None` where none is measured: for
/// the first step, and in runs of another number of steps or from another noise level than 1.
///
/// `sigmas` are the run's noise levels, one more than its steps.
pub(super) fn ratio(sigmas: &[f32], step: usize) -> Option<f64> {
    let from_noise = sigmas.first().is_some_and(|first| (1.0 - first).abs() <= NEAR_NOISE);
    if sigmas.len() != GAMMA.len() + 2 || step == 0 || !from_noise {
        return None;
    }
    let (before, now) = (*sigmas.get(step - 1)?, *sigmas.get(step)?);
    Some(GAMMA.get(step - 1)? * (1.0 + f64::from(now) - f64::from(before)))
}
