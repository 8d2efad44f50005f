//! Input that a user types: lines, and paths in them.

use std::any::TypeId;
use std::io::{self, BufRead};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Command;
use clap::builder::{PathBufValueParser, TypedValueParser};

/// Reads a line without its end; `None` at the end of the input.
///
/// The inner result is an error for a line that is not UTF-8, after which the next one can be read.
///
/// # Errors
/// If the input cannot be read.
pub fn line(input: &mut impl BufRead) -> io::Result<Option<anyhow::Result<String>>> {
    let mut bytes = Vec::new();
    if input.read_until(b'\n', &mut bytes)? == 0 {
        return Ok(None);
    }
    let text = String::from_utf8(bytes).map(|text| text.trim_end_matches(['\n', '\r']).to_owned());
    Ok(Some(text.context("the line is not UTF-8 and was not read")))
}

/// Returns the path that a text names, with the user's home folder for a `~` at its start, as in a shell.
///
/// # Errors
/// If the home folder is unknown, or that of another user is named.
pub fn path(text: &str) -> anyhow::Result<PathBuf> {
    let Some(rest) = text.strip_prefix('~') else {
        return Ok(PathBuf::from(text));
    };
    match rest.strip_prefix(std::path::is_separator) {
        None if !rest.is_empty() => {
            bail!("{text}: the home folder of another user is not looked up; write the folder out, or ./{text}")
        }
        below => {
            let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
            let home = home.with_context(|| format!("{text}: there is no home folder; write the folder out"))?;
            Ok(below
                .filter(|below| !below.is_empty())
                .map_or(home.clone(), |below| home.join(below)))
        }
    }
}

/// Returns a command of which all arguments that are paths may begin with `~`, as [`path`] takes it. An empty path is
/// refused, as clap does.
#[must_use]
pub fn with_home(command: Command) -> Command {
    let expanded = |given: PathBuf| match given.to_str() {
        Some(text) => path(text).map_err(|error| error.to_string()),
        None => Ok(given),
    };
    command.mut_args(|arg| {
        if arg.get_value_parser().type_id() == TypeId::of::<PathBuf>() {
            arg.value_parser(PathBufValueParser::new().try_map(expanded))
        } else {
            arg
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_not_utf_8_is_refused_and_the_next_one_read() {
        let mut input = &b"one\r\n\xe9\n\ntwo"[..];
        let mut next = || {
            line(&mut input)
                .unwrap()
                .map(|line| line.map_err(|error| error.to_string()))
        };
        assert_eq!(next(), Some(Ok("one".to_owned())));
        assert_eq!(next(), Some(Err("the line is not UTF-8 and was not read".to_owned())));
        assert_eq!(next(), Some(Ok(String::new())));
        assert_eq!(next(), Some(Ok("two".to_owned())));
        assert_eq!(next(), None);
    }

    #[test]
    fn a_tilde_is_the_home_folder() {
        let home = std::env::home_dir().unwrap();
        for (text, expected) in [
            ("~", home.clone()),
            ("~/", home.clone()),
            ("~/a b", home.join("a b")),
            ("a~", "a~".into()),
            ("./~/x", "./~/x".into()),
        ] {
            assert_eq!(path(text).unwrap(), expected, "{text}");
        }
        let other = path("~root/x").unwrap_err().to_string();
        assert!(other.contains("write the folder out, or ./~root/x"), "{other}");
    }

    #[test]
    fn paths_of_flags_begin_with_the_home_folder_and_texts_do_not() {
        #[derive(clap::Parser)]
        struct Program {
            #[arg(long)]
            out: Option<PathBuf>,
            #[arg(long)]
            prompt: Option<String>,
            #[arg(long)]
            lora: Vec<PathBuf>,
            #[command(flatten)]
            parts: crate::PartArgs,
            folder: Option<PathBuf>,
        }
        let parse = |words: &[&str]| {
            let command = with_home(<Program as clap::CommandFactory>::command());
            let matches = command.try_get_matches_from([&["program"], words].concat());
            matches.map(|matches| <Program as clap::FromArgMatches>::from_arg_matches(&matches).unwrap())
        };
        let home = std::env::home_dir().unwrap();
        let program = parse(&[
            "--out=~/a.png",
            "--prompt=~/b",
            "--lora",
            "~/c",
            "--lora",
            "~",
            "--vae",
            "~/d",
            "~/e",
        ]);
        let program = program.unwrap();
        assert_eq!(program.out, Some(home.join("a.png")));
        assert_eq!(program.prompt.as_deref(), Some("~/b"));
        assert_eq!(program.lora, [home.join("c"), home.clone()]);
        assert_eq!(program.parts.vae, Some(home.join("d")));
        assert_eq!(program.folder, Some(home.join("e")));
        for empty in ["--out=", "--vae=", ""] {
            let error = parse(&[empty]).err().unwrap().to_string();
            assert!(error.contains("a value is required for"), "{empty}: {error}");
        }
        let error = parse(&["--out", "~nobody/x"]).err().unwrap().to_string();
        assert!(error.contains("write the folder out, or ./~nobody/x"), "{error}");
    }
}
