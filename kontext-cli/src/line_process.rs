//! A command that answers line by line: JSON Lines on its stdin and its stdout.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use kontext_core::json_lines::Fields;
use kontext_core::{Error, Result, shortened};
use serde_json::Value;

/// Time that the command has to end after its stdin is closed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Interval at which its end is looked for.
const INTERVAL: Duration = Duration::from_millis(10);
/// Characters of a wrong answer that a message shows.
const SHOWN: usize = 120;

/// A running command that answers each line on its stdin, a JSON object with a `key`, by a line on its stdout, a JSON
/// object with the same `key`. It runs until it is dropped, so that it loads its model once. Its stderr is that of the
/// program.
#[derive(Debug)]
pub struct LineProcess {
    command: String,
    child: Child,
    /// `None` once the command has been asked to end.
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    /// Lines read from its stdout.
    lines: usize,
}

/// An answer of a command.
#[derive(Debug)]
pub struct Answer {
    fields: Fields,
    /// The place of the answer in messages.
    place: String,
}

impl LineProcess {
    /// Starts a command: a program and its arguments, separated by spaces and quoted as in a shell.
    ///
    /// # Errors
    /// If the command is empty, has a quote without its end, or cannot be started.
    pub fn start(command: &str) -> anyhow::Result<Self> {
        let words = shlex::split(command).unwrap_or_default();
        let Some((program, args)) = words.split_first() else {
            bail!("{command:?} is no command; expected a program and its arguments, with each quote closed");
        };
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = child.with_context(|| format!("cannot start the command {command:?}"))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        Ok(Self {
            command: command.to_owned(),
            child,
            stdin,
            stdout: BufReader::new(stdout.context("the command has no stdout")?),
            lines: 0,
        })
    }

    /// Returns the command as given.
    #[must_use]
    pub fn command(&self) -> &str {
        &self.command
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// [`Error::Io`] if the command has ended or its pipes fail; [`Error::InvalidArgument`] with the number of its line
    /// if the answer is no JSON object or has another `key` than the request.
    pub fn ask(&mut self, request: &Value) -> Result<Answer> {
        let key = request.get("key").and_then(Value::as_str).unwrap_or_default();
        let sent = match &mut self.stdin {
            Some(stdin) => stdin
                .write_all(format!("{request}\n").as_bytes())
                .and_then(|()| stdin.flush()),
            None => Ok(()),
        };
        // A command that has ended is reported by its exit status, not by the broken pipe.
        let mut line = Vec::new();
        while line.trim_ascii().is_empty() {
            line.clear();
            let count = self
                .stdout
                .read_until(b'\n', &mut line)
                .map_err(|error| self.failed(error))?;
            if count == 0 {
                return Err(self.ended(key));
            }
            self.lines += 1;
        }
        sent.map_err(|error| self.failed(error))?;
        let place = format!("line {} of the command {:?}", self.lines, self.command);
        let shown = String::from_utf8_lossy(line.trim_ascii()).into_owned();
        // The command may be long, and comes last: messages are shortened.
        let got = |what: &str| format!("{:?}{what} in {place}", shortened(&shown, SHOWN));
        let fields = Fields::read(&shown)
            .map_err(|what| Error::invalid("answer", "a JSON object", got(&format!(" ({what})"))))?;
        if fields.text(&["key"]) != Ok(Some(key)) {
            return Err(Error::invalid("answer", format!("the request's key {key:?}"), got("")));
        }
        Ok(Answer { fields, place })
    }

    /// Describes the end of a command that had a request to answer.
    fn ended(&mut self, key: &str) -> Error {
        self.stdin = None;
        let status = match self.child.wait() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let reason = format!(
            "it ended ({status}) after {} line(s), without an answer for the key {key:?}",
            self.lines
        );
        self.failed(std::io::Error::other(reason))
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::io(PathBuf::from(format!("the command {:?}", self.command)))(error)
    }
}

impl Drop for LineProcess {
    fn drop(&mut self) {
        self.stdin = None;
        let begin = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if begin.elapsed() > PATIENCE {
                // Nothing is left to do about an error.
                let _ = self.child.kill().and_then(|()| self.child.wait());
                return;
            }
            std::thread::sleep(INTERVAL);
        }
    }
}

impl Answer {
    /// Returns a number of the answer.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the line, if there is no such number.
    pub fn number(&self, name: &'static str) -> Result<f64> {
        let number = self.value(name)?.as_f64();
        number.ok_or_else(|| self.invalid(name, "a number"))
    }

