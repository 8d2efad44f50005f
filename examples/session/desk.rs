//! A session at work.

use std::fmt::Display;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, bail};
use kontext::image::RgbImage;
use kontext::session::{KeepUnchanged, Turn};
use kontext::{Event, Session};
use kontext_bench::metrics;
use kontext_cli::command::{Command, HELP};
use kontext_cli::external_embedder::ExternalEmbedder;
use kontext_cli::interrupt::Interrupt;
use kontext_cli::run::numbered;
use kontext_cli::{announce, note, notes, progress};

use super::Args;

/// A session and the user's settings for the next turns.
pub(super) struct Desk<'a> {
    pub(super) session: Session,
    pub(super) args: &'a Args,
    /// Network that compares each turn with the first image.
    pub(super) identity: Option<ExternalEmbedder>,
    pub(super) references: Vec<Arc<RgbImage>>,
    /// Number of turns since the session was saved or loaded.
    pub(super) unsaved: Arc<AtomicUsize>,
    pub(super) interrupt: Interrupt,
    /// `true` once the system has asked the program to end.
    pub(super) gone: Arc<AtomicBool>,
}

impl Desk<'_> {
    /// Makes the options that are given the defaults of every turn, and notes which of a loaded session they
    /// replace.
    pub(super) fn prepare(&mut self) {
        let Args {
            seed,
            steps,
            sampler,
            shift,
            guidance,
            max_area,
            ..
        } = *self.args;
        let defaults = &mut self.session.defaults;
        set("--seed", seed, &mut defaults.seed);
        set("--steps", steps, &mut defaults.steps);
        set("--sampler", sampler, &mut defaults.sampler);
        set("--shift", shift, &mut defaults.shift);
        set("--guidance", guidance, &mut defaults.guidance);
        set("--max-area", max_area, &mut defaults.max_area);
    }

    pub(super) fn obey(&mut self, command: Command) -> anyhow::Result<()> {
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
        if self.gone.load(Ordering::Acquire) {
            // The request came before the run could be cancelled.
            cancel.cancel();
        }
        let mut sampled = progress::sampling();
        let path = numbered(&self.args.out, self.session.turns().len());
        let mut fits = Ok(());
        let turn = self.session.run_with(&request, |event| {
            if let Event::Planned { plan, .. } = &event {
                fits = kontext::io::check_size(&path, plan.output);
                if fits.is_err() {
                    return ControlFlow::Break(());
                }
            }
            match notes::of(&event) {
                Some(line) => note(line),
                None => sampled(&event),
            }
            cancel.check()
        });
        self.interrupt.end();
        fits?;
        let turn = turn?;
        self.references.clear();
        self.unsaved.fetch_add(1, Ordering::Relaxed);
        turn.save(&path)?;
        done(format_args!(
            "turn {}: wrote {} (seed {})",
            turn.id,
            path.display(),
            turn.seed().unwrap_or_default()
        ))?;
        self.compare_with_first()
    }

    /// Prints the identity of the current turn's subject with that of the first image.
    fn compare_with_first(&self) -> anyhow::Result<()> {
        let (Some(embedder), Some(first)) = (&self.identity, self.session.turns().first()) else {
            return Ok(());
        };
        let turn = self.session.current();
        let identity = metrics::identity(embedder, &[(&first.image, &turn.image)]);
        let identity = identity.context("the turn is kept, but its identity is unknown")?;
        match identity.first().copied().flatten() {
            Some(cosine) => done(format_args!(
                "turn {}: identity with the first image {cosine:.3}",
                turn.id
            )),
            None => done(format_args!(
                "turn {}: no subject to compare with the first image",
                turn.id
            )),
        }
    }

    /// Writes the unsaved turns into a new folder.
    pub(super) fn rescue(&self) -> anyhow::Result<()> {
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
    pub(super) fn show(&self) {
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
