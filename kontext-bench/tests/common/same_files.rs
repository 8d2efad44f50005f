//! Byte-for-byte comparison of folders, except for timings and for what killed writers have left.
#![allow(unreachable_pub, clippy::unwrap_used)] // In helper functions of tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Returns every file of a folder with its bytes, except for timings and for temporary files of killed writers, which
/// later ones leave for ten minutes.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(
                    path.strip_prefix(folder).unwrap().to_owned(),
                    std::fs::read(path).unwrap(),
                );
            }
        }
    }
    let is_left = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(".kontext-") && name.ends_with(".tmp"))
    };
    files.retain(|path, _| !path.starts_with("timings") && !is_left(path));
    files
}

/// Fails with the names of the files that differ, or if there are not more than two files per pair.
#[track_caller]
pub fn assert_same_files(a: &Path, b: &Path, pairs: usize) {
    let (a, b) = (files(a), files(b));
    let names: BTreeSet<&PathBuf> = a.keys().chain(b.keys()).collect();
    let differing: Vec<&PathBuf> = names.into_iter().filter(|name| a.get(*name) != b.get(*name)).collect();
    assert!(differing.is_empty(), "these differ: {differing:?}");
    assert!(a.len() > 2 * pairs);
}
