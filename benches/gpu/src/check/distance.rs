//! Tensors of a run's stages, and distances between two runs.

use anyhow::{Context, bail};
use kontext::image::RgbImage;
use kontext::{Device, Event, Kind, Pipeline, Request, Tensor};
use kontext_bench::metrics::psnr;
use kontext_core::check::relative_l2;

use crate::observe::observed;
use crate::row::Outcome;

/// Stages of a run, in order: names, and tensors in f32 on the CPU.
pub(super) struct Trace {
    stages: Vec<(String, Tensor)>,
    images: Vec<RgbImage>,
}

/// Largest allowed distances between two runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Relative L2 distance of noise, latents and all other tensors except encoder outputs.
    pub(super) stage: f64,
    /// Relative L2 distance of encoded prompts and images.
    pub(super) encoded: f64,
    /// Lowest PSNR of the images, in dB.
    pub(super) image: f64,
}

impl Bounds {
    /// Bounds for the same f32 operations in other orders of summation: programs on the CPU differ by 1e-6,
    /// and a wrong kernel, dtype or stride changes a stage by 1e-2 and more. Images have 8 bits: a value at
    /// the boundary between two levels may be rounded either way.
    pub(super) const F32: Self = Self {
        stage: 1e-4,
        encoded: 1e-4,
        image: 60.0,
    };
    /// Bounds for bf16, which has 8 significant bits: one rounding is 1.7e-3 of a tensor's norm, and a stage
    /// has some ten in sequence. Measured with bf16 arithmetic on a CPU: latents up to 1.3e-2, the
    /// autoencoder's up to 2.8e-2, T5 (whose attention scores are not scaled) 2.2e-2, and 4.0e-2 with 4-bit
    /// weights; images at 46 dB and above.
    pub(super) const BF16: Self = Self {
        stage: 2e-2,
        encoded: 5e-2,
        image: 40.0,
    };

    pub(super) fn of(kind: Kind) -> Self {
        if kind == Kind::Float { Self::F32 } else { Self::BF16 }
    }

    fn of_stage(self, name: &str) -> f64 {
        let encoded = ["prompt", "negative", "reference", "T5", "CLIP", "encoded"];
        if encoded.iter().any(|start| name.starts_with(start)) {
            self.encoded
        } else {
            self.stage
        }
    }
}

impl Trace {
    /// Runs a request and records its stages.
    pub(super) fn of(pipe: &Pipeline, request: &Request) -> anyhow::Result<Self> {
        let mut trace = Self::empty();
        trace.images = observed(pipe, request, |event| trace.keep(event))?.images;
        Ok(trace)
    }

    pub(super) fn add(&mut self, name: impl Into<String>, tensor: &Tensor) -> anyhow::Result<()> {
        self.stages.push((name.into(), wide(tensor)?));
        Ok(())
    }

    /// Records the tensors of an event.
    fn keep(&mut self, event: &Event<'_>) -> anyhow::Result<()> {
        match event {
            Event::Encoded {
                conditioning, negative, ..
            } => {
                let which = if *negative { "negative " } else { "" };
                self.add(format!("{which}prompt embeddings"), &conditioning.prompt_embeds)?;
                self.add(format!("{which}pooled prompt"), &conditioning.pooled)
            }
            Event::Reference { index, latents, .. } => self.add(format!("reference {index}"), latents),
            Event::Noise { latents } => self.add("noise", latents),
            Event::Step { done, latents, .. } => self.add(format!("step {done}"), latents),
            _ => Ok(()),
        }
    }

    /// Returns a trace without stages.
    pub(super) fn empty() -> Self {
        Self {
            stages: Vec::new(),
            images: Vec::new(),
        }
    }

