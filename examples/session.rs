//! Edits an image in turns, typed one after the other: `cargo xtask run --release --example session`.
//!
//! Lines are prompts, or commands that begin with a colon (`:help` lists them). They may also come from a pipe.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Parser;
use kontext::crates::kontext_device::device;
use kontext::image::RgbImage;
use kontext::session::KeepUnchanged;
use kontext::{Pipeline, Request, Session};
use kontext_cli::interrupt::Interrupt;
use kontext_cli::run::numbered;
use kontext_cli::{complain, note, notes, progress, say, shipped};

const HELP: &str = "\
a prompt          edits the image; the result is the image then
:undo, :redo      to the turn before, and back
:branch N         to turn N; the next edit begins there
:history          all turns; * is the current one
:seed N           the seed of the turns that follow; without N a new one is drawn for each
:reference FILE   a further reference image for the next turn
:keep on          puts the original pixels back where a turn changed nothing
:keep mask FILE   lets turns change only what is white in this image, which has no transparency
:keep off
:reencode on      encodes each image anew, in place of going on with its latents; off
:save DIR         writes the session into a folder
:load DIR         goes on with one that was saved
:help
:quit             as the end of the input; Ctrl-C stops a turn that runs";

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
    /// Seed of the noise of each turn; drawn for each if not given
    #[arg(long)]
    seed: Option<u64>,
    /// Sampling steps
    #[arg(long)]
    steps: Option<usize>,
    /// Guidance value
    #[arg(long)]
    guidance: Option<f64>,
    /// Pixels of the image that the model works at
    #[arg(long, value_name = "PIXELS")]
    max_area: Option<u64>,
    /// cpu, cuda or cuda:N; the first CUDA device if not given, else the CPU
    #[arg(long)]
    device: Option<String>,
}

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| run(&args))
}

fn run(args: &Args) -> anyhow::Result<()> {
    kontext::io::check_writable(&args.out)?;
    let mut builder = Pipeline::builder();
    if let Some(text) = &args.device {
        builder = builder.device(device::parse(text)?);
    }
    let pipe = Arc::new(builder.load_with(&args.model, progress::loading())?);
    let session = match &args.load {
        Some(folder) => pipe.restore_session(folder)?,
        None => pipe.session(kontext::open_image(&args.image)?),
    };
    let mut desk = Desk {
        session,
        args,
        references: Vec::new(),
        interrupt: Interrupt::install()?,
    };
    if args.load.is_none() {
        desk.prepare();
    }
    desk.show()?;
    let interactive = std::io::stdin().is_terminal();
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if interactive {
            let mut terminal = std::io::stderr();
            write!(terminal, "> ")
                .and_then(|()| terminal.flush())
                .context("cannot write to the terminal")?;
        }
        let Some(line) = lines.next() else { return Ok(()) };
        let command = match line.context("cannot read the standard input")?.parse::<Command>() {
            Ok(Command::Quit) => return Ok(()),
            command => command,
        };
        // An error ends the turn, but not the program.
        if let Err(error) = command.and_then(|command| desk.obey(command)) {
            complain(&error);
        }
    }
}

/// A line of input.
#[derive(Debug, PartialEq)]
enum Command {
    Nothing,
    Edit(String),
    Undo,
    Redo,
    Branch(usize),
    History,
    Seed(Option<u64>),
    Reference(PathBuf),
    KeepOn,
    KeepMask(PathBuf),
    KeepOff,
    Reencode(bool),
    Save(PathBuf),
    Load(PathBuf),
    Help,
    Quit,
}

impl FromStr for Command {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Self> {
        let line = line.trim();
        let Some(command) = line.strip_prefix(':') else {
            return Ok(if line.is_empty() {
                Self::Nothing
            } else {
                Self::Edit(line.to_owned())
            });
        };
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        let path = || {
            if rest.is_empty() {
                bail!(":{name} wants a path behind it")
            } else {
                Ok(PathBuf::from(rest))
            }
        };
        let mask = rest.strip_prefix("mask ").map(|path| PathBuf::from(path.trim()));
        Ok(match (name, rest) {
            ("undo", "") => Self::Undo,
            ("redo", "") => Self::Redo,
            ("branch", number) => Self::Branch(number.parse().context(":branch wants the number of a turn")?),
            ("history", "") => Self::History,
            ("seed", "") => Self::Seed(None),
            ("seed", number) => Self::Seed(Some(number.parse().context(":seed wants a whole number, or nothing")?)),
            ("reference", _) => Self::Reference(path()?),
            ("keep", "on") => Self::KeepOn,
            ("keep", "off") => Self::KeepOff,
            ("keep", _) => Self::KeepMask(mask.context(":keep wants on, off, or mask and a file")?),
            ("reencode", "on") => Self::Reencode(true),
            ("reencode", "off") => Self::Reencode(false),
            ("save", _) => Self::Save(path()?),
            ("load", _) => Self::Load(path()?),
            ("help", "") => Self::Help,
            ("quit", "") => Self::Quit,
            _ => bail!("no command is {line:?}; :help names them all"),
        })
    }
}

