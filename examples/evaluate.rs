//! Recomputes the table of a model's card: `cargo xtask run --release --example evaluate`.
//!
//! Runs every held-out edit of the dataset and compares the result with the truth and with all images of the edit's
//! family. The first run fetches the dataset.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use clap::{Parser, ValueEnum};
use kontext::{ReferenceReuse, StepCache};
use kontext_bench::cell;
use kontext_bench::edit::{EditScore, Table};
use kontext_bench::statistics::{Estimate, PSNR_CAP};
use kontext_cli::args::{LoadArgs, positive};
use kontext_cli::held_out::SplitArgs;
use kontext_cli::judge::{self, Edit, Judge, edits};
use kontext_cli::outputs::Outputs;
use kontext_cli::{announce, create_folder, emoji, progress, say, shipped, write};

/// Measure a model on held-out edits.
#[derive(Debug, Parser)]
struct Args {
    /// Folder of the model
    #[arg(long, value_name = "DIR", default_value_os_t = shipped::model())]
    model: PathBuf,
    #[command(flatten)]
    dataset: SplitArgs,
    #[command(flatten)]
    load: LoadArgs,
    /// The reference images that the model is given
    #[arg(long, value_enum, default_value_t)]
    context: Context,
    /// Maximum of edits of a category
    #[arg(
        long,
        default_value_t = usize::MAX,
        hide_default_value = true,
        value_parser = positive::<usize>,
        allow_negative_numbers = true
    )]
    most: usize,
    /// Seed of the noise
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Skip steps, at some loss: off, magcache, first-block, teacache or taylor; with parameters as in
    /// magcache:threshold=0.1,most_skips=5
    #[arg(long, value_name = "MODE", default_value_t)]
    step_cache: StepCache,
    /// Compute fewer tokens in some steps, at some loss: references or region; with parameters as in
    /// references:every=7 or region:threshold=0.9
    #[arg(long, value_name = "MODE")]
    reference_reuse: Option<ReferenceReuse>,
    /// Run every edit a second time with its true mask, by which only what the truth changes is repainted, and compare
    #[arg(long)]
    true_mask: bool,
    /// Print the nearest image of each wrong result
    #[arg(long)]
    mistakes: bool,
    /// Write the scores of every edit into this file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write a strip for each category into this folder: reference images, result, truth
    #[arg(long, value_name = "DIR")]
    strips: Option<PathBuf>,
    /// Replace existing strips, and files that this program reads
    #[arg(long)]
    overwrite: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Context {
    /// The edit's own
    #[default]
    Right,
    /// Those of another edit of the category
    Wrong,
    /// None
    Missing,
}

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| run(&args))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let builder = args.load.builder()?;
    let mut outputs = Outputs::overwriting(args.overwrite);
    args.load.inputs(&builder.checkpoint(&args.model)?, &mut outputs)?;
    outputs.collection("--data", &args.dataset.data, judge::files(&args.dataset.data));
    if let Some(path) = &args.csv {
        outputs.file("--csv", path)?;
    }
    if let Some(folder) = &args.strips {
        create_folder(folder)?;
    }
    emoji::ensure(&args.dataset.data, None)?;
    let mut by_category = BTreeMap::<String, Vec<Edit>>::new();
    for edit in edits(&args.dataset.data, &[&args.dataset.split])? {
        by_category.entry(edit.category.clone()).or_default().push(edit);
    }
    if by_category.is_empty() {
        bail!(
            "{} has no edits of split `{}`",
            args.dataset.data.display(),
            args.dataset.split
        );
    }
    by_category.values_mut().for_each(|edits| edits.truncate(args.most));
    if let Some(folder) = &args.strips {
        let strips: Vec<PathBuf> = by_category.keys().map(|category| strip_of(folder, category)).collect();
        outputs.derived("--strips", "folder", &strips)?;
    }
    let mut judge = Judge::new(builder.load(&args.model)?, &args.dataset.data)?.step_cache(args.step_cache);
    judge.reference_reuse.clone_from(&args.reference_reuse);
    let runs = 1 + usize::from(args.true_mask);
    let bar = progress::bar("editing", runs * by_category.values().map(Vec::len).sum::<usize>());
    let (mut table, mut masked) = (Table::new(), Masked::default());
    let mut rows = csv::Writer::from_writer(Vec::new());
    rows.write_record(COLUMNS)?;
    for (category, edits) in &by_category {
        for (index, edit) in edits.iter().enumerate() {
            let references = match args.context {
                Context::Right => edit.source.clone(),
                Context::Wrong => edits[(index + edits.len() / 2) % edits.len()].source.clone(),
                Context::Missing => Vec::new(),
            };
            let judged = judge.judge(edit, &references, args.seed)?;
            if args.mistakes && !judged.score.right {
                let instead = judged.score.mistaken_for.and_then(|index| edit.candidates.get(index));
                let (target, instead) = (
                    edit.target.display(),
                    instead.map_or("the source".to_owned(), |p| p.display().to_string()),
                );
                announce(format_args!("{category}: {} -> {target}: {instead}", edit.instruction));
            }
            rows.write_record(row(edit, &judged.score))?;
            table.add(category, judged.score);
            bar.inc(1);
            if args.true_mask {
                judge.true_mask = true;
                let score = judge.judge(edit, &references, args.seed)?.score;
                judge.true_mask = false;
                masked.add(category, &judged.score, score);
                bar.inc(1);
            }
            // The first of a category, without selection.
            if let (Some(folder), 0) = (&args.strips, index) {
                let path = strip_of(folder, category);
                kontext::io::save_image(&judged.strip(), &path, &[])?;
                announce(format_args!("wrote {}: {}", path.display(), edit.instruction));
            }
        }
    }
    bar.finish_and_clear();
    if let Some(path) = &args.csv {
        write(path, &String::from_utf8(rows.into_inner()?)?)?;
    }
    say(format_args!("{table}"))?;
    if args.true_mask {
        say(format_args!("\nWith the true mask:\n\n{}", masked.table))?;
        masked.say()?;
    }
    Ok(())
}