    /// Records in `outcome` the distance from the expected trace: the worst stage and the images.
    pub(super) fn compare(&self, expected: &Self, bounds: Bounds, outcome: &mut Outcome) -> anyhow::Result<()> {
        if self.stages.len() != expected.stages.len() || self.images.len() != expected.images.len() {
            let names = |trace: &Self| {
                trace
                    .stages
                    .iter()
                    .map(|(name, _)| name.clone())
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            bail!("other stages: {}; expected {}", names(self), names(expected));
        }
        // The stage with the largest ratio of distance to bound.
        let mut worst = (
            "none",
            0.0,
            self.stages.first().map_or(0.0, |(name, _)| bounds.of_stage(name)),
        );
        for ((name, got), (expected_name, expected)) in self.stages.iter().zip(&expected.stages) {
            if name != expected_name {
                bail!("stage {name} where {expected_name} is expected");
            }
            let (distance, bound) = (
                relative_l2(got, expected).with_context(|| name.clone())?,
                bounds.of_stage(name),
            );
            // NaN counts as infinitely far.
            let distance = if distance.is_nan() { f64::INFINITY } else { distance };
            if distance > bound {
                outcome.note(format!("{name}: {distance:.2e}"));
            }
            if distance / bound > worst.1 / worst.2 {
                worst = (name, distance, bound);
            }
        }
        outcome.at_most("relative L2", worst.1, worst.2);
        outcome.value("worst stage", worst.0);
        let mut nearest = f64::INFINITY;
        for (got, expected) in self.images.iter().zip(&expected.images) {
            nearest = nearest.min(psnr(got, expected)?);
        }
        if !self.images.is_empty() {
            outcome.at_least("PSNR dB", nearest, bounds.image);
        }
        Ok(())
    }

    /// Returns `true` if the distance to another run exceeds that of other orders of summation.
    pub(super) fn differs(&self, other: &Self) -> anyhow::Result<bool> {
        let mut distance = Outcome::default();
        self.compare(other, Bounds::F32, &mut distance)?;
        Ok(distance.has_failed())
    }

    /// Checks that two runs are bitwise equal.
    pub(super) fn equal(&self, expected: &Self, outcome: &mut Outcome) {
        let unlike = self
            .stages
            .iter()
            .zip(&expected.stages)
            .find(|((_, a), (_, b))| !a.equal(b));
        outcome.holds(self.stages.len() == expected.stages.len(), || {
            "another number of stages".to_owned()
        });
        outcome.holds(unlike.is_none(), || {
            format!("other bits from {} on", unlike.map_or("", |((name, _), _)| name))
        });
        outcome.holds(self.images == expected.images, || "other images".to_owned());
    }
}

fn wide(tensor: &Tensor) -> anyhow::Result<Tensor> {
    Ok(tensor
        .f_detach()?
        .f_to_device(Device::Cpu)?
        .f_to_kind(Kind::Float)?
        .copy())
}

#[cfg(test)]
mod tests {
    use super::super::world::{World, edit};
    use super::*;

    /// A CPU run with weights and latents in another dtype simulates a device with excessive rounding.
    #[test]
    fn a_run_that_is_rounded_elsewhere_fails_the_bounds_of_f32_and_holds_those_of_bf16() {
        let folder = tempfile::tempdir().expect("made");
        kontext::random_model(folder.path(), 7, kontext::Layout::Diffusers).expect("written");
        let run = |kind: Kind| {
            let pipe = World::builder(Device::Cpu, kind).load(folder.path()).expect("loaded");
            Trace::of(&pipe, &edit()).expect("run")
        };
        let (exact, again, rounded) = (run(Kind::Float), run(Kind::Float), run(Kind::BFloat16));
        let failed = |got: &Trace, bounds: Bounds| {
            let mut outcome = Outcome::default();
            got.compare(&exact, bounds, &mut outcome).expect("of the same stages");
            outcome.has_failed()
        };
        assert!(!failed(&again, Bounds::F32));
        assert!(failed(&rounded, Bounds::F32));
        assert!(!failed(&rounded, Bounds::BF16));
        let unlike = |got: &Trace| {
            let mut outcome = Outcome::default();
            got.equal(&exact, &mut outcome);
            outcome.has_failed()
        };
        assert!(!unlike(&again) && unlike(&rounded));
    }

    #[test]
    fn a_stage_that_is_not_finite_or_missing_does_not_pass() {
        let trace = |values: &[f32]| {
            let mut trace = Trace::empty();
            trace.add("step 1", &Tensor::from_slice(values)).expect("kept");
            trace
        };
        let mut outcome = Outcome::default();
        trace(&[1.0, f32::NAN])
            .compare(&trace(&[1.0, 2.0]), Bounds::BF16, &mut outcome)
            .expect("compared");
        assert!(outcome.has_failed());
        assert!(
            Trace::empty()
                .compare(&trace(&[1.0]), Bounds::BF16, &mut Outcome::default())
                .is_err()
        );
    }
}
