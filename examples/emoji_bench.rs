//! Makes a bench in KontextBench's layout of held-out emoji edits: `cargo xtask run --release --example emoji_bench`.
//!
//! Its answers are known, and the small model of this repository was made for it.

mod common;
mod emoji;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use common::judge::{Edit, edits};
use common::{say, write};
use kontext::crates::kontext_core::picture::resize;
use serde_json::json;

/// The dataset's categories, by what stands before the slash, and what KontextBench calls them.
const CATEGORIES: [(&str, &str); 5] = [
    ("character", "Character Reference"),
    ("global", "Instruction Editing - Global"),
    ("local", "Instruction Editing - Local"),
    ("style", "Style Reference"),
    ("text", "Text Editing"),
];

/// Make a bench of held-out emoji edits, in the layout of black-forest-labs/kontext-bench.
#[derive(Debug, Parser)]
struct Args {
    /// The bench's folder
    #[arg(long, value_name = "DIR", default_value = "target/emoji-bench")]
    out: PathBuf,
    /// The dataset's folder; made if it is not there
    #[arg(long, value_name = "DIR", default_value = "target/emoji")]
    data: PathBuf,
    /// The split to take: `test` for new combinations, `wording` for the same in new words
    #[arg(long, default_value = "test")]
    split: String,
    /// At most so many pairs of each of the five categories
    #[arg(long, default_value_t = 60)]
    most: usize,
    /// Width and height of the pictures; by default those that the small model works at
    #[arg(long, default_value_t = 64)]
    size: u32,
}

fn main() -> ExitCode {
    common::main(|args: Args| run(&args))
}

fn run(args: &Args) -> anyhow::Result<()> {
    emoji::ensure(&args.data, args.data.with_extension("packages"))?;
    let images = args.out.join("test/images");
    std::fs::create_dir_all(&images).with_context(|| format!("cannot make the folder {}", images.display()))?;
    let mut pictures = BTreeSet::<PathBuf>::new();
    let mut lines = String::new();
    let mut prompts_of = BTreeMap::<PathBuf, (usize, usize)>::new();
    for (category, edit) in chosen(edits(&args.data, &[&args.split])?, args.most) {
        let [first, references @ ..] = &edit.source[..] else {
            continue;
        };
        let images_so_far = prompts_of.len();
        let (image, prompt) = prompts_of.entry(first.clone()).or_insert((images_so_far, 0));
        let mut line = json!({
            "file_name": place(first), "instruction": edit.instruction, "category": category,
            "key": format!("{image:04}_{prompt:02}"), "image_idx": *image, "prompt_idx": *prompt,
            "truth": place(&edit.target), "emoji_category": edit.category,
            "candidates": edit.candidates.iter().map(|path| place(path)).collect::<Vec<_>>(),
        });
        if !references.is_empty() {
            line["references"] = references.iter().map(|path| place(path)).collect();
        }
        *prompt += 1;
        lines.push_str(&format!("{line}\n"));
        pictures.extend(
            edit.source
                .iter()
                .chain(&edit.candidates)
                .chain([&edit.target])
                .cloned(),
        );
    }
    let count = lines.lines().count();
    for path in &pictures {
        let picture = resize(&kontext::open(args.data.join(path))?, args.size, args.size)?;
        kontext::save_picture(&picture, args.out.join("test").join(place(path)), &[])?;
    }
    let licence = std::fs::read_to_string(args.data.join("LICENSE.txt")).context("the dataset has no LICENSE.txt")?;
    write(&args.out.join("LICENSE.txt"), &licence)?;
    // Last, because a folder without it is no bench.
    write(&args.out.join("test/metadata.jsonl"), &lines)?;
    say(format_args!(
        "wrote {count} pairs with {} pictures to {}",
        pictures.len(),
        args.out.display()
    ))
}

/// The first `most` edits of each category, taken from its kinds by turns.
fn chosen(edits: Vec<Edit>, most: usize) -> Vec<(&'static str, Edit)> {
    let mut by_kind = BTreeMap::<String, VecDeque<Edit>>::new();
    for edit in edits {
        by_kind.entry(edit.category.clone()).or_default().push_back(edit);
    }
    let mut chosen = Vec::new();
    for (group, category) in CATEGORIES {
        let mut kinds: Vec<VecDeque<Edit>> = by_kind
            .iter_mut()
            .filter(|(kind, _)| kind.split('/').next() == Some(group))
            .map(|(_, edits)| std::mem::take(edits))
            .collect();
        let mut left = most;
        while left > 0 && kinds.iter().any(|edits| !edits.is_empty()) {
            for edit in kinds
                .iter_mut()
                .filter_map(VecDeque::pop_front)
                .take(left)
                .collect::<Vec<_>>()
            {
                left -= 1;
                chosen.push((category, edit));
            }
        }
    }
    chosen
}

/// "pictures/flat/cook.png" lies in "images/flat-cook.png".
fn place(path: &Path) -> String {
    let parts: Vec<String> = path
        .iter()
        .skip_while(|part| *part == "pictures")
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    format!("images/{}", parts.join("-"))
}