/// A session and the user's settings for the next turns.
struct Desk<'a> {
    session: Session,
    args: &'a Args,
    references: Vec<Arc<RgbImage>>,
    interrupt: Interrupt,
}

impl Desk<'_> {
    /// Makes the program's options the defaults of every turn.
    fn prepare(&mut self) {
        let Args {
            seed,
            steps,
            guidance,
            max_area,
            ..
        } = *self.args;
        let defaults = &mut self.session.defaults;
        (defaults.seed, defaults.steps, defaults.guidance, defaults.max_area) = (seed, steps, guidance, max_area);
    }

    fn obey(&mut self, command: Command) -> anyhow::Result<()> {
        let session = &mut self.session;
        match command {
            Command::Nothing | Command::Quit => return Ok(()),
            Command::Edit(prompt) => return self.edit(&prompt),
            Command::Help => return say(HELP),
            Command::History => return self.history(),
            Command::Undo if !session.undo() => bail!("this is the first image; there is nothing to undo"),
            Command::Redo if !session.redo() => bail!("this is the last turn; there is nothing to redo"),
            Command::Undo | Command::Redo => {}
            Command::Branch(id) => {
                session.branch(id)?;
            }
            Command::Seed(seed) => {
                session.defaults.seed = seed;
                return say(seed.map_or("seeds are drawn".to_owned(), |seed| format!("seed {seed}")));
            }
            Command::Reference(path) => {
                // Read now and once: the file may be a pipe.
                self.references.push(kontext::open_image(&path)?.into());
                return say("the next turn sees it");
            }
            Command::KeepOn => {
                session.keep_unchanged = Some(KeepUnchanged::default());
                return say("what a turn does not change stays as it was");
            }
            Command::KeepMask(path) => {
                session.keep_unchanged = Some(KeepUnchanged::Mask(kontext::io::open_mask(path)?));
                return say("what is black in the mask stays as it was");
            }
            Command::KeepOff => {
                session.keep_unchanged = None;
                return say("images are as the model makes them");
            }
            Command::Reencode(on) => {
                session.reencode = on;
                return say(if on {
                    "each image is encoded anew"
                } else {
                    "latents are handed over"
                });
            }
            Command::Save(folder) => {
                session.save(&folder)?;
                return say(format_args!(
                    "saved {} turns in {}",
                    session.turns().len() - 1,
                    folder.display()
                ));
            }
            Command::Load(folder) => self.session = self.session.pipeline().restore_session(folder)?,
        }
        self.show()
    }

    fn edit(&mut self, prompt: &str) -> anyhow::Result<()> {
        let mut request: Request = self.session.defaults.clone().prompt(prompt);
        for image in &self.references {
            request = request.reference(image);
        }
        let cancel = self.interrupt.begin();
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
        let path = numbered(&self.args.out, turn.id);
        turn.save(&path)?;
        say(format_args!(
            "turn {}: wrote {} (seed {})",
            turn.id,
            path.display(),
            turn.seed().unwrap_or_default()
        ))
    }

    /// Prints the current turn.
    fn show(&self) -> anyhow::Result<()> {
        let turn = self.session.current();
        match turn.prompt() {
            "" => say(format_args!(
                "turn {}: {}x{} pixels",
                turn.id,
                turn.image.width(),
                turn.image.height()
            )),
            prompt => say(format_args!("turn {}: {prompt}", turn.id)),
        }
    }

    fn history(&self) -> anyhow::Result<()> {
        let current = self.session.current().id;
        for turn in self.session.turns() {
            let mark = if turn.id == current { '*' } else { ' ' };
            match (turn.parent, turn.seed()) {
                (Some(parent), Some(seed)) => {
                    say(format_args!(
                        "{mark} {} from {parent}: {} (seed {seed})",
                        turn.id,
                        turn.prompt()
                    ))?;
                }
                _ => {
                    let (width, height) = turn.image.dimensions();
                    say(format_args!("{mark} {}: {width}x{height} pixels", turn.id))?;
                }
            }
        }
        Ok(())
    }
}
