//! The dataset of emoji edits: pictures, and instructions that lead from one to another.
// Programs share this, and it stands alone.
#![allow(dead_code, unreachable_pub, missing_docs, missing_debug_implementations)]

mod compound;
pub mod families;
mod named;
pub mod packages;
mod people;
pub mod picture;
pub mod split;
mod tables;
mod whole;
mod wording;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use picture::Key;
use rayon::prelude::*;
use serde_json::json;
use split::Line;

use crate::common::write;

/// What the dataset is made of and where it goes.
#[derive(Debug, Clone)]
pub struct Options {
    /// The dataset's folder.
    pub out: PathBuf,
    /// Where the packages are kept.
    pub cache: PathBuf,
    /// Width and height of the pictures.
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

/// Lines of each category and split.
pub type Summary = BTreeMap<String, BTreeMap<&'static str, usize>>;

/// Makes the dataset in `folder` if it is not there.
pub fn ensure(folder: &Path, cache: PathBuf) -> anyhow::Result<()> {
    if !folder.join("metadata.jsonl").is_file() {
        write_dataset(&Options {
            out: folder.to_owned(),
            cache,
            size: 128,
        })?;
    }
    Ok(())
}

/// Fetches, draws, pairs and writes everything.
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
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    let bar = crate::common::progress::bar("drawing", keys.len());
    keys.par_iter().try_for_each(|key| -> anyhow::Result<()> {
        let picture = key
            .draw(&packages, options.size)
            .with_context(|| format!("cannot draw {}", key.path()))?;
        bar.inc(1);
        Ok(kontext::save_picture(&picture, options.out.join(key.path()), &[])?)
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
