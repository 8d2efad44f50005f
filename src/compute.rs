//! Kinds of arithmetic of a run, and their choice by the model and the machine.

use std::fmt;

use kontext_core::{Device, Error, Kind, Result};
use kontext_device::rates::{self, Rates};
use kontext_device::{cpu, device};
use kontext_dit::{Dit, DitConfig};
use kontext_nn::Weights;
use kontext_sampler::Conformance;

use crate::PipelineBuilder;

/// Parameters of a transformer from which a CPU's bf16 units are used unless a kind is set: FLUX.1 has 12
/// billion. A smaller model takes seconds in f32, and has the same bytes on every machine with it.
pub const LARGE_TRANSFORMER: u64 = 1_000_000_000;

/// Least measured gain of bf16 over f32 for which it is chosen.
pub const LEAST_GAIN: f64 = 1.3;

/// Kinds of arithmetic of a run, by part: `Float`, `BFloat16` or `Half`.
///
/// On a CUDA device all are the run's dtype. On a CPU [`PipelineBuilder::compute`] sets them; without it they
/// are f32, or bf16 where that was measured to be faster for a large model. CLIP always computes in f32
/// there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compute {
    /// Kind of the text encoders.
    pub text: Kind,
    /// Kind of the transformer.
    pub transformer: Kind,
    /// Kind of the autoencoder.
    pub autoencoder: Kind,
}

impl Compute {
    /// Returns one kind for all parts.
    pub(crate) fn all(kind: Kind) -> Self {
        Self {
            text: kind,
            transformer: kind,
            autoencoder: kind,
        }
    }
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::all(self.transformer) {
            return f.write_str(name(self.transformer));
        }
        let [text, transformer, autoencoder] = [self.text, self.transformer, self.autoencoder].map(name);
        write!(f, "text {text}, transformer {transformer}, autoencoder {autoencoder}")
    }
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bf16",
        Kind::Half => "f16",
        _ => "f32",
    }
}

/// The kinds of a pipeline's runs: those in this library's conventions, and those in another program's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ComputeChoice {
    native: Compute,
    conforming: Compute,
}

impl ComputeChoice {
    /// Returns one kind for all parts and runs.
    pub(crate) fn all(kind: Kind) -> Self {
        Self {
            native: Compute::all(kind),
            conforming: Compute::all(kind),
        }
    }

    /// Returns the kinds of a run.
    pub(crate) fn of(self, conformance: Conformance) -> Compute {
        let chosen = match conformance {
            Conformance::Native => self.native,
            Conformance::Diffusers | Conformance::Bfl => self.conforming,
        };
        Compute {
            autoencoder: conformance.vae_kind(chosen.autoencoder),
            ..chosen
        }
    }
}

impl PipelineBuilder {
    /// Returns the kinds of arithmetic for a transformer; measures the CPU if they depend on it.
    pub(crate) fn compute_choice(&self, config: &DitConfig) -> Result<ComputeChoice> {
        let device = self.device.unwrap_or_else(device::best);
        let dtype = self.dtype_on(device)?;
        match self.compute {
            Some(kind) if device == Device::Cpu && matches!(kind, Kind::Float | Kind::BFloat16) => {
                Ok(ComputeChoice::all(kind))
            }
            Some(kind) if device == Device::Cpu => Err(Error::invalid(
                "compute",
                "Float or BFloat16 on a CPU",
                format!("{kind:?}"),
            )),
            Some(kind) if kind != dtype => {
                let expected = format!("the dtype, {dtype:?}, on {device:?}");
                Err(Error::invalid("compute", expected, format!("{kind:?}")))
            }
            None if device == Device::Cpu => {
                let open = !matches!(self.dtype, Some(Kind::Float | Kind::Half));
                let native = if open && cpu::has_bf16_units() {
                    automatic(parameters(config)?, rates::rates)?
                } else {
                    Compute::all(Kind::Float)
                };
                Ok(ComputeChoice {
                    native,
                    ..ComputeChoice::all(Kind::Float)
                })
            }
            _ => Ok(ComputeChoice::all(dtype)),
        }
    }
}

/// Returns the kinds for a transformer with this number of parameters on a CPU with these rates, which are
/// measured only for a large one.
fn automatic(parameters: u64, measure: impl FnOnce() -> Result<Rates>) -> Result<Compute> {
    if parameters < LARGE_TRANSFORMER {
        return Ok(Compute::all(Kind::Float));
    }
    let rates = measure()?;
    let faster = |gain: f64| {
        if gain >= LEAST_GAIN {
            Kind::BFloat16
        } else {
            Kind::Float
        }
    };
    let products = faster(rates.matmul.gain());
    Ok(Compute {
        text: products,
        transformer: products,
        autoencoder: faster(rates.convolution.gain()),
    })
}

