//! Measures how far edits drift, turn by turn: `cargo xtask run --release --example drift`.
//!
//! Runs walks through the emoji dataset, with a known result for every turn, by each method of handing a result to the
//! next turn. The first run fetches the dataset.

mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use kontext::image::RgbImage;
use kontext::session::DifferenceMap;
use kontext::{Checkpoint, Device, Pipeline, Size};
use kontext_bench::drift::{self, Drift, MapQuality, Networks, plot};
use kontext_bench::metrics::{Embedder, Perceptual};
use kontext_cli::args::positive;
use kontext_cli::external_embedder::ExternalEmbedder;
use kontext_cli::images::ImageCache;
use kontext_cli::judge;
use kontext_cli::outputs::Outputs;
use kontext_cli::walker::{Method, Walker};
use kontext_cli::walks::{Edits, Walk};
use kontext_cli::{emoji, progress, save, say, shipped};

use report::{marked, panels, row, tables};

/// Measure the drift of images over turns of edits.
#[derive(Debug, Parser)]
struct Args {
    /// Folder of the model
    #[arg(long, value_name = "DIR", default_value_os_t = shipped::model())]
    model: PathBuf,
    /// The dataset's folder; made if it is not there
    #[arg(long, value_name = "DIR", default_value = "target/emoji")]
    data: PathBuf,
    /// Turns of a walk
    #[arg(long, default_value_t = 10, value_parser = positive::<usize>, allow_negative_numbers = true)]
    turns: usize,
    /// Walks of every kind
    #[arg(long, default_value_t = 8, value_parser = positive::<usize>, allow_negative_numbers = true)]
    each: usize,
    /// Seed of a walk's first turn
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Weights of a feature network, for the columns PDist and identity
    #[arg(long, value_name = "FILE")]
    perceptual: Option<PathBuf>,
    /// A command that embeds images, such as a network for faces, for the columns of identity: it answers each line of
    /// JSON on its stdin by one on its stdout
    #[arg(long, value_name = "COMMAND")]
    identity: Option<String>,
    /// Minimum difference in levels that counts as a change
    #[arg(long, default_value_t = DifferenceMap::default().threshold)]
    threshold: f32,
    /// Standard deviation of the smoothing before it, in pixels
    #[arg(long, default_value_t = DifferenceMap::default().smooth)]
    smooth: f32,
    /// Pixels around a change that may change with it
    #[arg(long, default_value_t = DifferenceMap::default().grow)]
    grow: f32,
    /// Pixels over which the map falls to zero
    #[arg(long, default_value_t = DifferenceMap::default().feather)]
    feather: f32,
    /// Measure the difference maps only
    #[arg(
        long,
        alias = "maps-alone",
        conflicts_with_all = ["turns", "each", "perceptual", "identity", "markdown", "plot"]
    )]
    maps_only: bool,
    /// Write the tables to this file: between its two marks, or as a new file
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write the curves to this SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| run(&args))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let mut outputs = Outputs::default();
    outputs.model("--model", &Checkpoint::find(&args.model)?);
    outputs.collection("--data", &args.data, judge::files(&args.data));
    if let Some(path) = &args.perceptual {
        outputs.read("--perceptual", path);
    }
    if let Some(path) = &args.markdown {
        outputs.file("--markdown", path)?;
        // A file without marks is refused now.
        marked(path, "")?;
    }
    if let Some(path) = &args.plot {
        outputs.file("--plot", path)?;
    }
    emoji::ensure(&args.data, None)?;
    let perceptual = args
        .perceptual
        .as_deref()
        .map(|path| Perceptual::open(path, None, Device::Cpu))
        .transpose()?;
    let identity = args.identity.as_deref().map(ExternalEmbedder::start);
    let identity = identity.transpose().context("--identity")?;
    let networks = Networks {
        perceptual: perceptual.as_ref(),
        embedder: identity.as_ref().map(|embedder| embedder as &dyn Embedder),
    };
    let map = DifferenceMap {
        threshold: args.threshold,
        smooth: args.smooth,
        grow: args.grow,
        feather: args.feather,
    };
    let edits = Edits::open(&args.data)?;
    let kinds = if args.maps_only {
        Vec::new()
    } else {
        walks(&edits, args)?
    };
    let walker = Walker::new(Pipeline::load(&args.model)?, map)?;
    let Size { width, height } = size(&walker, &args.data, &edits)?;
    let mut cache = ImageCache::new(&args.data);
    let mut image = |path: &Path| cache.get(path, width, height);
    let mut text = maps(&walker, &edits, &mut image, args)?;
    if args.maps_only {
        return say(text);
    }
    let mut drifts = Vec::new();
    for (title, walks) in kinds {
        let drift = measure(&walker, &walks, &mut image, networks, args.seed)?;
        text.push_str(&tables(title, &walks, &drift, networks)?);
        drifts.push((title, drift));
    }
    // The files are written also if the reader of stdout is gone.
    let said = say(&text);
    if let Some(path) = &args.plot {
        save(path, &plot(&panels(&drifts))?)?;
    }
    if let Some(path) = &args.markdown {
        save(path, &marked(path, &text)?)?;
    }
    said
}

