//! A small bench and a mock model.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // In helper functions of tests.

pub mod same_files;

use std::ops::ControlFlow;
use std::path::Path;

use image::{Rgb, RgbImage};
use kontext_bench::kontextbench::{Bench, CATEGORIES, Edited, RunInfo, RunSummary, Runner, Shard, Task};
use kontext_core::Result;

use same_files::assert_same_files;

/// Number of pairs in the bench.
pub const PAIRS: usize = 10;

/// Writes a bench as published: two instructions per image, all five categories; the first two pairs have a
/// truth.
pub fn bench(folder: &Path) -> Bench {
    write_bench(folder, |_, line| Some(line));
    Bench::open(folder).unwrap()
}

/// Writes the same bench with its lines changed: `None` leaves a line out.
pub fn write_bench(folder: &Path, change: impl Fn(usize, String) -> Option<String>) {
    let images = folder.join("test/images");
    kontext_core::create_folder(&images).unwrap();
    for index in 0..PAIRS / 2 {
        image(index).save(images.join(format!("{index:04}.png"))).unwrap();
    }
    inverted(&image(0)).save(images.join("truth.png")).unwrap();
    let mut lines = Vec::new();
    for index in 0..PAIRS {
        let (image, prompt) = (index / 2, index % 2);
        let mut line = serde_json::json!({
            "file_name": format!("images/{image:04}.png"), "key": format!("{image:04}_{prompt:02}"),
            "instruction": format!("instruction {index}"), "category": CATEGORIES[index % CATEGORIES.len()],
            "image_idx": image, "prompt_idx": prompt,
        });
        if index < 2 {
            line["truth"] = "images/truth.png".into();
            line["candidates"] = serde_json::json!(["images/0001.png", "images/0002.png"]);
        }
        lines.extend(change(index, line.to_string()));
    }
    std::fs::write(folder.join("test/metadata.jsonl"), lines.join("\n")).unwrap();
}

pub fn image(index: usize) -> RgbImage {
    let base = 20 * index as u8;
    RgbImage::from_fn(24, 20, |x, y| Rgb([base + x as u8 * 5, 40 + y as u8 * 6, 255 - base]))
}

pub fn inverted(image: &RgbImage) -> RgbImage {
    let mut image = image.clone();
    image
        .pixels_mut()
        .for_each(|pixel| pixel.0.iter_mut().for_each(|level| *level = 255 - *level));
    image
}

/// Mocks a model: inverts the image, and marks it by the seed.
pub fn edit(task: &Task<'_>) -> Result<Edited> {
    let mut image = inverted(&task.images[0]);
    image.put_pixel(
        0,
        0,
        Rgb([task.seed as u8, (task.seed >> 8) as u8, (task.seed >> 16) as u8]),
    );
    Ok(Edited { image, steps: 2 })
}

pub fn info(name: &str) -> RunInfo {
    RunInfo::new(name, 7).setting("model", "none")
}

/// Runs a shard of the bench without interruption.
pub fn run(bench: &Bench, out: &Path, shard: &str) -> RunSummary {
    let shard: Shard = shard.parse().unwrap();
    Runner::new(bench, info("a"))
        .shard(shard)
        .run(out, edit, |_| ControlFlow::Continue(()))
        .unwrap()
}

/// Fails with the names of the files that differ.
#[track_caller]
pub fn assert_same(a: &Path, b: &Path) {
    assert_same_files(a, b, PAIRS);
}