/// Counts a transformer's parameters.
fn parameters(config: &DitConfig) -> Result<u64> {
    let blank = Weights::blank();
    Dit::new(&blank, config, |_| ())?;
    let elements = |shape: &Vec<i64>| {
        shape
            .iter()
            .map(|side| side.unsigned_abs())
            .fold(1, u64::saturating_mul)
    };
    Ok(blank.shapes().values().map(elements).fold(0, u64::saturating_add))
}

#[cfg(test)]
mod tests {
    use kontext_device::rates::Rate;

    use super::*;

    /// A CPU with these gains of bf16 over f32.
    fn measured(matmul: Option<f64>, convolution: Option<f64>) -> Rates {
        let rate = |gain: Option<f64>| Rate {
            float: 2e11,
            bfloat16: gain.map(|gain| gain * 2e11),
        };
        Rates {
            matmul: rate(matmul),
            convolution: rate(convolution),
        }
    }

    #[test]
    fn a_large_model_takes_bf16_for_the_parts_that_gain_enough() {
        let cases = [
            (Some(4.6), Some(2.0), "bf16"),
            (Some(4.6), Some(1.2), "text bf16, transformer bf16, autoencoder f32"),
            (Some(1.29), Some(2.0), "text f32, transformer f32, autoencoder bf16"),
            (Some(LEAST_GAIN), Some(LEAST_GAIN), "bf16"),
            (Some(0.005), Some(0.005), "f32"),
            (None, None, "f32"),
        ];
        for (matmul, convolution, expected) in cases {
            let chosen = automatic(LARGE_TRANSFORMER, || Ok(measured(matmul, convolution))).unwrap();
            assert_eq!(chosen.to_string(), expected, "{matmul:?} {convolution:?}");
        }
    }

    #[test]
    fn a_small_model_computes_in_f32_without_a_measurement() {
        let never = || -> Result<Rates> { unreachable!("measured") };
        assert_eq!(
            automatic(LARGE_TRANSFORMER - 1, never).unwrap(),
            Compute::all(Kind::Float)
        );
    }

    #[test]
    fn runs_that_follow_another_program_compute_in_f32_unless_a_kind_is_set() {
        let automatic = ComputeChoice {
            native: Compute::all(Kind::BFloat16),
            ..ComputeChoice::all(Kind::Float)
        };
        assert_eq!(automatic.of(Conformance::Native), Compute::all(Kind::BFloat16));
        for other in [Conformance::Diffusers, Conformance::Bfl] {
            assert_eq!(automatic.of(other), Compute::all(Kind::Float));
        }
        let set = ComputeChoice::all(Kind::BFloat16);
        assert_eq!(set.of(Conformance::Diffusers), Compute::all(Kind::BFloat16));
        // BFL's autoencoder is f32 in any case.
        assert_eq!(set.of(Conformance::Bfl).autoencoder, Kind::Float);
    }

    #[test]
    fn the_published_model_is_large_and_the_shipped_one_is_not() {
        let count = |config: &DitConfig| parameters(config).unwrap();
        assert_eq!(count(&DitConfig::kontext_dev()), 11_901_408_320);
        let small = count(&crate::ModelSizes::small().dit);
        assert!(small < LARGE_TRANSFORMER / 10, "{small}");
    }

    #[test]
    fn a_builder_computes_in_the_kind_that_is_set_on_any_cpu() {
        let builder = || crate::Pipeline::builder().device(Device::Cpu);
        let large = DitConfig::kontext_dev();
        let of = |builder: PipelineBuilder| builder.compute_choice(&large).unwrap().of(Conformance::Native);
        for kind in [Kind::Float, Kind::BFloat16] {
            assert_eq!(of(builder().compute(kind)), Compute::all(kind));
            // The dtype of latents is another matter.
            assert_eq!(of(builder().compute(kind).dtype(Kind::Float)), Compute::all(kind));
        }
        assert_eq!(of(builder().dtype(Kind::Float)), Compute::all(Kind::Float));
        let chosen = of(builder());
        assert_eq!(of(builder()), chosen, "measured once");
        if !cpu::has_bf16_units() {
            assert_eq!(chosen, Compute::all(Kind::Float));
        }
        let refused = builder().compute(Kind::Half).compute_choice(&large).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "invalid compute: expected Float or BFloat16 on a CPU, got Half"
        );
    }

    #[test]
    fn a_gpu_computes_in_the_dtype() {
        let builder = || crate::Pipeline::builder().device(Device::Cuda(0));
        let config = DitConfig::kontext_dev();
        let of = |builder: PipelineBuilder| builder.compute_choice(&config);
        assert_eq!(of(builder()).unwrap(), ComputeChoice::all(Kind::BFloat16));
        assert_eq!(
            of(builder().dtype(Kind::Half).compute(Kind::Half)).unwrap(),
            ComputeChoice::all(Kind::Half)
        );
        let refused = of(builder().compute(Kind::Float)).unwrap_err().to_string();
        assert!(
            refused.starts_with("invalid compute: expected the dtype, BFloat16"),
            "{refused}"
        );
    }
}
