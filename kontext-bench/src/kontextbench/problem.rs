//! What is wrong with a bench, and where.

use std::fmt;
use std::path::PathBuf;

/// Something of a bench, of a run or of votes that cannot be used. The rest goes on without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, relative to the folder that was opened.
    pub file: PathBuf,
    /// The line in it, from 1; none where the whole is meant.
    pub line: Option<usize>,
    /// What is wrong, and what follows from it.
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
