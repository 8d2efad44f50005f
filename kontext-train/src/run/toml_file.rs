//! Reading of recipes.

use std::path::Path;

use kontext_core::{Error, Result, read_text, shortened};
use serde::de::DeserializeOwned;

/// Characters of a line that a message shows.
const SHOWN: usize = 200;

/// Reads a TOML file, also one that starts with a byte order mark.
pub(crate) fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T> {
    toml::from_str(&read_text(path)?).map_err(|error| {
        // The message shows the line, which may be long.
        let lines = error.to_string();
        let lines = lines.trim().lines().map(|line| shortened(line, SHOWN));
        Error::config(path, lines.collect::<Vec<String>>().join("\n"))
    })
}
