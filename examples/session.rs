//! Edits an image in turns, typed one after the other: `cargo xtask run --release --example session`.
//!
//! Lines are prompts, or commands that begin with a colon (`:help` lists them). They may also come from a pipe.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::bail;
use clap::Parser;
use kontext::image::RgbImage;
use kontext::session::{KeepUnchanged, Turn};
use kontext::{Pipeline, Session};
use kontext_cli::args::{device, positive, whole};
use kontext_cli::command::{Command, HELP};
use kontext_cli::input::{Input, Lines};
use kontext_cli::interrupt::Interrupt;
use kontext_cli::outputs::Outputs;
use kontext_cli::run::numbered;
use kontext_cli::{PartArgs, announce, complain, note, noted, notes, progress, shipped};

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
    /// Guidance value
    #[arg(long, allow_negative_numbers = true)]
    guidance: Option<f64>,
    /// Pixels of the image that the model works at
    #[arg(long, value_name = "PIXELS", value_parser = positive::<u64>, allow_negative_numbers = true)]
    max_area: Option<u64>,
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
    let mut desk = Desk {
        session,
        args,
        references: Vec::new(),
        unsaved,
        interrupt: Interrupt::install(move || {
            note_unsaved(seen.load(Ordering::Relaxed));
        })?,
        hung_up: Arc::new(AtomicBool::new(false)),
    };
    // A run that is cancelled leaves the turns before it, which are saved.
    let (running, hung_up) = (desk.interrupt.clone(), Arc::clone(&desk.hung_up));
    let lines = Lines::of_stdin(move || {
        hung_up.store(true, Ordering::Release);
        running.cancel();
    })?;
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

/// A session and the user's settings for the next turns.
struct Desk<'a> {
    session: Session,
    args: &'a Args,
    references: Vec<Arc<RgbImage>>,
    /// Number of turns since the session was saved or loaded.
    unsaved: Arc<AtomicUsize>,
    interrupt: Interrupt,
    /// `true` once the system has asked the program to end.
    hung_up: Arc<AtomicBool>,
}

