//! Registration: motions of drawn pictures found again, and nothing found where nothing moved.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // In helper functions of a test, and for its tables.

mod scenes;

use kontext::image::{GrayImage, Rgb, RgbImage};
use kontext::{Registration, crates::kontext_core::images};
use proptest::prelude::*;
use rayon::prelude::*;

use self::scenes::{Moved, Scene, decoded, hash, photos, recolored, with_other_content};

/// Width and height of most pictures: small ones are the harder ones.
const SIZE: (u32, u32) = (256, 192);

/// Returns the distance of the measured motion from the true one at the corners, in pixels.
fn distance(registration: Registration, moved: Moved, (width, height): (u32, u32)) -> f64 {
    moved.distance([registration.dx, registration.dy, registration.scale], width, height)
}

/// Shifts in all directions, zooms, and both.
fn motions() -> Vec<Moved> {
    let mut motions = Vec::new();
    for shift in [0.25, 0.5, 1.0, 2.0, 4.0, 8.0] {
        motions.push(Moved::new(shift, -shift, 1.0));
        motions.push(Moved::new(-shift, shift / 2.0, 1.0));
    }
    for zoom in [0.005, 0.01, 0.02, 0.03] {
        motions.push(Moved::new(0.0, 0.0, 1.0 + zoom));
        motions.push(Moved::new(0.0, 0.0, 1.0 - zoom));
    }
    motions.extend([
        Moved::new(2.0, 1.0, 1.01),
        Moved::new(-4.0, 3.0, 0.98),
        Moved::new(8.0, 8.0, 1.03),
        Moved::new(-8.0, -5.0, 0.97),
    ]);
    motions
}

const CONDITIONS: [&str; 4] = [
    "drawn",
    "other colours, blur, noise",
    "other content in 30 %, noise",
    "the same, by a mask",
];

/// Returns the error of a motion in each of the conditions.
fn errors(source: &RgbImage, scene: &Scene, other: &RgbImage, moved: Moved) -> [f64; 4] {
    let (width, height) = source.dimensions();
    let drawn = scene.drawn(width, height, moved);
    let edited = decoded(&recolored(&drawn), 4.0, 1);
    let (replaced, mask) = with_other_content(&drawn, other, 0.3);
    let replaced = decoded(&replaced, 3.0, 2);
    [
        (&drawn, None),
        (&edited, None),
        (&replaced, None),
        (&replaced, Some(&mask)),
    ]
    .map(|(result, mask)| {
        let found = Registration::measure(source, result, mask).unwrap();
        distance(found, moved, (width, height))
    })
}

#[test]
fn motions_are_found_within_a_quarter_of_a_pixel() {
    // One of the two directions of each.
    check_motions(&motions().into_iter().step_by(2).collect::<Vec<_>>());
}

/// Prints the table of docs/registration.md.
#[test]
#[ignore = "takes minutes: `cargo xtask test --test registration -- --ignored --nocapture`"]
fn all_motions_are_found_within_a_quarter_of_a_pixel() {
    check_motions(&motions());
}

