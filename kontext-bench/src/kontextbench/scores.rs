//! The scores of a run, in the file `scores.jsonl` of its folder.

use std::fs;
use std::io::ErrorKind;

use kontext_core::{Error, Result, write_file};
use serde::{Deserialize, Serialize};

use super::{Bench, JudgeScore, RunFolder};

/// File of the scores in a run's folder.
const SCORES: &str = "scores.jsonl";

/// A judge's scores of one result, a line of `scores.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ScoreRecord {
    /// The judge's name.
    pub judge: String,
    /// The pair's key.
    pub key: String,
    /// The pair's category.
    pub category: String,
    /// SHA-256 of the result file.
    pub sha256: String,
    /// The scores.
    #[serde(flatten)]
    pub score: JudgeScore,
}

/// Reads the scores of a run; none if there is no file.
pub(super) fn read(folder: &RunFolder) -> Result<Vec<ScoreRecord>> {
    let path = folder.path().join(SCORES);
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(Error::io(&path))?,
    };
    let mut records = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let refused = |reason: String| Error::config(&path, format!("line {}: {reason}; remove the line", index + 1));
        let record: ScoreRecord = serde_json::from_slice(line).map_err(|error| refused(error.to_string()))?;
        record.score.check().map_err(|error| refused(error.to_string()))?;
        records.push(record);
    }
    Ok(records)
}

/// Writes the scores of a run as a whole, so that a process may be killed at any moment.
pub(super) fn write(folder: &RunFolder, records: &[ScoreRecord]) -> Result<()> {
    let path = folder.path().join(SCORES);
    let mut lines = String::new();
    for record in records {
        let line = serde_json::to_string(record).map_err(|error| Error::io(&path)(error.into()))?;
        lines.push_str(&line);
        lines.push('\n');
    }
    write_file(path, lines.as_bytes())
}

/// Returns the scores of the results that are in the folder, by judge and in the bench's order. Those of a result that
/// has been replaced are left out.
pub(super) fn current(bench: &Bench, folder: &RunFolder) -> Result<Vec<ScoreRecord>> {
    let all = read(folder)?;
    let mut judges: Vec<&str> = all.iter().map(|record| record.judge.as_str()).collect();
    judges.sort_unstable();
    judges.dedup();
    if judges.is_empty() {
        return Ok(Vec::new());
    }
    let digests = bench.pairs.iter().filter_map(|pair| folder.record(pair));
    let digests: Vec<(String, String)> = digests.map(|record| (record.key, record.sha256)).collect();
    let find = |judge: &str, (key, sha256): &(String, String)| {
        let same = |record: &&ScoreRecord| record.judge == judge && record.key == *key && record.sha256 == *sha256;
        all.iter().find(same).cloned()
    };
    let of_judge = |judge: &&str| {
        digests
            .iter()
            .filter_map(|digest| find(judge, digest))
            .collect::<Vec<_>>()
    };
    Ok(judges.iter().flat_map(of_judge).collect())
}