/// Results under the true mask.
#[derive(Debug, Default)]
struct Masked {
    table: Table,
    /// Gains in dB over the result without it, by the category's group.
    gains: BTreeMap<String, Vec<f64>>,
    /// Edits with pixels that should stay, and those of them in which all did, to the byte.
    kept: [usize; 2],
}

/// Resamples of the interval of a mean gain.
const RESAMPLES: usize = 1000;

impl Masked {
    fn add(&mut self, category: &str, without: &EditScore, with: EditScore) {
        let group = category.split_once('/').map_or(category, |(group, _)| group);
        let gain = with.psnr.min(PSNR_CAP) - without.psnr.min(PSNR_CAP);
        self.gains.entry(group.to_owned()).or_default().push(gain);
        if let Some(untouched) = with.untouched_psnr {
            self.kept[0] += 1;
            self.kept[1] += usize::from(untouched == f64::INFINITY);
        }
        self.table.add(category, with);
    }

    /// Prints the mean gain of each group with its 95 % interval, and the edits that left the rest as it was.
    fn say(&self) -> anyhow::Result<()> {
        for (group, gains) in &self.gains {
            let gain = Estimate::of_mean(gains, RESAMPLES)?;
            let worse = gains.iter().filter(|gain| **gain < -0.1).count();
            say(format_args!(
                "{group}: {:+.2} dB ({:+.2} to {:+.2}) by the mask over {} edits, {worse} of them worse by more than 0.1 dB",
                gain.value,
                gain.low,
                gain.high,
                gains.len()
            ))?;
        }
        let [all, kept] = self.kept;
        say(format_args!(
            "what should stay has the source's bytes in {kept} of {all} edits"
        ))
    }
}

/// Returns the file of a category's strip.
fn strip_of(folder: &Path, category: &str) -> PathBuf {
    let name = if category.is_empty() { "no-category" } else { category };
    folder.join(format!("{}.png", name.replace('/', "-")))
}

const COLUMNS: [&str; 9] = [
    "category",
    "instruction",
    "source",
    "target",
    "right",
    "copied",
    "psnr",
    "copy_psnr",
    "reconstruction_psnr",
];

fn row(edit: &Edit, score: &EditScore) -> [String; 9] {
    let sources: Vec<_> = edit.source.iter().map(|path| path.display().to_string()).collect();
    let decibels = |value: f64| format!("{value:.2}");
    let text = |text: &str| cell::csv(text).into_owned();
    [
        text(&edit.category),
        text(&edit.instruction),
        text(&sources.join(" ")),
        text(&edit.target.display().to_string()),
        score.right.to_string(),
        score.copied.to_string(),
        decibels(score.psnr),
        score.copy_psnr.map(decibels).unwrap_or_default(),
        decibels(score.reconstruction_psnr),
    ]
}
