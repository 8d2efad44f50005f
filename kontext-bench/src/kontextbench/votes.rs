//! Votes between runs, as exported by the page or given by a judge.

use std::path::Path;

use kontext_core::{Error, LineNumbers, Result, without_mark, write_file};
use serde::{Deserialize, Serialize};

use super::Problem;
use crate::cell::{self, text_of_csv};

/// The result that a voter preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// The left result.
    Left,
    /// The right result.
    Right,
    /// Neither.
    Tie,
}

impl Choice {
    /// Returns the choice if left and right are exchanged.
    #[must_use]
    pub fn swapped(self) -> Self {
        match self {
            Choice::Left => Choice::Right,
            Choice::Right => Choice::Left,
            Choice::Tie => Choice::Tie,
        }
    }
}

/// A line of the page's CSV export, or of a judge's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// The pair's key.
    pub key: String,
    /// The pair's category.
    pub category: String,
    /// The run shown on the left.
    pub left: String,
    /// The run shown on the right.
    pub right: String,
    /// The preferred result.
    pub choice: Choice,
    /// Time of the vote, in ISO 8601.
    #[serde(default)]
    pub time: String,
    /// Name of the judge; empty for the votes of people.
    #[serde(default)]
    pub judge: String,
}

impl Vote {
    /// Returns the left run's score: 1, 0, or one half for a tie.
    #[must_use]
    pub fn left_score(&self) -> f64 {
        match self.choice {
            Choice::Left => 1.0,
            Choice::Right => 0.0,
            Choice::Tie => 0.5,
        }
    }

    /// Removes the signs that the page puts before texts that begin as formulas.
    fn unescaped(mut self) -> Self {
        let Self {
            key,
            category,
            left,
            right,
            judge,
            ..
        } = &mut self;
        for text in [key, category, left, right, judge] {
            *text = text_of_csv(text).to_owned();
        }
        self
    }
}

/// Reads a file of votes: CSV with the columns key, category, left, right, choice (`left`, `right` or `tie`)
/// and, optionally, time and judge.
///
/// A text that begins as a formula has a `'` before it, which is removed. A line is left out and reported as
/// a problem if it is not a vote, compares a run with itself, or repeats an earlier vote on the same pair and
/// runs, by the same judge.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, a checkpoint error if it is UTF-16.
pub fn read_votes(path: impl AsRef<Path>) -> Result<(Vec<Vote>, Vec<Problem>)> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let bytes = without_mark(&bytes).map_err(|reason| Error::config(path, reason))?;
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(bytes);
    let (mut votes, mut problems) = (Vec::<Vote>::new(), Vec::new());
    let mut seen = std::collections::BTreeMap::<[String; 4], usize>::new();
    let headers = reader.headers().cloned();
    let mut lines = LineNumbers::new(bytes);
    let mut record = csv::StringRecord::new();
    loop {
        let line = lines.at(reader.position().byte() as usize);
        let read = match reader.read_record(&mut record) {
            Ok(false) => break,
            Ok(true) => headers.as_ref().map_err(ToString::to_string).and_then(|headers| {
                let read = record.deserialize::<Vote>(Some(headers));
                read.map(Vote::unescaped).map_err(|error| in_words(&error))
            }),
            Err(error) => Err(in_words(&error)),
        };
        let vote = read.and_then(|vote| {
            if vote.left == vote.right {
                return Err(format!("it compares {:?} with itself", vote.left));
            }
            let runs = [&vote.left, &vote.right];
            let (a, b) = (runs.into_iter().min(), runs.into_iter().max());
            let runs = [a, b].map(|run| run.cloned().unwrap_or_default());
            let [a, b] = runs;
            let name = [vote.key.clone(), a, b, vote.judge.clone()];
            match seen.insert(name, line) {
                Some(first) => Err(format!("line {first} has voted on {:?} already", vote.key)),
                None => Ok(vote),
            }
        });
        match vote {
            Ok(vote) => votes.push(vote),
            Err(what) => {
                let what = format!("{what}; the line is left out");
                problems.push(Problem {
                    file: path.to_owned(),
                    line: Some(line),
                    what,
                });
            }
        }
    }
    Ok((votes, problems))
}