/// Prints the errors of these motions, and checks them.
fn check_motions(motions: &[Moved]) {
    let (width, height) = SIZE;
    let mut scenes: Vec<(String, Scene)> = Vec::new();
    scenes.extend(Scene::synthetic(3).map(|(name, scene)| (name.to_owned(), scene)));
    scenes.extend(photos(2));
    let mut worst = vec![[0.0_f64; 4]; motions.len()];
    let mut missed = Vec::new();
    for (index, (name, scene)) in scenes.iter().enumerate() {
        let source = scene.drawn(width, height, Moved::NOT);
        let other = scenes[(index + 1) % scenes.len()].1.drawn(width, height, Moved::NOT);
        let found: Vec<[f64; 4]> = motions
            .par_iter()
            .map(|moved| errors(&source, scene, &other, *moved))
            .collect();
        for ((moved, worst), errors) in motions.iter().zip(&mut worst).zip(found) {
            for ((worst, error), condition) in worst.iter_mut().zip(errors).zip(CONDITIONS) {
                if error > 0.25 {
                    missed.push(format!("{name}, {condition}: {moved:?} is found {error:.3} pixels off"));
                }
                *worst = worst.max(error);
            }
        }
    }
    println!("{} pictures of {width}x{height}", scenes.len());
    println!("| shift | zoom | {} |\n|{}", CONDITIONS.join(" | "), "---|".repeat(6));
    for (moved, worst) in motions.iter().zip(&worst) {
        let errors = worst.map(|error| format!("{error:.3}")).join(" | ");
        let zoom = 100.0 * (moved.scale - 1.0);
        println!("| {}, {} | {zoom:+.1} % | {errors} |", moved.dx, moved.dy);
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn a_megapixel_is_measured_as_well() {
    let scene = Scene::Clouds(5);
    let source = scene.drawn(1024, 1024, Moved::NOT);
    let moved = Moved::new(-8.0, 6.0, 1.03);
    let result = decoded(&scene.drawn(1024, 1024, moved), 3.0, 4);
    let begun = std::time::Instant::now();
    let found = Registration::measure(&source, &result, None).unwrap();
    println!("1024x1024: {} ms", begun.elapsed().as_millis());
    let error = distance(found, moved, (1024, 1024));
    assert!(error < 0.1, "{found:?} is {error} pixels off");
}

#[test]
fn a_result_that_did_not_move_is_left_to_the_byte() {
    let (width, height) = SIZE;
    let mut scenes: Vec<(String, Scene)> = photos(6);
    scenes.extend(Scene::synthetic(9).map(|(name, scene)| (name.to_owned(), scene)));
    let other = Scene::Clouds(77).drawn(width, height, Moved::NOT);
    for (name, scene) in &scenes {
        let source = scene.drawn(width, height, Moved::NOT);
        let moved = scene.drawn(width, height, Moved::new(3.0, 2.0, 1.0));
        for (what, result) in [
            ("unchanged", source.clone()),
            ("decoded", decoded(&source, 3.0, 5)),
            ("much noise", decoded(&source, 8.0, 6)),
            ("recoloured", decoded(&recolored(&source), 3.0, 7)),
            (
                "half replaced",
                decoded(&with_other_content(&source, &other, 0.5).0, 3.0, 8),
            ),
            (
                "a moved part",
                decoded(&with_other_content(&source, &moved, 0.3).0, 3.0, 9),
            ),
        ] {
            // In a photograph, 30 % of the area may have most of the texture.
            if what == "a moved part" && matches!(scene, Scene::Photo(_)) {
                continue;
            }
            let found = Registration::measure(&source, &result, None).unwrap();
            assert!(found.is_identity(), "{name}, {what}: {found:?}");
            assert_eq!(
                found.resampled(&result, width, height).unwrap(),
                result,
                "{name}, {what}"
            );
        }
    }
}

#[test]
fn images_that_share_nothing_give_the_identity() {
    let (width, height) = SIZE;
    let mut scenes: Vec<Scene> = photos(6).into_iter().map(|(_, scene)| scene).collect();
    scenes.extend(Scene::synthetic(4).map(|(_, scene)| scene));
    scenes.extend(Scene::synthetic(5).map(|(_, scene)| scene));
    let drawn: Vec<RgbImage> = scenes
        .iter()
        .map(|scene| scene.drawn(width, height, Moved::NOT))
        .collect();
    for (index, source) in drawn.iter().enumerate() {
        for step in 1..4 {
            let other = (index + step) % drawn.len();
            let found = Registration::measure(source, &drawn[other], None).unwrap();
            assert!(found.is_identity(), "{index} and {other}: {found:?}");
        }
    }
}

#[test]
fn pictures_without_texture_or_size_give_the_identity() {
    let flat = RgbImage::from_pixel(300, 200, Rgb([90, 120, 33]));
    let grain = RgbImage::from_fn(300, 200, |x, y| Rgb([(120.0 + 6.0 * hash(x, y, 3)) as u8; 3]));
    let slope = RgbImage::from_fn(300, 200, |x, y| Rgb([(x / 2) as u8, (y / 2) as u8, 80]));
    let lines = RgbImage::from_fn(300, 200, |x, _| Rgb([if x % 37 < 9 { 200 } else { 30 }; 3]));
    let moved_lines = RgbImage::from_fn(300, 200, |x, y| *lines.get_pixel((x + 298) % 300, y));
    let small = |moved| Scene::Clouds(1).drawn(31, 300, moved);
    for (what, source, result) in [
        ("flat", &flat, &flat),
        ("flat and grain", &flat, &grain),
        ("grain and flat", &grain, &flat),
        ("slope", &slope, &decoded(&slope, 3.0, 1)),
        // Nothing tells by how much they moved along themselves.
        ("lines", &lines, &moved_lines),
        ("small", &small(Moved::NOT), &small(Moved::new(2.0, 1.0, 1.0))),
    ] {
        let found = Registration::measure(source, result, None).unwrap();
        assert!(found.is_identity(), "{what}: {found:?}");
    }
    let whole = GrayImage::from_pixel(300, 200, kontext::image::Luma([255]));
    let found = Registration::measure(&lines, &moved_lines, Some(&whole)).unwrap();
    assert_eq!(found.matched, 0.0);
}

#[test]
fn a_moved_result_is_put_back_in_place() {
    let (width, height) = SIZE;
    let scene = Scene::Clouds(8);
    let source = scene.drawn(width, height, Moved::NOT);
    for moved in [Moved::new(5.0, -3.5, 0.98), Moved::new(-2.25, 1.0, 1.02)] {
        let result = scene.drawn(width, height, moved);
        let found = Registration::measure(&source, &result, None).unwrap();
        // Away from the edges, which may be outside the result.
        let difference = |image: &RgbImage, source: &RgbImage| {
            let (width, height) = source.dimensions();
            let inner = source.enumerate_pixels().filter(|(x, y, _)| {
                (width / 12..width - width / 12).contains(x) && (height / 12..height - height / 12).contains(y)
            });
            let differences = inner.map(|(x, y, pixel)| pixel[1].abs_diff(image.get_pixel(x, y)[1]));
            differences.map(f64::from).sum::<f64>() / f64::from(width * height)
        };
        let back = found.resampled(&result, width, height).unwrap();
        let (before, after) = (difference(&result, &source), difference(&back, &source));
        assert!(after < 0.15 * before, "{moved:?}: {before} to {after}");
        // At another size, by one resampling.
        let large = scene.drawn(2 * width, 2 * height, Moved::NOT);
        let back = found.resampled(&result, 2 * width, 2 * height).unwrap();
        let still = images::resize(&result, 2 * width, 2 * height).unwrap();
        let (before, after) = (difference(&still, &large), difference(&back, &large));
        assert!(after < 0.3 * before, "{moved:?} at twice the size: {before} to {after}");
    }
}

#[test]
fn the_identity_copies_and_resizes() {
    let image = Scene::Letters(2).drawn(96, 64, Moved::NOT);
    let identity = Registration::IDENTITY;
    assert!(identity.is_identity());
    assert_eq!(identity.resampled(&image, 96, 64).unwrap(), image);
    for (width, height) in [(192, 128), (50, 33), (96, 80), (7, 64)] {
        let resized = images::resize(&image, width, height).unwrap();
        assert_eq!(identity.resampled(&image, width, height).unwrap(), resized);
    }
    assert!(identity.resampled(&image, 0, 64).is_err());
}

#[test]
fn sizes_that_differ_are_refused() {
    let (image, wide) = (RgbImage::new(64, 48), RgbImage::new(65, 48));
    let error = Registration::measure(&image, &wide, None).unwrap_err().to_string();
    assert_eq!(
        error,
        "invalid registered result: expected the source's size, 64x48, got 65x48"
    );
    let error = Registration::measure(&image, &image, Some(&GrayImage::new(64, 47))).unwrap_err();
    assert!(error.to_string().starts_with("invalid mask of changes: "), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn any_motion_in_reach_is_found(
        dx in -8.0_f64..8.0,
        dy in -8.0_f64..8.0,
        scale in 0.97_f64..1.03,
        seed in 0_u32..1000,
        (width, height) in (150_u32..260, 150_u32..260),
    ) {
        let moved = Moved::new(dx, dy, scale);
        let [_, _, (_, waves), _] = Scene::synthetic(seed);
        for scene in [Scene::Clouds(seed), waves] {
            let source = scene.drawn(width, height, Moved::NOT);
            let result = scene.drawn(width, height, moved);
            let found = Registration::measure(&source, &result, None).unwrap();
            let error = distance(found, moved, (width, height));
            prop_assert!(error <= 0.25, "{moved:?} of {width}x{height}: {found:?}, {error} pixels off");
        }
    }
}
