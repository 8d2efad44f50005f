//! Bytes of real photographs outside of masks, crops, outpainting and sessions, in files of all formats.
//!
//! The photographs are not part of the repository; without them the test says so. Distances from the mask are computed
//! here, and not by the code under test.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // In helper functions of a test.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use image::{ImageFormat, RgbImage};
use kontext::{Device, Layout, Mask, ModelDefaults, Outpaint, Pipeline, Request, Size, random_model};
use tempfile::TempDir;

static PIPE: LazyLock<(TempDir, Arc<Pipeline>)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    random_model(folder.path(), 7, Layout::Diffusers).unwrap();
    let defaults = ModelDefaults {
        sizes: Some(vec![[64, 96], [64, 64], [96, 64]]),
        steps: Some(1),
        ..ModelDefaults::default()
    };
    defaults.save(folder.path()).unwrap();
    let pipe = Pipeline::builder().device(Device::Cpu).load(folder.path()).unwrap();
    (folder, Arc::new(pipe))
});

/// Returns the photographs of the shared assets, of several sources: the first of each folder.
fn photos() -> Vec<PathBuf> {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/assets/photos");
    let of = |folder: PathBuf| -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            println!("no photographs: {} is not there", folder.display());
            return Vec::new();
        };
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|e| e == "png" || e == "jpg"));
        files.sort();
        files
    };
    of(shared.clone())
        .into_iter()
        .chain(of(shared.join("kodak")).into_iter().take(14))
        .collect()
}

/// Returns the photographs as files of all formats and several sizes: every third one is a WebP of another size.
fn files(folder: &Path) -> Vec<PathBuf> {
    let webp = |(index, path): (usize, PathBuf)| {
        if index % 3 != 2 {
            return path;
        }
        let image = kontext::open_image(&path).unwrap();
        let (width, height) = (image.width() * 5 / 7 + index as u32, image.height() * 4 / 7);
        let image = kontext::crates::kontext_core::images::resize(&image, width, height).unwrap();
        let file = folder.join(format!("{index}.webp"));
        kontext::io::save_image(&image, &file, &[]).unwrap();
        file
    };
    photos().into_iter().enumerate().map(webp).collect()
}

/// A rectangle [left, top, right, bottom] in an image.
type Box = [u32; 4];

/// Returns the distance of a pixel to a box, in pixels.
fn distance([left, top, right, bottom]: Box, x: u32, y: u32) -> f64 {
    let beyond = |at: u32, from: u32, to: u32| from.saturating_sub(at).max((at + 1).saturating_sub(to));
    f64::from(beyond(x, left, right)).hypot(f64::from(beyond(y, top, bottom)))
}

/// Checks that all bytes farther than `reach` from the box are the source's, and that most in it are not; `at` is the
/// source's place in the result.
fn check(name: &str, source: &RgbImage, result: &RgbImage, repainted: Box, reach: f64, at: [u32; 2]) {
    let (mut kept, mut inside, mut changed) = (0, 0, 0);
    for (x, y, pixel) in source.enumerate_pixels() {
        let new = result.get_pixel(at[0] + x, at[1] + y);
        let far = distance(repainted, x, y);
        if far > reach {
            assert_eq!(new, pixel, "{name}: ({x}, {y})");
            kept += 1;
        } else if far == 0.0 {
            inside += 1;
            changed += usize::from(new != pixel);
        }
    }
    assert!(kept > 1000, "{name}: {kept} kept");
    assert!(changed * 10 > inside * 8, "{name}: {changed} of {inside} changed");
}

#[test]
fn bytes_outside_of_the_feather_are_those_of_the_photograph() {
    let folder = tempfile::tempdir().unwrap();
    let files = files(folder.path());
    if files.is_empty() {
        return;
    }
    assert!(files.len() >= 20, "{} photographs", files.len());
    let pipe = &PIPE.1;
    for (index, path) in files.iter().enumerate() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let source = Arc::new(kontext::open_image(path).unwrap());
        let (width, height) = source.dimensions();
        // Another place and size in each, of odd numbers.
        let (w, h) = (31 + 7 * index as u32 % 90, 25 + 11 * index as u32 % 70);
        let (left, top) = (
            (width - w) * (index as u32 % 5) / 5,
            (height - h) * (index as u32 % 4) / 4,
        );
        let inside = [left, top, left + w, top + h];
        let (grow, feather) = (index as f32 % 4.0, 3.0 + index as f32 % 9.0);
        let mask = Mask::rectangle(Size::new(width, height), [left, top, w, h]).unwrap();
        let mask = mask.grow(grow).feather(feather);
        let reach = f64::from(grow + feather);
        let edit = || Request::edit(&source, "a red door").seed(index as u64);
        let run = |request: &Request| pipe.run(request).unwrap();

        let whole = run(&edit().mask(mask.clone()));
        check(name, &source, &whole.image, inside, reach, [0, 0]);
        // The file that is written has the same bytes of pixels.
        let file = whole
            .encode(0, [ImageFormat::Png, ImageFormat::WebP][index % 2])
            .unwrap();
        assert_eq!(kontext::image_from_bytes(&file).unwrap(), whole.image, "{name}");

        let cropped = run(&edit().mask(mask.clone().crop(20)));
        assert!(
            cropped.plan.mask.unwrap().region.size.area() < Size::new(width, height).area() / 2,
            "{name}"
        );
        check(name, &source, &cropped.image, inside, reach, [0, 0]);

        // The padding is on the left; a box that ends at the old image's edge has the feather on its right.
        let pad = 40 + index as u32;
        let wide = run(&edit().outpaint(Outpaint::sides(pad, 0, 0, 0).feather(12)));
        assert_eq!(wide.image.dimensions(), (width + pad, height));
        for (x, y, pixel) in source.enumerate_pixels().filter(|(x, ..)| *x >= 12) {
            assert_eq!(wide.image.get_pixel(pad + x, y), pixel, "{name}: ({x}, {y})");
        }

        let mut session = pipe.session(Arc::clone(&source));
        let first = session.request("a red door").mask(mask.clone()).seed(1);
        session.run(&first).unwrap();
        let second = session.request("a blue door").mask(mask.crop(9)).seed(2);
        let turn = session.run(&second).unwrap();
        check(name, &source, &turn.image, inside, reach, [0, 0]);
    }
    println!("{} photographs, four edits each", files.len());
}