/// Returns the walks of both kinds, by their titles.
fn walks(edits: &Edits, args: &Args) -> anyhow::Result<Vec<(&'static str, Vec<Walk>)>> {
    let kinds = [
        ("There and back", edits.there_and_back(args.turns, args.each)),
        ("Edits elsewhere", edits.elsewhere(args.turns, args.each)),
    ];
    if let Some((title, _)) = kinds.iter().find(|(_, walks)| walks.is_empty()) {
        bail!(
            "the dataset has no walks of {} turns ({title}); give fewer --turns",
            args.turns
        );
    }
    Ok(kinds.into())
}

/// Returns the size that the model works at.
fn size(walker: &Walker, data: &Path, edits: &Edits) -> anyhow::Result<Size> {
    let edit = edits
        .held_out("local/clock")
        .next()
        .context("the dataset has no held-out edits")?;
    let source = kontext::open_image(data.join(&edit.source[0]))?;
    Ok(walker.pipe.plan(&kontext::Request::edit(&source, ""))?.target.size())
}

/// Runs every walk by every method.
fn measure(
    walker: &Walker,
    walks: &[Walk],
    image: &mut impl FnMut(&Path) -> anyhow::Result<RgbImage>,
    networks: Networks<'_>,
    seed: u64,
) -> anyhow::Result<Drift> {
    let mut drift = Drift::new();
    let bar = progress::bar("walking", walks.len() * Method::ALL.len());
    for walk in walks {
        let start = image(&walk.start)?;
        let truths = walk
            .turns
            .iter()
            .map(|turn| image(&turn.truth))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let instructions: Vec<&str> = walk.turns.iter().map(|turn| turn.instruction.as_str()).collect();
        for method in Method::ALL {
            let results = walker.walk(method, &start, &instructions, seed)?;
            let walk = drift::Walk {
                start: &start,
                truths: &truths,
                results: &results,
            };
            drift.add(method.name(), walk, networks)?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(drift)
}

/// Returns a table of local edits that keep unchanged pixels: quality of the difference map, and of the image.
fn maps(
    walker: &Walker,
    edits: &Edits,
    image: &mut impl FnMut(&Path) -> anyhow::Result<RgbImage>,
    args: &Args,
) -> anyhow::Result<String> {
    const CATEGORIES: [&str; 10] = [
        "global/background",
        "local/clock",
        "local/colour",
        "local/expression",
        "local/gender",
        "local/hair",
        "local/moon",
        "local/skin-tone",
        "text/keycap",
        "text/letter",
    ];
    let mut table =
        "### Difference maps\n\n| edits | n | covered | kept | kept, of the image itself | PSNR | PSNR, kept |\n\
                     | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
            .to_owned();
    let mut all: [Vec<f64>; 5] = Default::default();
    for category in CATEGORIES {
        let mut columns: [Vec<f64>; 5] = Default::default();
        for edit in edits.held_out(category) {
            let (source, truth) = (image(&edit.source[0])?, image(&edit.target)?);
            let result = walker.walk(Method::Latents, &source, &[&edit.instruction], args.seed)?;
            let mut session = walker.pipe.session(source.clone());
            session.keep_unchanged = Some(kontext::session::KeepUnchanged::Difference(walker.map));
            let request = kontext::Request::generate(&edit.instruction).seed(args.seed);
            let turn = walker.turn(&mut session, &request)?;
            let map = turn.changed.as_ref().context("the turn has no map")?;
            // Against the image itself, the autoencoder's losses look like changes.
            let naive = walker.map.map(&source, &result[0], 1.0)?;
            let (Some(own), Some(naive)) = (
                MapQuality::of(map, &source, &truth)?,
                MapQuality::of(&naive, &source, &truth)?,
            ) else {
                continue;
            };
            let decibels = |image: &RgbImage| kontext_bench::metrics::psnr(image, &truth);
            let values = [
                own.covered,
                own.kept,
                naive.kept,
                decibels(&result[0])?,
                decibels(&turn.image)?,
            ];
            columns
                .iter_mut()
                .zip(values)
                .for_each(|(column, value)| column.push(value));
        }
        if !columns[0].is_empty() {
            row(&mut table, category, &columns);
            all.iter_mut().zip(columns).for_each(|(all, column)| all.extend(column));
        }
    }
    if all[0].is_empty() {
        bail!("no held-out edit of the dataset changes a part of its image only");
    }
    row(&mut table, "**all**", &all);
    Ok(table + "\n")
}
