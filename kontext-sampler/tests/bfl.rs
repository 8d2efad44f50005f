//! Schedules, times, sizes, tokens and Euler steps against black-forest-labs/flux's own functions.
//!
//! Fixture: `tests/reference/parts/bfl.py`. Everything is compared exactly: both sides are libtorch
//! on a CPU, or a few lines of arithmetic.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::ops::ControlFlow;

use kontext_core::{Device, Kind, Tensor, noise};
use kontext_fixtures::Fixture;
use kontext_nn::ops;
use kontext_sampler::geometry::{PREFERRED_SIZES, bfl_target, preferred_size};
use kontext_sampler::ids::{Origin, grid_ids};
use kontext_sampler::{Conformance, Grid, Schedule, Shift, Size, integrate, pack, unpack};

const KINDS: [(Kind, &str); 2] = [(Kind::Float, "f32"), (Kind::BFloat16, "bf16")];

fn fixture() -> Fixture {
    Fixture::open("bfl.safetensors")
}

fn values(fixture: &Fixture, name: &str) -> Vec<f32> {
    Vec::try_from(fixture.tensor(name)).unwrap()
}

fn rows(fixture: &Fixture, name: &str) -> Vec<Vec<i32>> {
    Vec::try_from(fixture.tensor(name)).unwrap()
}

fn bfl(steps: usize, tokens: i64, shift: Shift) -> Schedule {
    Schedule::new(steps, tokens, shift, Conformance::Bfl).unwrap()
}

#[test]
fn schedules_of_every_length_are_those_of_bfl() {
    let fixture = fixture();
    let mut seen = 0;
    for name in fixture.names() {
        let parts: Vec<&str> = name.split('.').collect();
        let ["sigmas", tokens, steps] = parts[..] else { continue };
        let steps = steps.parse().unwrap();
        let schedule = match tokens {
            "unshifted" => bfl(steps, 4096, Shift::schnell()),
            tokens => bfl(steps, tokens.parse().unwrap(), Shift::dev()),
        };
        assert_eq!(schedule.sigmas(), values(&fixture, &name), "{name}");
        seen += 1;
    }
    assert_eq!(seen, 30);
}

#[test]
fn times_and_guidance_are_embedded_with_the_roundings_of_bfl() {
    let fixture = fixture();
    let schedule = bfl(30, 4096, Shift::dev());
    for (kind, name) in KINDS {
        let times = schedule.embedded_times(kind);
        assert_eq!(times, values(&fixture, &format!("times.{name}")), "{name}");
        let guidance = [1.0, 2.5, 3.5, 4.0].map(|g| schedule.embedded_guidance(g, kind));
        assert_eq!(guidance[..], values(&fixture, &format!("guidance.{name}")), "{name}");
        let some: Vec<f32> = times.iter().copied().step_by(10).collect();
        let embedding = ops::timestep_embedding(&Tensor::from_slice(&some), 256)
            .unwrap()
            .to_kind(kind);
        assert!(embedding.equal(&fixture.tensor(&format!("embedding.{name}"))), "{name}");
    }
}

#[test]
fn every_euler_step_is_that_of_bfl_in_f32_and_in_bf16() {
    let fixture = fixture();
    for (kind, name) in KINDS {
        let raw = |part: &str| fixture.tensor(&format!("euler.{name}.{part}"));
        let (states, velocities) = (raw("states"), raw("velocities"));
        let velocity = |latents: &Tensor, step: usize| {
            assert!(
                latents.squeeze_dim(0).equal(&states.get(step as i64)),
                "{name}, before step {step}"
            );
            Ok(velocities.get(step as i64).unsqueeze(0))
        };
        let schedule = bfl(3, 4096, Shift::dev());
        let end = integrate(&states.narrow(0, 0, 1), &schedule, kind, velocity, |_| {
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(end.kind(), kind);
        assert!(end.squeeze_dim(0).equal(&raw("end")), "{name}");
    }
}

#[test]
fn images_on_either_side_of_every_border_get_the_preferred_size_that_bfl_gives_them() {
    let rows = rows(&fixture(), "buckets");
    assert!(rows.len() > 70);
    for row in rows {
        let [width, height, fitted @ ..] = &row[..] else {
            panic!("{row:?}")
        };
        let image = Size::new(*width as u32, *height as u32);
        let size = preferred_size(image, &PREFERRED_SIZES, Conformance::Bfl);
        assert_eq!([size.width as i32, size.height as i32], fitted, "{image}");
    }
}

#[test]
fn sides_that_are_asked_for_are_rounded_up_as_by_bfl_and_the_others_follow_the_image() {
    let rows = rows(&fixture(), "targets");
    assert_eq!(rows.len(), 10);
    for row in rows {
        let [width, height, asked_width, asked_height, target @ ..] = &row[..] else {
            panic!("{row:?}")
        };
        let image = Size::new(*width as u32, *height as u32);
        let preferred = preferred_size(image, &PREFERRED_SIZES, Conformance::Bfl);
        let or = |asked: &i32, side: u32| if *asked == 0 { side } else { *asked as u32 };
        let size = bfl_target(Size::new(
            or(asked_width, preferred.width),
            or(asked_height, preferred.height),
        ));
        assert_eq!([size.width as i32, size.height as i32], target, "{row:?}");
    }
}

#[test]
fn noise_for_sizes_that_are_no_multiples_of_16_is_the_draw_of_bfl() {
    let fixture = fixture();
    let mut seen = 0;
    for (kind, name) in KINDS {
        for asked in [Size::new(100, 50), Size::new(33, 17), Size::new(48, 32)] {
            let draw = format!("noise.{asked}.{name}");
            if !fixture.contains(&draw) {
                continue;
            }
            let Grid { rows, cols } = bfl_target(asked).grid().unwrap();
            let drawn = noise::randn(&[1, 16, 2 * rows, 2 * cols], 7, kind, Device::Cpu).unwrap();
            assert!(drawn.equal(&fixture.tensor(&draw)), "{asked}, {name}");
            seen += 1;
        }
    }
    assert_eq!(seen, 5);
}

#[test]
fn latents_are_packed_and_unpacked_as_by_bfl() {
    let fixture = fixture();
    let grid = Size::new(48, 32).grid().unwrap();
    let latents = fixture.tensor("noise.48x32.bf16");
    let tokens = pack(&latents).unwrap();
    assert!(tokens.equal(&fixture.tensor("tokens.img")));
    let back = unpack(&tokens, grid).unwrap();
    assert!(back.equal(&latents) && back.equal(&fixture.tensor("tokens.unpacked")));
}

#[test]
fn targets_lie_on_plane_0_and_references_on_plane_1_as_in_bfl() {
    let fixture = fixture();
    let grid = Size::new(48, 32).grid().unwrap();
    for (name, t) in [("tokens.ids", 0), ("context.ids", 1)] {
        let ids = grid_ids(grid, Origin { t, y: 0, x: 0 }).unwrap();
        assert!(ids.unsqueeze(0).equal(&fixture.tensor(name)), "{name}");
    }
}
