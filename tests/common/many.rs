//! Many edits in one run of `edit`: tiny images, manifests, and the files of a run.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Stdio};

use image::{Rgb, RgbImage};
use serde_json::Value;

use super::desk::{Desk, small};
use super::program;

/// Returns the flags of quick edits, with further ones.
pub fn quick<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let own = [["--steps", "1"], ["--max-area", "1024"], ["--seed", "7"]];
    let own = own.into_iter().filter(|[flag, _]| !more.contains(flag)).flatten();
    let flags: Vec<&str> = own.chain(more.iter().copied()).collect();
    small(model, &flags)
}

/// Writes an image of its own colours.
pub fn draw(desk: &Desk, name: &str, number: u32) {
    let path = desk.path(name);
    kontext_core::create_folder(path.parent().unwrap()).unwrap();
    let level = |value: u32| (value % 256) as u8;
    RgbImage::from_fn(32, 24, |x, y| {
        Rgb([level(x * number), level(y * 9), level(40 * number)])
    })
    .save(path)
    .unwrap();
}

/// Returns all files of a folder with their bytes, the hidden ones too.
pub fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let file = |entry: std::fs::DirEntry| {
        assert!(entry.path().is_file(), "{:?}", entry.path());
        (
            entry.file_name().into_string().unwrap(),
            std::fs::read(entry.path()).unwrap(),
        )
    };
    entries.map(file).collect()
}

pub fn names(folder: &Path) -> Vec<String> {
    contents(folder).into_keys().collect()
}

/// Returns the records of a run, by key.
pub fn records(folder: &Path) -> BTreeMap<String, Value> {
    let files = contents(folder)
        .into_iter()
        .filter(|(name, _)| name.ends_with(".jsonl"));
    let text: String = files.map(|(_, bytes)| String::from_utf8(bytes).unwrap()).collect();
    let record = |line: &str| {
        let record: Value = serde_json::from_str(line).unwrap();
        (record["key"].as_str().unwrap().to_owned(), record)
    };
    text.lines().map(record).collect()
}

pub fn start(desk: &Desk, args: &[&str]) -> Child {
    let mut command = program("edit");
    command.args(args).current_dir(desk.0.path());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Writes a manifest of `count` requests of tiny images.
pub fn manifest(desk: &Desk, count: u32) {
    for number in 0..4 {
        draw(desk, &format!("{number}.png"), number + 1);
    }
    let line = |number: u32| format!("{{\"image\": \"{}.png\", \"n\": {number}}}\n", number % 4);
    std::fs::write(desk.path("m.jsonl"), (0..count).map(line).collect::<String>()).unwrap();
}

/// Returns the flags of a run of it.
pub fn of_manifest<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let flags = [&["--manifest", "m.jsonl", "--prompt", "hat {n}"][..], more].concat();
    quick(model, &flags)
}
