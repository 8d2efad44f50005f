//! Schedules, Euler steps and geometry against diffusers' `FluxKontextPipeline`.
//!
//! Fixtures: `tests/reference/parts/schedule.py` and `geometry.py`. Sizes and sigmas are compared exactly,
//! except for the last bit of a division that numpy vectorises.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::ops::ControlFlow;

use kontext_core::{Kind, Tensor};
use kontext_fixtures::Fixture;
use kontext_sampler::geometry::{PREFERRED_SIZES, diffusers_target, preferred_size};
use kontext_sampler::{Conformance, Schedule, Shift, Size, integrate};

fn fixture() -> Fixture {
    Fixture::open("schedule.safetensors")
}

fn values(fixture: &Fixture, name: &str) -> Vec<f32> {
    Vec::try_from(fixture.tensor(name)).unwrap()
}

fn diffusers(steps: usize, tokens: i64, shift: Shift) -> Schedule {
    Schedule::new(steps, tokens, shift, Conformance::Diffusers).unwrap()
}

#[test]
fn schedules_of_every_length_are_those_of_diffusers() {
    let fixture = fixture();
    let mut seen = 0;
    for name in fixture.names() {
        let Some(case) = name.strip_suffix(".sigmas") else {
            continue;
        };
        let parts: Vec<&str> = case.split('.').collect();
        let schedule = match parts[..] {
            ["dev", tokens, steps] => diffusers(steps.parse().unwrap(), tokens.parse().unwrap(), Shift::dev()),
            ["schnell", steps] => diffusers(steps.parse().unwrap(), 4096, Shift::schnell()),
            _ => continue,
        };
        assert_eq!(schedule.sigmas(), values(&fixture, &name), "{name}");
        seen += 1;
    }
    assert!(seen >= 30, "only {seen} schedules in the fixture");
}

#[test]
fn times_and_guidance_are_embedded_with_the_roundings_of_diffusers() {
    let fixture = fixture();
    let schedule = diffusers(28, 4096, Shift::dev());
    for (kind, name) in [(Kind::Float, "f32"), (Kind::BFloat16, "bf16")] {
        assert_eq!(
            schedule.embedded_times(kind),
            values(&fixture, &format!("embedded_times.{name}")),
            "{name}"
        );
        let guidance = [1.0, 2.5, 3.5, 4.0].map(|g| schedule.embedded_guidance(g, kind));
        assert_eq!(
            guidance[..],
            values(&fixture, &format!("embedded_guidance.{name}")),
            "{name}"
        );
    }
}

#[test]
fn an_euler_step_is_diffusers_in_f32_and_in_bf16() {
    let fixture = fixture();
    let schedule = diffusers(28, 4096, Shift::dev());
    for (kind, name) in [(Kind::Float, "f32"), (Kind::BFloat16, "bf16")] {
        let raw = |part: &str| fixture.tensor(&format!("euler.{name}.{part}"));
        let sample = raw("sample");
        // Velocity zero until the fourth step, which the fixture holds.
        let velocity = |_: &Tensor, step: usize| {
            Ok(if step == 3 {
                raw("velocity")
            } else {
                raw("velocity").zeros_like()
            })
        };
        let mut after = None;
        let stop = |step: &kontext_sampler::Step<'_>| {
            after = Some(step.latents.copy());
            if step.done == 4 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let error = integrate(&sample, &schedule, kind, velocity, stop).unwrap_err();
        assert_eq!(error.to_string(), "cancelled after 4 of 28 steps");
        assert!(after.unwrap().equal(&raw("next")), "{name}");
    }
}

#[test]
fn sizes_are_those_of_diffusers_quirks_included() {
    let text = std::fs::read_to_string(kontext_fixtures::reference("geometry.json")).unwrap();
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert!(rows.len() > 50);
    let size = |v: &serde_json::Value| Some(Size::new(v.get(0)?.as_u64()? as u32, v.get(1)?.as_u64()? as u32));
    for row in rows {
        let side = |name: &str| row[name].as_u64().unwrap_or(1024) as u32;
        let area = row["max_area"].as_u64().unwrap_or(1024 * 1024);
        let target = diffusers_target(Size::new(side("width"), side("height")), area);
        assert_eq!(Some(target), size(&row["output"]), "{row}");
        if let Some(image) = size(&row["image"]) {
            let reference = preferred_size(image, &PREFERRED_SIZES, Conformance::Diffusers);
            assert_eq!(Some(reference), size(&row["reference"]), "{row}");
        }
    }
}

#[test]
fn steps_out_of_range_and_sigmas_that_rise_are_refused() {
    let new = |steps| Schedule::new(steps, 256, Shift::dev(), Conformance::Native);
    assert_eq!(
        new(0).unwrap_err().to_string(),
        "invalid steps: expected 1 to 1000, got 0"
    );
    assert!(new(1001).is_err());
    let sigmas = |s: &[f32]| Schedule::from_sigmas(s, 256, Shift::dev(), Conformance::Native);
    assert!(sigmas(&[0.5, 0.9]).is_err());
    assert_eq!(sigmas(&[0.9, 0.5]).unwrap().sigmas(), [0.9, 0.5, 0.0]);
}

#[test]
fn half_the_strength_keeps_half_the_steps() {
    let schedule = Schedule::new(8, 256, Shift::schnell(), Conformance::Native).unwrap();
    assert_eq!(
        schedule.clone().strength(0.5).unwrap().sigmas(),
        &schedule.sigmas()[4..]
    );
    assert!(schedule.strength(0.0).is_err());
}

#[test]
fn what_is_wrong_with_sigmas_is_said_in_a_line() {
    let got = |sigmas: &[f32]| {
        let error = Schedule::from_sigmas(sigmas, 256, Shift::dev(), Conformance::Native).unwrap_err();
        let error = error.to_string();
        let words = "invalid sigmas: expected 1 to 1000 strictly falling values in (0, 1], got ";
        error
            .strip_prefix(words)
            .unwrap_or_else(|| panic!("{error}"))
            .to_owned()
    };
    assert_eq!(got(&vec![0.5; 1001]), "1001 values");
    assert_eq!(got(&[]), "0 values");
    assert_eq!(got(&[1.0, 0.5, 0.5, 0.1]), "0.5 after 0.5, at place 2 of 4");
    assert_eq!(got(&[1.0, f32::NAN]), "NaN at place 1 of 2");
    assert_eq!(got(&[f32::INFINITY]), "inf at place 0 of 1");
    assert_eq!(got(&[1.0, 0.0]), "0.0 at place 1 of 2");
    assert_eq!(got(&[1e38]), "1e38 at place 0 of 1");
}
