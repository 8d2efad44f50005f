//! The dataset of emoji edits: pairs of images, and instructions that lead from one to the other.

mod compound;
mod draw;
mod families;
mod key;
mod named;
mod packages;
mod pairs;
mod people;
mod split;
mod tables;
mod whole;
mod wording;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rayon::prelude::*;
use serde_json::json;

use self::key::Key;
use self::split::Line;
use crate::files::{create_folder, write};
use crate::progress;

/// Folders and size of the dataset.
#[derive(Debug, Clone)]
pub struct Options {
    /// The dataset's folder.
    pub out: PathBuf,
    /// Folder of the downloaded packages.
    pub cache: PathBuf,
    /// Width and height of the images.
    pub size: u32,
}

const LICENCE: &str = "The pictures are made from Fluent Emoji by Microsoft Corporation.

MIT License

Copyright (c) Microsoft Corporation.

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the \"Software\"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense,
and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so,
subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED \"AS IS\", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT
LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN
NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY,
WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE
SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
";

/// Number of lines by category and split.
pub type Summary = BTreeMap<String, BTreeMap<&'static str, usize>>;

/// Makes the dataset in `folder` unless it exists. The packages are kept in `cache`, by default the folder with the
/// extension "packages".
///
/// # Errors
/// As [`write_dataset`].
pub fn ensure(folder: &Path, cache: Option<PathBuf>) -> anyhow::Result<()> {
    if !folder.join("metadata.jsonl").is_file() {
        write_dataset(&Options {
            out: folder.to_owned(),
            cache: cache.unwrap_or_else(|| folder.with_extension("packages")),
            size: 128,
        })?;
    }
    Ok(())
}

/// Fetches the packages, and draws, pairs and writes the whole dataset.
///
/// # Errors
/// If a package cannot be fetched or read, a file cannot be written, or a held-out edit would be trained on.
pub fn write_dataset(options: &Options) -> anyhow::Result<Summary> {
    let packages = packages::open(&options.cache)?;
    let lines = split::lines(families::all(&packages))?;
    if let Some(leak) = split::leak(&lines) {
        bail!("a held-out edit is in the training data: {leak}");
    }
    let keys: BTreeSet<&Key> = lines
        .iter()
        .flat_map(|l| l.pair.sources.iter().chain(&l.pair.candidates).chain([&l.pair.target]))
        .collect();
    let folders: BTreeSet<PathBuf> = keys
        .iter()
        .filter_map(|key| Some(options.out.join(key.path()).parent()?.to_owned()))
        .collect();
    for folder in folders {
        create_folder(&folder)?;
    }
    let bar = progress::bar("drawing", keys.len());
    kontext_core::threads::start()?;
    keys.par_iter().try_for_each(|key| -> anyhow::Result<()> {
        let image = draw::draw(key, &packages, options.size).with_context(|| format!("cannot draw {}", key.path()))?;
        bar.inc(1);
        Ok(kontext::io::save_image(&image, options.out.join(key.path()), &[])?)
    })?;
    write_lines(&options.out, &lines)?;
    write(&options.out.join("LICENSE.txt"), LICENCE)?;
    let mut summary = Summary::new();
    for line in &lines {
        *summary
            .entry(line.pair.category.to_owned())
            .or_default()
            .entry(line.split)
            .or_default() += 1;
    }
    write(&options.out.join("summary.json"), &format!("{:#}\n", json!(summary)))?;
    Ok(summary)
}

fn write_lines(out: &Path, lines: &[Line]) -> anyhow::Result<()> {
    let paths = |keys: &[Key]| -> Vec<String> { keys.iter().map(Key::path).collect() };
    let (mut families, mut text) = (BTreeMap::<Vec<String>, String>::new(), String::new());
    for line in lines {
        let count = families.len();
        // Training needs no candidates.
        let family = (line.split != "train").then(|| {
            families
                .entry(paths(&line.pair.candidates))
                .or_insert_with(|| format!("family-{count}"))
                .clone()
        });
        let json = json!({
            "source": paths(&line.pair.sources), "target": line.pair.target.path(), "instruction": line.instruction,
            "category": line.pair.category, "split": line.split, "family": family,
        });
        text.push_str(&format!("{json}\n"));
    }
    write(&out.join("metadata.jsonl"), &text)?;
    let families: BTreeMap<String, Vec<String>> = families.into_iter().map(|(paths, name)| (name, paths)).collect();
    write(&out.join("families.json"), &format!("{:#}\n", json!(families)))
}