impl Desk<'_> {
    /// Makes the options that are given the defaults of every turn, and notes which of a loaded session they replace.
    fn prepare(&mut self) {
        let Args {
            seed,
            steps,
            guidance,
            max_area,
            ..
        } = *self.args;
        let defaults = &mut self.session.defaults;
        set("--seed", seed, &mut defaults.seed);
        set("--steps", steps, &mut defaults.steps);
        set("--guidance", guidance, &mut defaults.guidance);
        set("--max-area", max_area, &mut defaults.max_area);
    }

    fn obey(&mut self, command: Command) -> anyhow::Result<()> {
        let session = &mut self.session;
        match command {
            Command::Nothing | Command::Quit => return Ok(()),
            Command::Edit(prompt) => return self.edit(&prompt),
            Command::Help => return done(HELP),
            Command::History => return done(self.history()),
            Command::Undo if !session.undo() => bail!("this is the first image; there is nothing to undo"),
            Command::Redo if !session.redo() => bail!("this is the last turn; there is nothing to redo"),
            Command::Undo | Command::Redo => {}
            Command::Branch(id) => {
                session.branch(id)?;
            }
            Command::Seed(seed) => {
                session.defaults.seed = seed;
                return done(seed.map_or("seeds are drawn".to_owned(), |seed| format!("seed {seed}")));
            }
            Command::Reference(path) => {
                // Read now and once: the file may be a pipe.
                self.references.push(kontext::open_image(&path)?.into());
                return done("the next turn sees it");
            }
            Command::KeepOn => {
                session.keep_unchanged = Some(KeepUnchanged::default());
                return done("what a turn does not change stays as it was");
            }
            Command::KeepMask(path) => {
                session.keep_unchanged = Some(KeepUnchanged::Mask(kontext::io::open_mask(path)?));
                return done("what is black in the mask stays as it was");
            }
            Command::KeepOff => {
                session.keep_unchanged = None;
                return done("images are as the model makes them");
            }
            Command::Reencode(on) => {
                session.reencode = on;
                return done(if on {
                    "each image is encoded anew"
                } else {
                    "latents are handed over"
                });
            }
            Command::Save(folder) => {
                session.save(&folder)?;
                self.unsaved.store(0, Ordering::Relaxed);
                let session = &self.session;
                return done(format_args!(
                    "saved {} turns in {}",
                    session.turns().len() - 1,
                    folder.display()
                ));
            }
            Command::Load { folder, drop } => {
                let unsaved = self.unsaved.load(Ordering::Relaxed);
                if unsaved > 0 && !drop {
                    bail!(
                        "{unsaved} turn(s) are not saved; `:save DIR` keeps them, `:load! {}` drops all but their images",
                        folder.display()
                    );
                }
                self.session = self.session.pipeline().restore_session(folder)?;
                self.unsaved.store(0, Ordering::Relaxed);
                self.prepare();
            }
        }
        self.show();
        Ok(())
    }

    fn edit(&mut self, prompt: &str) -> anyhow::Result<()> {
        self.args.check_image(self.session.turns().len())?;
        let mut request = self.session.request(prompt);
        for image in &self.references {
            request = request.reference(image);
        }
        let cancel = self.interrupt.begin();
        if self.hung_up.load(Ordering::Acquire) {
            // The request came before the run could be cancelled.
            cancel.cancel();
        }
        let mut sampled = progress::sampling();
        let turn = self.session.run_with(&request, |event| {
            match notes::of(&event) {
                Some(line) => note(line),
                None => sampled(&event),
            }
            cancel.check()
        });
        self.interrupt.end();
        let turn = turn?;
        self.references.clear();
        self.unsaved.fetch_add(1, Ordering::Relaxed);
        let path = numbered(&self.args.out, turn.id);
        turn.save(&path)?;
        done(format_args!(
            "turn {}: wrote {} (seed {})",
            turn.id,
            path.display(),
            turn.seed().unwrap_or_default()
        ))
    }

    /// Writes the unsaved turns into a new folder.
    fn rescue(&self) -> anyhow::Result<()> {
        if self.unsaved.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        let named = |number: usize| {
            let mut name = self.args.out.file_stem().unwrap_or_default().to_owned();
            name.push(if number == 1 {
                "-unsaved".to_owned()
            } else {
                format!("-unsaved-{number}")
            });
            self.args.out.with_file_name(name)
        };
        let Some(folder) = (1..).map(named).find(|folder| !folder.exists()) else {
            bail!("no name is free for the session");
        };
        self.session.save(&folder)?;
        done(format_args!("saved the session in {}", folder.display()))
    }

    /// Prints the current turn.
    fn show(&self) {
        let turn = self.session.current();
        match turn.prompt() {
            "" => announce(format_args!(
                "turn {}: {}x{} pixels",
                turn.id,
                turn.image.width(),
                turn.image.height()
            )),
            prompt => announce(format_args!("turn {}: {prompt}", turn.id)),
        }
    }

    /// Returns the list of turns.
    fn history(&self) -> String {
        let current = self.session.current().id;
        let line = |turn: &Turn| {
            let mark = if turn.id == current { '*' } else { ' ' };
            match (turn.parent, turn.seed()) {
                (Some(parent), Some(seed)) => {
                    format!("{mark} {} from {parent}: {} (seed {seed})", turn.id, turn.prompt())
                }
                _ => {
                    let (width, height) = turn.image.dimensions();
                    format!("{mark} {}: {width}x{height} pixels", turn.id)
                }
            }
        };
        self.session.turns().iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Sets an option that is given, and notes that it replaces another value of a loaded session.
fn set<T: Display + PartialEq + Copy>(flag: &str, given: Option<T>, default: &mut Option<T>) {
    let Some(given) = given else { return };
    if let Some(saved) = default.filter(|saved| *saved != given) {
        note(format_args!("{flag} {given} replaces {saved} of the loaded session"));
    }
    *default = Some(given);
}

/// Prints the answer to a command.
fn done(answer: impl Display) -> anyhow::Result<()> {
    announce(answer);
    Ok(())
}
