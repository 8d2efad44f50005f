//! Problems of a bench, with their locations.

use std::fmt;
use std::path::PathBuf;

/// An unusable part of a bench, a run or votes. The rest is processed without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, relative to the opened folder.
    pub file: PathBuf,
    /// Line in the file, from 1; `None` for the whole.
    pub line: Option<usize>,
    /// Description of the problem and its consequence.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, " line {line}")?;
        }
        write!(f, ": {}", self.what)
    }
}
