//! Edits an image in turns, typed one after the other: `cargo xtask run --release --example session`.
//!
//! Lines are prompts, or commands that begin with a colon (`:help` lists them). They may also come from a
//! pipe.

mod desk;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use clap::Parser;
use kontext::{Pipeline, Sampler};
use kontext_cli::args::{device, positive, whole};
use kontext_cli::command::Command;
use kontext_cli::external_embedder::ExternalEmbedder;
use kontext_cli::input::{Input, Lines};
use kontext_cli::interrupt::Interrupt;
use kontext_cli::outputs::Outputs;
use kontext_cli::run::numbered;
use kontext_cli::{PartArgs, complain, noted, progress, shipped};

use desk::Desk;

/// Edit an image in turns.
#[derive(Debug, Parser)]
struct Args {
    /// Folder of the model
    #[arg(long, value_name = "DIR", default_value_os_t = shipped::model())]
    model: PathBuf,
    /// The first image. An emoji if not given
    #[arg(long, value_name = "FILE", default_value_os_t = shipped::data("emoji-source.png"), hide_default_value = true)]
    image: PathBuf,
    /// Continue a saved session instead
    #[arg(long, value_name = "DIR", conflicts_with = "image")]
    load: Option<PathBuf>,
    /// The image of turn N is written to this file with -N before its extension
    #[arg(long, value_name = "FILE", default_value = "session.png")]
    out: PathBuf,
    /// Replace existing files of these names
    #[arg(long)]
    overwrite: bool,
    /// Seed of the noise of each turn; drawn for each if not given
    #[arg(long, value_parser = whole, allow_negative_numbers = true)]
    seed: Option<u64>,
    /// Sampling steps
    #[arg(long, value_parser = positive::<usize>, allow_negative_numbers = true)]
    steps: Option<usize>,
    /// Rule of a step: euler, consistency, heun or dpmpp_2m; that of the model if not given
    #[arg(long, value_name = "NAME")]
    sampler: Option<Sampler>,
    /// Fixed shift of the noise levels instead of the model's
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    shift: Option<f64>,
    /// Guidance value
    #[arg(long, allow_negative_numbers = true)]
    guidance: Option<f64>,
    /// Pixels of the image that the model works at
    #[arg(long, value_name = "PIXELS", value_parser = positive::<u64>, allow_negative_numbers = true)]
    max_area: Option<u64>,
    /// A command that embeds images, such as a network for faces: after each turn its likeness to the first image is
    /// printed. It answers each line of JSON on its stdin by one on its stdout
    #[arg(long, value_name = "COMMAND")]
    identity: Option<String>,
    /// cpu, cuda or cuda:N; the first CUDA device if not given, else the CPU
    #[arg(long)]
    device: Option<String>,
    #[command(flatten)]
    parts: PartArgs,
}

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| run(&args))
}

fn run(args: &Args) -> anyhow::Result<()> {
    if args.load.is_none() {
        args.check_image(1)?;
    }
    let identity = args.identity.as_deref().map(ExternalEmbedder::start);
    let identity = identity.transpose().context("--identity")?;
    let builder = args.parts.apply(Pipeline::builder());
    let builder = builder.device(device(args.device.as_deref())?);
    let pipe = Arc::new(builder.load_with(&args.model, progress::loading())?);
    let session = match &args.load {
        Some(folder) => pipe.restore_session(folder)?,
        None => pipe.session(kontext::open_image(&args.image)?),
    };
    args.check_image(session.turns().len())?;
    let unsaved = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&unsaved);
    let interrupt = Interrupt::install(move || {
        note_unsaved(seen.load(Ordering::Relaxed));
    })?;
    // A run that is cancelled leaves the turns before it, which are saved.
    let running = interrupt.clone();
    let lines = Lines::of_stdin(move || running.cancel())?;
    let mut desk = Desk {
        session,
        args,
        identity,
        references: Vec::new(),
        unsaved,
        interrupt,
        gone: lines.gone(),
    };
    desk.prepare();
    desk.show();
    let interactive = std::io::stdin().is_terminal();
    loop {
        if interactive {
            let mut terminal = std::io::stderr();
            let _ = write!(terminal, "> ").and_then(|()| terminal.flush());
        }
        let line = match lines.next() {
            Input::Line(line) => line,
            Input::End => break,
            Input::Gone(error) => {
                if let Some(error) = error {
                    complain(&anyhow::Error::new(error).context("cannot read the standard input"));
                }
                return desk.rescue();
            }
        };
        let command = match line.and_then(|line| line.parse()) {
            Ok(Command::Quit) => break,
            command => command,
        };
        // An error ends the turn, but not the program.
        if let Err(error) = command.and_then(|command| desk.obey(command)) {
            complain(&error);
        }
    }
    if note_unsaved(desk.unsaved.load(Ordering::Relaxed)) {
        Ok(())
    } else {
        // Nobody reads the note.
        desk.rescue()
    }
}

impl Args {
    /// Checks that the image of a turn can be written and replaces no file.
    fn check_image(&self, turn: usize) -> anyhow::Result<()> {
        // A slash at its end is not in the names of the images.
        kontext::crates::kontext_core::output_path(&self.out)?;
        Outputs::overwriting(self.overwrite).numbered("--out", &[numbered(&self.out, turn)])
    }
}

/// Notes that turns are not saved, if there are any; returns `false` if nobody reads the note.
fn note_unsaved(turns: usize) -> bool {
    turns == 0
        || noted(format_args!(
            "{turns} turn(s) are not saved, and only their images are kept; `:save DIR` keeps a session"
        ))
}
