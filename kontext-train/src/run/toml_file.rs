//! Reading of recipes.

use std::path::Path;

use kontext_core::{Error, Result, utf8};
use serde::de::DeserializeOwned;

/// Characters of a line that a message shows.
const SHOWN: usize = 200;

/// Reads a TOML file, also one that starts with a byte order mark.
pub(crate) fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let text = utf8(&bytes).map_err(|reason| Error::config(path, reason))?;
    toml::from_str(text).map_err(|error| {
        // The message shows the line, which may be long.
        let lines = error.to_string();
        let lines = lines.trim().lines().map(|line| line.chars().take(SHOWN).collect());
        Error::config(path, lines.collect::<Vec<String>>().join("\n"))
    })
}