/// Writes a file of votes as a whole, so that a process may be killed at any moment.
pub(super) fn write(path: &Path, votes: &[Vote]) -> Result<()> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let failed = |error: csv::Error| Error::io(path)(error.into());
    for vote in votes {
        let signed = |text: &str| cell::csv(text).into_owned();
        let signed = Vote {
            key: signed(&vote.key),
            category: signed(&vote.category),
            left: signed(&vote.left),
            right: signed(&vote.right),
            choice: vote.choice,
            time: vote.time.clone(),
            judge: signed(&vote.judge),
        };
        writer.serialize(signed).map_err(failed)?;
    }
    let bytes = writer.into_inner().map_err(|error| failed(error.into_error().into()))?;
    write_file(path, &bytes)
}

/// Formats csv's error without its position, which is reported separately.
fn in_words(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Deserialize { err, .. } => {
            format!("it is no vote ({err}); expected key, category, left, right, choice, time, separated by commas")
        }
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => format!("it has {len} fields, not {expected_len}"),
        csv::ErrorKind::Utf8 { .. } => "it is not UTF-8".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_no_votes_are_told_with_their_number() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines = [
            "key,category,left,right,choice,time",
            "0000_00,Text Editing,a,b,left,2026-01-01T00:00:00Z",
            "\"with, \"\"quotes\"\"\nand a break\",\"Instruction Editing - Local\",b,a,tie,",
            "0000_01,Text Editing,a,b,neither,",
            "0000_02,Text Editing,a,a,left,",
            "0000_00,Text Editing,b,a,left,",
            "0000_03,Text Editing",
        ];
        std::fs::write(file.path(), lines.join("\n")).unwrap();
        let (votes, problems) = read_votes(file.path()).unwrap();
        assert_eq!(votes.len(), 2);
        assert_eq!(votes[1].key, "with, \"quotes\"\nand a break");
        assert_eq!(votes.iter().map(Vote::left_score).collect::<Vec<_>>(), [1.0, 0.5]);
        let lines: Vec<usize> = problems.iter().filter_map(|problem| problem.line).collect();
        assert_eq!(lines, [5, 6, 7, 8]);
        for (problem, words) in problems.iter().zip([
            "unknown variant `neither`",
            "it compares \"a\" with itself",
            "line 2 has voted on \"0000_00\" already",
            "it has 2 fields, not 6",
        ]) {
            assert!(problem.what.contains(words), "{problem}");
        }
    }

    #[test]
    fn votes_that_are_written_are_read_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let vote = |key: &str, choice, judge: &str| Vote {
            key: key.to_owned(),
            category: "Text, \"editing\"".to_owned(),
            left: "+a".to_owned(),
            right: "'=b".to_owned(),
            choice,
            time: String::new(),
            judge: judge.to_owned(),
        };
        let votes = [
            vote("0", Choice::Left, "@judge --x"),
            vote("with\na break", Choice::Tie, "@judge --x"),
            // Another judge on the same pair.
            vote("0", Choice::Right, ""),
        ];
        write(file.path(), &votes).unwrap();
        assert_eq!(read_votes(file.path()).unwrap(), (votes.into(), Vec::new()));
    }

    #[test]
    fn formulas_and_other_encodings_are_read_as_they_were_meant() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "\u{feff}key,category,left,right,choice,time\r\n'=1,'@x,'+a,''=b,tie,\r\n";
        std::fs::write(file.path(), text).unwrap();
        let (votes, problems) = read_votes(file.path()).unwrap();
        assert!(problems.is_empty(), "{problems:?}");
        let Vote {
            key,
            category,
            left,
            right,
            ..
        } = &votes[0];
        assert_eq!([key, category, left, right], ["=1", "@x", "+a", "'=b"]);
        std::fs::write(file.path(), text.replace(',', ";")).unwrap();
        let problem = read_votes(file.path()).unwrap().1[0].to_string();
        assert!(
            problem.contains("line 2: it is no vote") && problem.contains("separated by commas"),
            "{problem}"
        );
        let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        std::fs::write(file.path(), wide).unwrap();
        let error = read_votes(file.path()).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("UTF-16; save it as UTF-8"), "{cause}");
    }
}
