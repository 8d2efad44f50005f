//! Commands of a session, as a user types them.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, bail};

use crate::typed;

/// The list of commands.
pub const HELP: &str = "\
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
:load DIR         goes on with one that was saved; :load! DIR also if turns of this one are not saved
:help
:quit             as the end of the input: what was not saved is left as images only; Ctrl-C stops a turn";

/// A line of input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// An empty line.
    Nothing,
    /// A prompt.
    Edit(String),
    /// To the turn before.
    Undo,
    /// To the turn after.
    Redo,
    /// To a turn.
    Branch(usize),
    /// A list of all turns.
    History,
    /// The seed of the turns that follow; `None` draws one for each.
    Seed(Option<u64>),
    /// A further reference image for the next turn.
    Reference(PathBuf),
    /// Keeps the pixels that a turn does not change.
    KeepOn,
    /// Keeps the pixels that are black in an image.
    KeepMask(PathBuf),
    /// Keeps nothing.
    KeepOff,
    /// `true` encodes each image again.
    Reencode(bool),
    /// Writes the session into a folder.
    Save(PathBuf),
    /// Goes on with a saved session.
    Load {
        /// Its folder.
        folder: PathBuf,
        /// `true` drops turns that are not saved.
        drop: bool,
    },
    /// The list of commands.
    Help,
    /// The end.
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
                bail!(":{name} wants a path after it")
            }
            typed::path(rest)
        };
        let mask = rest.strip_prefix("mask ").map(|path| typed::path(path.trim()));
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
            ("keep", _) => Self::KeepMask(mask.context(":keep wants on, off, or mask and a file")??),
            ("reencode", "on") => Self::Reencode(true),
            ("reencode", "off") => Self::Reencode(false),
            ("save", _) => Self::Save(path()?),
            ("load" | "load!", _) => Self::Load {
                folder: path()?,
                drop: name == "load!",
            },
            ("help", "") => Self::Help,
            ("quit", "") => Self::Quit,
            _ => bail!("no command is {line:?}; :help names them all"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_may_begin_with_the_home_folder() {
        let home = std::env::home_dir().unwrap();
        assert_eq!(":save ~/x".parse::<Command>().unwrap(), Command::Save(home.join("x")));
        assert_eq!(
            ":keep mask ~/m.png".parse::<Command>().unwrap(),
            Command::KeepMask(home.join("m.png"))
        );
        let load = |drop| Command::Load {
            folder: home.join("x"),
            drop,
        };
        assert_eq!(":load ~/x".parse::<Command>().unwrap(), load(false));
        assert_eq!(":load! ~/x".parse::<Command>().unwrap(), load(true));
        for line in [":save ~other/x", ":load", ":load!", ":keep mask", ":save"] {
            assert!(line.parse::<Command>().is_err(), "{line}");
        }
    }
}
