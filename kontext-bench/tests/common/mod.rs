//! A small bench, and a model that is none.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // In helper functions of tests.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};
use kontext_bench::kontextbench::{Bench, CATEGORIES, Edited, RunInfo, RunSummary, Runner, Shard, Task};
use kontext_core::Result;

/// Pairs of the bench.
pub const PAIRS: usize = 10;

/// Writes a bench as published: two instructions a picture, all five categories; the first two pairs have a truth.
pub fn bench(folder: &Path) -> Bench {
    write_bench(folder, |_, line| Some(line));
    Bench::open(folder).unwrap()
}

/// The same with its lines changed: none leaves a line out.
pub fn write_bench(folder: &Path, change: impl Fn(usize, String) -> Option<String>) {
    let images = folder.join("test/images");
    std::fs::create_dir_all(&images).unwrap();
    for image in 0..PAIRS / 2 {
        picture(image).save(images.join(format!("{image:04}.png"))).unwrap();
    }
    inverted(&picture(0)).save(images.join("truth.png")).unwrap();
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

pub fn picture(index: usize) -> RgbImage {
    let base = 20 * index as u8;
    RgbImage::from_fn(24, 20, |x, y| Rgb([base + x as u8 * 5, 40 + y as u8 * 6, 255 - base]))
}

pub fn inverted(picture: &RgbImage) -> RgbImage {
    let mut picture = picture.clone();
    picture.pixels_mut().for_each(|pixel| pixel.0.iter_mut().for_each(|level| *level = 255 - *level));
    picture
}

/// What stands for a model: inverts the picture, and marks it by the seed.
pub fn edit(task: &Task<'_>) -> Result<Edited> {
    let mut picture = inverted(&task.pictures[0]);
    picture.put_pixel(0, 0, Rgb([task.seed as u8, (task.seed >> 8) as u8, (task.seed >> 16) as u8]));
    Ok(Edited { picture, steps: 2 })
}

pub fn info(name: &str) -> RunInfo {
    RunInfo::new(name, 7).setting("model", "none")
}

/// A run that must not be stopped.
pub fn run(bench: &Bench, out: &Path, shard: &str) -> RunSummary {
    let shard: Shard = shard.parse().unwrap();
    Runner::new(bench, info("a")).shard(shard).run(out, edit, |_| ControlFlow::Continue(())).unwrap()
}

/// Every file of a folder but those that tell times, with its bytes.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(path.strip_prefix(folder).unwrap().to_owned(), std::fs::read(path).unwrap());
            }
        }
    }
    files.retain(|path, _| !path.starts_with("timings"));
    files
}

/// Fails with the names of the files that differ.
#[track_caller]
pub fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (files(a), files(b));
    let names: std::collections::BTreeSet<&PathBuf> = a.keys().chain(b.keys()).collect();
    let differing: Vec<&PathBuf> = names.into_iter().filter(|name| a.get(*name) != b.get(*name)).collect();
    assert!(differing.is_empty(), "these differ: {differing:?}");
    assert!(a.len() > 2 * PAIRS);
}