    /// Returns a text of the answer.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the line, if there is no such text.
    pub fn text(&self, name: &'static str) -> Result<&str> {
        let text = self.value(name)?.as_str();
        text.ok_or_else(|| self.invalid(name, "a text"))
    }

    /// Returns the numbers of a list of the answer; none if it is `null` or absent.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the line, if it is no list of numbers.
    pub fn numbers(&self, name: &'static str) -> Result<Vec<f32>> {
        let Some((_, value)) = self.fields.get(&[name]) else {
            return Ok(Vec::new());
        };
        let numbers = value
            .as_array()
            .into_iter()
            .flatten()
            .map(|number| Some(number.as_f64()? as f32));
        let numbers: Option<Vec<f32>> = numbers.collect();
        let numbers = numbers.filter(|numbers| value.is_array() && !numbers.is_empty());
        numbers.ok_or_else(|| self.invalid(name, "a list of numbers, or null"))
    }

    /// Returns an error about a field.
    #[must_use]
    pub fn invalid(&self, name: &'static str, expected: &str) -> Error {
        let value = self
            .fields
            .get(&[name])
            .map_or("none".to_owned(), |(_, value)| value.to_string());
        Error::invalid(
            name,
            expected,
            format!("{} in {}", shortened(&value, SHOWN), self.place),
        )
    }

    fn value(&self, name: &'static str) -> Result<&Value> {
        let missing = |what| {
            Error::invalid(
                "answer",
                format!("a field `{name}`"),
                format!("{what} in {}", self.place),
            )
        };
        let (_, value) = self.fields.require(&[name]).map_err(missing)?;
        Ok(value)
    }
}

/// Returns the absolute path of a file as text, for a request.
pub(crate) fn absolute(path: &Path) -> Result<String> {
    let absolute = std::path::absolute(path).map_err(Error::io(path))?;
    match absolute.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(Error::invalid(
            "path",
            "UTF-8, as JSON takes no other text",
            path.display(),
        )),
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn process(script: &str) -> LineProcess {
        LineProcess::start(&format!("sh -c {}", shlex::try_quote(script).unwrap())).unwrap()
    }

    /// Returns the error of a question, with its cause.
    fn complaint(script: &str) -> String {
        let error = process(script).ask(&json!({"key": "a"})).unwrap_err();
        format!("{:#}", anyhow::Error::new(error))
    }

    #[test]
    fn each_request_gets_the_answer_of_its_line_from_one_process() {
        let mut process =
            process(r#"n=0; while read line; do n=$((n+1)); echo; echo "{\"key\": \"$n\", \"v\": [$n, 2]}"; done"#);
        for key in ["1", "2", "3"] {
            let answer = process.ask(&json!({"key": key})).unwrap();
            assert_eq!(answer.numbers("v").unwrap(), [key.parse().unwrap(), 2.0]);
            assert!(answer.numbers("none").unwrap().is_empty());
            assert!(
                answer
                    .number("v")
                    .unwrap_err()
                    .to_string()
                    .contains("expected a number, got [")
            );
        }
    }

    #[test]
    fn what_is_wrong_with_an_answer_is_told_with_its_line() {
        let told = complaint("read line; echo nonsense; read line");
        assert!(told.contains(") in line 1 of the command \"sh -c "), "{told}");
        assert!(
            told.starts_with("invalid answer: expected a JSON object, got \"nonsense\" (it is no JSON: "),
            "{told}"
        );
        let told = complaint(r#"read line; echo '{"key": "b"}'; read line"#);
        assert!(
            told.starts_with("invalid answer: expected the request's key \"a\", got "),
            "{told}"
        );
        let told = complaint("read line; exit 3");
        assert!(
            told.contains("it ended (exit status: 3) after 0 line(s), without an answer for the key \"a\""),
            "{told}"
        );
        assert!(complaint("exec <&-; exit 4").contains("exit status: 4"));
    }

    #[test]
    fn a_command_that_cannot_be_started_is_named() {
        for (command, words) in [
            ("", "\"\" is no command"),
            (
                "sh 'a",
                "\"sh 'a\" is no command; expected a program and its arguments, with each quote closed",
            ),
            ("no-such-judge --x", "cannot start the command \"no-such-judge --x\""),
        ] {
            let error = LineProcess::start(command).unwrap_err();
            assert!(error.to_string().starts_with(words), "{error}");
        }
    }
}
