//! A judge of edits: an external command.

use std::path::PathBuf;

use kontext_bench::kontextbench::{Choice, Contest, JudgeScore, Pair, Scored};
use kontext_core::Result;
use serde_json::{Value, json};

use crate::line_process::{LineProcess, absolute};

/// A command that judges edits, one line of JSON for each.
///
/// It gets `{"task": "score", "key", "category", "instruction", "source", "references", "result"}` and answers
/// `{"key", "semantic_consistency", "perceptual_quality"}`, both from 0 to 10; or it gets `{"task": "compare", …, "a",
/// "b"}` in the place of the result and answers `{"key", "winner"}` with `"a"`, `"b"` or `"tie"`. Images are absolute
/// paths.
#[derive(Debug)]
pub struct ExternalJudge {
    process: LineProcess,
}

impl ExternalJudge {
    /// Starts the command.
    ///
    /// # Errors
    /// Those of [`LineProcess::start`].
    pub fn start(command: &str) -> anyhow::Result<Self> {
        let process = LineProcess::start(command)?;
        Ok(Self { process })
    }

    /// Scores an edit.
    ///
    /// # Errors
    /// Those of [`LineProcess::ask`]; [`kontext_core::Error::InvalidArgument`] with the line if a score is missing or out of range.
    pub fn score(&mut self, scored: &Scored<'_>) -> Result<JudgeScore> {
        let request = request("score", scored.pair, &scored.sources, &[("result", &scored.result)])?;
        let answer = self.process.ask(&request)?;
        let names = ["semantic_consistency", "perceptual_quality"];
        let [consistency, quality] = names.map(|name| {
            let score = answer.number(name)?;
            // The line is only known here.
            match (0.0..=10.0).contains(&score) {
                true => Ok(score),
                false => Err(answer.invalid(name, "a score from 0 to 10")),
            }
        });
        JudgeScore::new(consistency?, quality?)
    }

    /// Compares two results.
    ///
    /// # Errors
    /// Those of [`LineProcess::ask`]; [`kontext_core::Error::InvalidArgument`] with the line if there is no winner.
    pub fn compare(&mut self, contest: &Contest<'_>) -> Result<Choice> {
        let results = [("a", &contest.left), ("b", &contest.right)];
        let answer = self
            .process
            .ask(&request("compare", contest.pair, &contest.sources, &results)?)?;
        match answer.text("winner")? {
            "a" => Ok(Choice::Left),
            "b" => Ok(Choice::Right),
            "tie" => Ok(Choice::Tie),
            _ => Err(answer.invalid("winner", "\"a\", \"b\" or \"tie\"")),
        }
    }
}

fn request(task: &str, pair: &Pair, sources: &[PathBuf], results: &[(&str, &PathBuf)]) -> Result<Value> {
    let sources = sources.iter().map(|path| absolute(path)).collect::<Result<Vec<_>>>()?;
    let (source, references) = sources
        .split_first()
        .map_or((None, &[][..]), |(first, rest)| (Some(first), rest));
    let mut request = json!({
        "task": task, "key": pair.key, "category": pair.category, "instruction": pair.instruction,
        "source": source, "references": references,
    });
    for (name, path) in results {
        request[*name] = absolute(path)?.into();
    }
    Ok(request)
}
