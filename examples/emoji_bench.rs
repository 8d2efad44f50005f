//! Makes a bench in KontextBench's layout of held-out emoji edits: `cargo xtask run --release --example emoji_bench`.
//!
//! The true results are known, and the small model of this repository was made for such edits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use kontext::crates::kontext_core::images::resize;
use kontext_cli::args::positive;
use kontext_cli::judge::{Edit, edits};
use kontext_cli::{announce, create_folder, emoji, read, write};
use serde_json::json;

/// Categories of the dataset, up to the slash, and their names in KontextBench.
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
    /// Maximum of pairs of each of the five categories
    #[arg(long, default_value_t = 60, value_parser = positive::<usize>, allow_negative_numbers = true)]
    most: usize,
    /// Width and height of the images; by default those of the small model
    #[arg(long, default_value_t = 64, value_parser = positive::<u32>, allow_negative_numbers = true)]
    size: u32,
}

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| run(&args))
}

fn run(args: &Args) -> anyhow::Result<()> {
    emoji::ensure(&args.data, None)?;
    let mut paths = BTreeSet::<PathBuf>::new();
    let mut lines = String::new();
    let mut sources = BTreeMap::<PathBuf, (usize, usize)>::new();
    for (category, edit) in chosen(edits(&args.data, &[&args.split])?, args.most) {
        let [first, references @ ..] = &edit.source[..] else {
            continue;
        };
        let sources_so_far = sources.len();
        let (image, prompt) = sources.entry(first.clone()).or_insert((sources_so_far, 0));
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
        paths.extend(
            edit.source
                .iter()
                .chain(&edit.candidates)
                .chain([&edit.target])
                .cloned(),
        );
    }
    let count = lines.lines().count();
    if count == 0 {
        bail!("{} has no edits of split `{}`", args.data.display(), args.split);
    }
    create_folder(&args.out.join("test/images"))?;
    for path in &paths {
        let image = resize(&kontext::open_image(args.data.join(path))?, args.size, args.size)?;
        kontext::io::save_image(&image, args.out.join("test").join(place(path)), &[])?;
    }
    let licence = read(&args.data.join("LICENSE.txt")).context("the dataset has no LICENSE.txt")?;
    write(&args.out.join("LICENSE.txt"), &licence)?;
    // Written last, because a folder without it is no bench.
    write(&args.out.join("test/metadata.jsonl"), &lines)?;
    announce(format_args!(
        "wrote {count} pairs with {} images to {}",
        paths.len(),
        args.out.display()
    ));
    Ok(())
}

/// Returns the first `most` edits of each category, alternating between its kinds.
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

/// Returns the path of an image in the bench: "images/flat-cook.png" for "images/flat/cook.png".
fn place(path: &Path) -> String {
    let parts: Vec<String> = path
        .iter()
        .skip_while(|part| *part == "pictures")
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    format!("images/{}", parts.join("-"))
}
