//! Registration in runs: shifts that a model made are undone, and results that did not move keep their bytes.
//!
//! The shipped model is made to shift: its reference's latents are those of a shifted picture, of which it edits a part.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // In helper functions of a test, and for its tables.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use image::RgbImage;
use kontext::crates::kontext_core::{array, images};
use kontext::crates::kontext_sampler::pack;
use kontext::session::KeepUnchanged;
use kontext::{Conformance, Device, Event, Mask, Pipeline, References, Registration, Request, Size, Warning};
use ndarray::ArrayD;

static PIPE: LazyLock<Arc<Pipeline>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/kontext-emoji");
    Arc::new(Pipeline::builder().device(Device::Cpu).load(folder).unwrap())
});

const PROMPT: &str = "make the hair red";
/// One step of a hundred, from the shifted picture with a little noise: with more of it, the model puts pictures where
/// such ones belong.
const STRENGTH: f64 = 0.04;

/// The shipped picture, at the model's size.
fn source() -> RgbImage {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/emoji-source.png");
    let image = kontext::open_image(path).unwrap();
    images::resize(&image, 64, 64).unwrap()
}

/// Returns an image moved by whole pixels, with its edge repeated.
fn moved(image: &RgbImage, dx: i64, dy: i64) -> RgbImage {
    let within = |at: i64, side: u32| at.clamp(0, i64::from(side) - 1) as u32;
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        let (x, y) = (i64::from(x) - dx, i64::from(y) - dy);
        *image.get_pixel(within(x, image.width()), within(y, image.height()))
    })
}

/// Returns the latents of an image, as a request takes them.
fn latents(image: &RgbImage) -> ArrayD<f32> {
    let mut latents = None;
    let request = Request::edit(image, "").steps(1).seed(0);
    let run = PIPE.run_with(&request, |event| {
        if let Event::Reference { latents: encoded, .. } = event {
            latents = Some(array::to_array(&pack(encoded).unwrap()).unwrap());
        }
        ControlFlow::Continue(())
    });
    run.unwrap();
    latents.unwrap()
}

fn distance(a: &RgbImage, b: &RgbImage) -> f64 {
    let sum: f64 = a
        .iter()
        .zip(b.iter())
        .map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2))
        .sum();
    (sum / a.as_raw().len() as f64).sqrt()
}

#[test]
fn a_shift_that_the_model_made_is_found_and_undone() {
    let source = source();
    let straight = PIPE
        .run(&Request::edit(&source, PROMPT).steps(100).strength(STRENGTH).seed(1))
        .unwrap()
        .image;
    for (dx, dy) in [(2, 0), (0, -2), (-3, 2), (1, 1)] {
        let shifted = Request::edit(&source, PROMPT)
            .steps(100)
            .strength(STRENGTH)
            .image_latents(latents(&moved(&source, dx, dy)))
            .seed(1);
        let left = PIPE.run(&shifted).unwrap();
        assert!(left.registrations.is_empty() && !left.plan.registers);
        let output = PIPE.run(&shifted.clone().register()).unwrap();
        let [registration] = output.registrations[..] else {
            panic!("one image has one registration")
        };
        // The model itself undoes a part of the shift, so the truth is the motion against its result without one.
        let truth = Registration::measure(&straight, &left.image, None).unwrap();
        let (x, y) = (registration.dx - truth.dx, registration.dy - truth.dy);
        println!("shifted by ({dx}, {dy}): made {truth:?}, found {registration:?}");
        assert!(truth.dx.hypot(truth.dy) > 0.7, "{truth:?}");
        assert!(x.hypot(y) < 0.15, "{truth:?}, {registration:?}");
        let (before, after) = (distance(&left.image, &straight), distance(&output.image, &straight));
        println!("distance from the result without a shift: {before:.1}, registered {after:.1}");
        assert!(after < 0.7 * before, "({dx}, {dy}): {before} to {after}");
    }
}

#[test]
fn a_result_that_did_not_move_keeps_its_bytes_also_under_a_mask_and_at_another_size() {
    let source = source();
    let large = images::resize(&source, 150, 150).unwrap();
    let mask = Mask::rectangle(Size::new(64, 64), [16, 8, 30, 20]).unwrap();
    for request in [
        Request::edit(&source, PROMPT),
        Request::edit(&source, PROMPT).mask(mask),
        Request::edit(&large, PROMPT),
        Request::edit(&large, PROMPT).native_size(),
    ] {
        let request = request.seed(1).batch(2);
        let (plain, registered) = (
            PIPE.run(&request).unwrap(),
            PIPE.run(&request.clone().register()).unwrap(),
        );
        assert!(registered.plan.registers);
        assert!(registered.registrations.iter().all(Registration::is_identity));
        assert_eq!((plain.images, registered.registrations.len()), (registered.images, 2));
    }
}

#[test]
fn a_registered_turn_of_a_session_has_no_latents_of_another_place() {
    let source = source();
    let mut session = PIPE.session(source.clone());
    session.keep_unchanged = Some(KeepUnchanged::default());
    session.defaults.register = true;
    let turn = session.edit(PROMPT).unwrap();
    assert!(turn.latents.is_some());
}

#[test]
fn where_nothing_can_be_registered_a_plan_says_so() {
    let source = source();
    let edit = || Request::edit(&source, PROMPT).register();
    for request in [
        Request::generate(PROMPT).register(),
        edit().size(128, 64),
        edit().references(References::Stitch),
        edit().conform(Conformance::Diffusers),
    ] {
        let plan = PIPE.plan(&request).unwrap();
        assert!(
            !plan.registers && plan.warnings.contains(&Warning::RegisterIgnored),
            "{plan}"
        );
    }
}
