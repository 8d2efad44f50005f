//! Samplers by name; the rule of each is a file next to this one.

mod consistency;
mod dpmpp_2m;
mod euler;
mod heun;
mod rule;

use std::fmt;
use std::str::FromStr;

use kontext_core::{Error, Result};
use serde::{Deserialize, Serialize};

pub(crate) use rule::{Evaluation, Model, Rule, Span};

/// The rule of a step from one noise level to the next.
///
/// | sampler | evaluations of N steps | rule | in diffusers 0.38 |
/// |---|---|---|---|
/// | `Euler` | N | `x' = x + (s' - s) v` | `FlowMatchEulerDiscreteScheduler` |
/// | `Consistency` | N | `x0 = x - s v`, `x' = (1 - s') x0 + s' noise` | the same with `stochastic_sampling` |
/// | `Heun` | 2 N - 1 | Euler, and again with the mean of the velocities at both ends; the last step is Euler's | `FlowMatchHeunDiscreteScheduler` |
/// | `Dpmpp2m` | N | DPM-Solver++(2M): `x0` is extrapolated in the log of the signal-to-noise ratio; from noise the first two steps and the last are Euler's | `DPMSolverMultistepScheduler` with `flow_prediction` |
///
/// All follow the same noise levels, those of [`Schedule`](crate::Schedule), and end exactly at the last prediction
/// of the image. In [`Conformance::Diffusers`](crate::Conformance::Diffusers) they have the roundings of the named
/// schedulers; BFL's program has only Euler, and the others keep its latents' dtype.
///
/// Source of `Consistency`: Song et al., “Consistency Models”, 2303.01469, algorithm 1. Of `Dpmpp2m`: Lu et al.,
/// “DPM-Solver++”, 2211.01095, algorithm 2.
///
/// # Example
/// ```
/// use kontext_sampler::Sampler;
/// assert_eq!("dpmpp_2m".parse::<Sampler>()?, Sampler::Dpmpp2m);
/// assert_eq!(Sampler::Heun.evaluations(4), 7);
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
#[non_exhaustive]
pub enum Sampler {
    /// Euler's method: one evaluation a step, first order. `euler`.
    #[default]
    Euler,
    /// Predicts the image in each step and adds fresh noise to it, for models that were distilled to few steps.
    /// `consistency`; also read as `lcm`, its name in ComfyUI.
    Consistency,
    /// Heun's method: two evaluations in each step but the last, second order. `heun`.
    Heun,
    /// DPM-Solver++(2M): one evaluation a step, second order from the one before, for levels that are even in the log of
    /// the signal-to-noise ratio; a little lower for those of FLUX.1. `dpmpp_2m`, as in ComfyUI.
    Dpmpp2m,
}

impl Sampler {
    /// All samplers.
    pub const ALL: [Self; 4] = [Self::Euler, Self::Consistency, Self::Heun, Self::Dpmpp2m];

    /// Returns the name in requests, configurations and flags.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Euler => "euler",
            Self::Consistency => "consistency",
            Self::Heun => "heun",
            Self::Dpmpp2m => "dpmpp_2m",
        }
    }

    /// Returns the number of times that `steps` steps evaluate the velocity.
    #[must_use]
    pub fn evaluations(self, steps: usize) -> usize {
        match self {
            Self::Euler | Self::Consistency | Self::Dpmpp2m => steps,
            Self::Heun => (2 * steps).saturating_sub(1),
        }
    }

    /// Returns `true` if its steps add noise.
    #[must_use]
    pub fn adds_noise(self) -> bool {
        self == Self::Consistency
    }

    /// Returns the step rule, before the first step.
    pub(crate) fn rule(self) -> Box<dyn Rule> {
        match self {
            Self::Euler => Box::new(euler::Euler),
            Self::Consistency => Box::new(consistency::Consistency),
            Self::Heun => Box::new(heun::Heun),
            Self::Dpmpp2m => Box::new(dpmpp_2m::Dpmpp2m::default()),
        }
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<Sampler> for &'static str {
    fn from(sampler: Sampler) -> Self {
        sampler.name()
    }
}

impl FromStr for Sampler {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = if text == "lcm" { "consistency" } else { text };
        let named = Self::ALL.into_iter().find(|sampler| sampler.name() == text);
        named.ok_or_else(|| {
            let [others @ .., last] = Self::ALL.map(Self::name);
            Error::invalid("sampler", format!("{} or {last}", others.join(", ")), text)
        })
    }
}

impl TryFrom<String> for Sampler {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sampler_is_read_by_its_name_and_another_is_refused_with_all_names() {
        for sampler in Sampler::ALL {
            let json = serde_json::to_string(&sampler).unwrap();
            assert_eq!(json, format!("\"{sampler}\""));
            assert_eq!(serde_json::from_str::<Sampler>(&json).unwrap(), sampler);
            assert_eq!(sampler.evaluations(0), 0);
            assert_eq!(sampler.evaluations(1), 1);
        }
        assert_eq!("lcm".parse::<Sampler>().unwrap(), Sampler::Consistency);
        let words = "invalid sampler: expected euler, consistency, heun or dpmpp_2m, got ddim";
        assert_eq!("ddim".parse::<Sampler>().unwrap_err().to_string(), words);
        let error = serde_json::from_str::<Sampler>("\"ddim\"").unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
