//! The samplers: against runs of diffusers' schedulers, and by their order on flows with a known solution.
//!
//! Fixture: `tests/reference/parts/samplers.py`.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::ops::ControlFlow;

use kontext_core::{Device, Error, Kind, Result, Tensor, check, noise};
use kontext_fixtures::Fixture;
use kontext_sampler::{Conformance, Inpainting, Sampler, Sampling, Schedule, Shift, Step, add_noise, integrate, pack};

const KINDS: [(Kind, &str); 2] = [(Kind::Float, "f32"), (Kind::BFloat16, "bf16")];

fn go_on(_: &Step<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn no_noise(_: usize) -> Result<Tensor> {
    Err(Error::bug("noise for a sampler without"))
}

fn sample(
    latents: &Tensor,
    schedule: &Schedule,
    sampler: Sampler,
    kind: Kind,
    noise: impl FnMut(usize) -> Result<Tensor>,
    velocity: impl FnMut(&Tensor, usize) -> Result<Tensor>,
    observe: impl FnMut(&Step<'_>) -> ControlFlow<()>,
) -> Result<Tensor> {
    let sampling = Sampling::new(schedule, kind).sampler(sampler);
    sampling.run(latents, noise, velocity, observe)
}

/// Returns noise of a step, the same for each call.
fn some_noise(step: usize) -> Result<Tensor> {
    noise::randn(&[2, 3, 8], 100 + step as u64, Kind::Float, Device::Cpu)
}

fn start() -> Tensor {
    noise::randn(&[2, 3, 8], 7, Kind::Float, Device::Cpu).unwrap()
}

#[test]
fn whole_runs_are_those_of_the_schedulers_of_diffusers_bit_for_bit() {
    let fixture = Fixture::open("samplers.safetensors");
    let velocities = fixture.tensor("velocity");
    for (shift, tokens, name) in [(Shift::dev(), 4096, "dev"), (Shift::Fixed(3.0), 256, "shift3")] {
        let schedule = Schedule::new(5, tokens, shift, Conformance::Diffusers).unwrap();
        let sigmas = Vec::<f32>::try_from(fixture.tensor(&format!("{name}.sigmas"))).unwrap();
        assert_eq!(schedule.sigmas(), sigmas);
        for sampler in Sampler::ALL {
            let times = Vec::<f32>::try_from(fixture.tensor(&format!("{sampler}.{name}.times"))).unwrap();
            assert_eq!(times.len(), sampler.evaluations(5));
            for (kind, dtype) in KINDS {
                let expected = fixture.tensor(&format!("{sampler}.{name}.{dtype}.after"));
                let mut call = 0;
                let velocity = |x: &Tensor, time: usize| {
                    assert_eq!((x.kind(), sigmas[time] * 1000.0), (kind, times[call]), "{sampler}");
                    // Heun's second velocity is taken after the first part of the step.
                    if call > 0 {
                        assert!(
                            x.equal(&expected.get(call as i64 - 1)),
                            "{sampler}, {name}, {dtype}, {call}"
                        );
                    }
                    call += 1;
                    Ok(velocities.get(call as i64 - 1).to_kind(kind))
                };
                let noise = |step: usize| Ok(fixture.tensor("noise").get(step as i64));
                let start = fixture.tensor("start").get(0);
                let end = sample(&start, &schedule, sampler, kind, noise, velocity, go_on).unwrap();
                assert!(end.equal(&expected.get(call as i64 - 1)), "{sampler}, {name}, {dtype}");
                assert_eq!(call, times.len());
            }
        }
    }
}

#[test]
fn a_flow_of_constant_velocity_is_integrated_exactly_by_every_sampler() {
    let (start, image) = (start(), start().flip([2]));
    let velocity = |_: &Tensor, _: usize| Ok(&start - &image);
    // Re-noising replaces the noise: with another one, the image is still the same.
    let noise = |_: usize| Ok(start.shallow_clone());
    for conformance in [Conformance::Native, Conformance::Diffusers, Conformance::Bfl] {
        for (steps, shift) in [(1, Shift::schnell()), (4, Shift::dev()), (7, Shift::Fixed(3.2))] {
            let schedule = Schedule::new(steps, 4096, shift, conformance).unwrap();
            for sampler in Sampler::ALL {
                let end = sample(&start, &schedule, sampler, Kind::Float, noise, velocity, go_on).unwrap();
                assert!(check::relative_l2(&end, &image).unwrap() < 1e-6, "{sampler}, {steps}");
            }
        }
    }
}

/// Returns the relative error of a sampler on `dx / ds = 2 s x`, whose solution is `exp(s^2)`.
fn error_of(sampler: Sampler, schedule: &Schedule) -> f64 {
    let sigmas = schedule.sigmas().to_vec();
    let start = start();
    let velocity = |x: &Tensor, time: usize| Ok(x * (2.0 * f64::from(sigmas[time])));
    let end = sample(&start, schedule, sampler, Kind::Float, no_noise, velocity, go_on).unwrap();
    let first = f64::from(sigmas[0]);
    check::relative_l2(&end, &(start * (-first * first).exp())).unwrap()
}

#[test]
fn twice_the_steps_halve_the_error_of_euler_and_quarter_that_of_the_second_order() {
    let even = |steps| Schedule::new(steps, 256, Shift::schnell(), Conformance::Native).unwrap();
    let errors = |sampler| [8, 16, 32, 64].map(|steps| error_of(sampler, &even(steps)));
    let euler = errors(Sampler::Euler);
    // At the ends of even levels, those of `Dpmpp2m` are not even: there its order is a little lower.
    for (sampler, ratios) in [
        (Sampler::Euler, 1.9..2.1),
        (Sampler::Heun, 3.9..4.3),
        (Sampler::Dpmpp2m, 3.4..4.8),
    ] {
        let errors = errors(sampler);
        for pair in errors.windows(2) {
            assert!(ratios.contains(&(pair[0] / pair[1])), "{sampler}: {errors:?}");
        }
        assert!(
            sampler == Sampler::Euler || errors[3] < 0.05 * euler[3],
            "{sampler}: {errors:?}"
        );
    }
    // Levels that are even in the log of the signal-to-noise ratio, down to one from which the last step is exact.
    let log_even = |steps: usize| {
        let level = |i: usize| 1.0 / (1.0 + (-2.0 + 10.0 * i as f32 / steps as f32).exp());
        let sigmas: Vec<f32> = (0..=steps).map(level).collect();
        Schedule::from_sigmas(&sigmas, 256, Shift::schnell(), Conformance::Native).unwrap()
    };
    let errors = [16, 32, 64].map(|steps| error_of(Sampler::Dpmpp2m, &log_even(steps)));
    for pair in errors.windows(2) {
        assert!((3.7..4.6).contains(&(pair[0] / pair[1])), "{errors:?}");
    }
}

#[test]
fn the_last_step_ends_exactly_at_the_predicted_image() {
    let schedule = Schedule::new(3, 4096, Shift::dev(), Conformance::Native).unwrap();
    let sigmas = schedule.sigmas().to_vec();
    for sampler in Sampler::ALL {
        let mut image = start();
        let velocity = |x: &Tensor, time: usize| {
            let v = x.sin();
            image = x - &v * f64::from(sigmas[time]);
            Ok(v)
        };
        let end = sample(&start(), &schedule, sampler, Kind::Float, some_noise, velocity, go_on).unwrap();
        assert!(end.equal(&image), "{sampler}");
    }
}

#[test]
fn a_run_from_an_image_takes_the_last_steps_of_every_sampler() {
    let (image, noise) = (start().flip([2]), start());
    for sampler in Sampler::ALL {
        let whole = Schedule::new(8, 4096, Shift::dev(), Conformance::Native).unwrap();
        let schedule = whole.strength(0.5).unwrap();
        let from = add_noise(&image, &noise, &schedule).unwrap();
        let mut times = Vec::new();
        // The flow towards this image from this noise.
        let velocity = |_: &Tensor, time: usize| {
            times.push(time);
            Ok(&noise - &image)
        };
        let given = |_: usize| Ok(noise.shallow_clone());
        let end = sample(&from, &schedule, sampler, Kind::Float, given, velocity, go_on).unwrap();
        assert!(check::relative_l2(&end, &image).unwrap() < 1e-6, "{sampler}");
        assert_eq!(times.len(), sampler.evaluations(4));
        let expected: &[usize] = match sampler {
            Sampler::Heun => &[0, 1, 1, 2, 2, 3, 3],
            _ => &[0, 1, 2, 3],
        };
        assert_eq!(times, expected, "{sampler}");
    }
}

#[test]
fn only_the_re_noising_steps_before_the_last_ask_for_noise() {
    let schedule = Schedule::new(4, 256, Shift::schnell(), Conformance::Native).unwrap();
    for sampler in Sampler::ALL {
        let mut asked = Vec::new();
        let noise = |step: usize| {
            asked.push(step);
            some_noise(step)
        };
        let velocity = |x: &Tensor, _: usize| Ok(x.sin());
        drop(sample(&start(), &schedule, sampler, Kind::Float, noise, velocity, go_on).unwrap());
        let expected: &[usize] = if sampler.adds_noise() { &[0, 1, 2] } else { &[] };
        assert_eq!(asked, expected, "{sampler}");
    }
}

#[test]
fn cancelling_and_infinity_stop_every_sampler_with_the_step() {
    let schedule = Schedule::new(4, 256, Shift::schnell(), Conformance::Native).unwrap();
    for sampler in Sampler::ALL {
        let stop = |step: &Step<'_>| {
            if step.done == 2 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let velocity = |x: &Tensor, _: usize| Ok(x.sin());
        let run = sample(&start(), &schedule, sampler, Kind::Float, some_noise, velocity, stop);
        assert_eq!(run.unwrap_err().to_string(), "cancelled after 2 of 4 steps");
        let infinite = |x: &Tensor, time: usize| Ok(if time == 2 { x / 0.0 } else { x.sin() });
        let run = sample(&start(), &schedule, sampler, Kind::Float, some_noise, infinite, go_on);
        let error = run.unwrap_err().to_string();
        // Heun looks ahead to the level of the third step in the second.
        let step = if sampler == Sampler::Heun { 2 } else { 3 };
        assert!(error.contains(&format!("step {step}")), "{sampler}: {error}");
    }
}

#[test]
fn integrate_is_the_sampler_euler() {
    let velocity = |x: &Tensor, _: usize| Ok(x.sin());
    for conformance in [Conformance::Native, Conformance::Diffusers, Conformance::Bfl] {
        let schedule = Schedule::new(5, 4096, Shift::dev(), conformance).unwrap();
        for (kind, _) in KINDS {
            let plain = integrate(&start(), &schedule, kind, velocity, go_on).unwrap();
            let named = sample(&start(), &schedule, Sampler::Euler, kind, no_noise, velocity, go_on).unwrap();
            assert!(plain.equal(&named) && plain.kind() == conformance.latents_kind(kind));
            for sampler in Sampler::ALL {
                let end = sample(&start(), &schedule, sampler, kind, some_noise, velocity, go_on).unwrap();
                assert_eq!(end.kind(), conformance.latents_kind(kind), "{sampler}");
            }
        }
    }
}

/// Latents of a source, noise, and a mask of three columns of tokens: kept, half, repainted.
fn masked() -> (Tensor, Tensor, Tensor) {
    let latents = |seed| noise::randn(&[1, 2, 2, 6], seed, Kind::Float, Device::Cpu).unwrap();
    let mask = Tensor::from_slice(&[0.0_f32, 0.0, 0.5, 0.5, 1.0, 1.0]).expand([1, 1, 2, 6], false);
    (latents(1), latents(2), mask)
}

#[test]
fn under_a_mask_every_sampler_ends_at_the_source_where_it_is_0_and_at_the_models_image_where_it_is_1() {
    let (source, noise, mask) = masked();
    let (noise, image) = (pack(&noise).unwrap(), 3.0);
    let inpainting = Inpainting::new(&mask, &source, &noise).unwrap();
    let schedule = Schedule::new(4, 4096, Shift::dev(), Conformance::Native).unwrap();
    let sigmas = schedule.sigmas().to_vec();
    let source = pack(&source).unwrap();
    let column = |tokens: &Tensor, column: i64| tokens.narrow(1, column, 1);
    for sampler in Sampler::ALL {
        let velocity = |x: &Tensor, time: usize| Ok((x - image) / f64::from(sigmas[time]));
        let fresh = |step: usize| noise::randn(&[1, 3, 8], 100 + step as u64, Kind::Float, Device::Cpu);
        let observe = |step: &Step<'_>| {
            let estimate = step.estimate().unwrap();
            let half = column(&source, 1) * 0.5 + 0.5 * image;
            for (place, expected) in [
                (0, column(&source, 0)),
                (1, half),
                (2, column(&source, 2) * 0.0 + image),
            ] {
                let distance = (column(&estimate, place) - expected).abs().max().double_value(&[]);
                assert!(
                    distance < 1e-5,
                    "{sampler}, step {}, column {place}: {distance}",
                    step.done
                );
            }
            // Outside, the latents stay on the line from the noise to the source.
            if !sampler.adds_noise() {
                let sigma = f64::from(step.sigma);
                let line = column(&noise, 0) * sigma + column(&source, 0) * (1.0 - sigma);
                let distance = (column(step.latents, 0) - line).abs().max().double_value(&[]);
                assert!(distance < 1e-5, "{sampler}, step {}: {distance}", step.done);
            }
            ControlFlow::Continue(())
        };
        let sampling = Sampling::new(&schedule, Kind::Float).sampler(sampler);
        let sampling = sampling.inpainting(Some(&inpainting));
        let end = sampling.run(&noise, fresh, velocity, observe).unwrap();
        assert!(column(&end, 0).equal(&column(&source, 0)), "{sampler}");
    }
}

#[test]
fn a_full_mask_changes_no_bit_and_diffusers_keeps_the_noised_source_outside_of_one() {
    let (source, noise, mask) = masked();
    let noise = pack(&noise).unwrap();
    let velocity = |x: &Tensor, _: usize| Ok(x.sin());
    for conformance in [Conformance::Native, Conformance::Diffusers] {
        let schedule = Schedule::new(4, 4096, Shift::dev(), conformance).unwrap();
        let sampling = Sampling::new(&schedule, Kind::Float);
        let plain = sampling.run(&noise, no_noise, velocity, go_on).unwrap();
        let full = Inpainting::new(&mask.ones_like(), &source, &noise).unwrap();
        let masked = sampling.inpainting(Some(&full));
        assert!(masked.run(&noise, no_noise, velocity, go_on).unwrap().equal(&plain));
    }
    let schedule = Schedule::new(4, 4096, Shift::dev(), Conformance::Diffusers).unwrap();
    let inpainting = Inpainting::new(&mask.ge(0.6), &source, &noise).unwrap();
    let source = pack(&source).unwrap();
    let observe = |step: &Step<'_>| {
        let expected = &noise * f64::from(step.sigma) + &source * f64::from(1.0 - step.sigma);
        let kept = |tokens: &Tensor| tokens.narrow(1, 0, 2);
        assert!(kept(step.latents).equal(&kept(&expected)), "step {}", step.done);
        ControlFlow::Continue(())
    };
    let sampling = Sampling::new(&schedule, Kind::Float).inpainting(Some(&inpainting));
    drop(sampling.run(&noise, no_noise, velocity, observe).unwrap());
}

#[test]
fn a_mask_of_another_grid_is_refused() {
    let (source, noise, mask) = masked();
    let noise = pack(&noise).unwrap();
    let error = Inpainting::new(&mask.narrow(3, 0, 4), &source, &noise).unwrap_err();
    assert!(error.to_string().contains("mask"), "{error}");
    let error = Inpainting::new(&mask, &source, &noise.narrow(1, 0, 2)).unwrap_err();
    assert!(error.to_string().contains("noise"), "{error}");
}
