//! Edits of the lines of a manifest.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use kontext::Request;
use kontext_formats::nearest_name;
use serde_json::{Map, Value};

use super::job::{Job, Wanted, written};
use super::manifest::{Line, Manifest};
use super::names::file_name;
use super::options::{self, TEXTS};
use super::template::Template;
use crate::edits::Defaults;

/// Fields of a line that are not options of a request.
const OWN: [&str; 3] = ["image", "out", "vars"];
/// Extension of results whose name a line does not give.
pub(super) const EXTENSION: &str = "png";

/// Context of the lines of one manifest.
#[derive(Debug)]
pub(super) struct Lines<'a> {
    path: &'a Path,
    is_csv: bool,
    /// Options of the command line, the lines' defaults.
    defaults: Map<String, Value>,
    request: &'a Request,
    references: &'a [PathBuf],
    /// Names of a request's options.
    options: Vec<String>,
    /// Names of variables in any text.
    variables: BTreeSet<String>,
}

impl<'a> Lines<'a> {
    /// Returns the context of a manifest's lines.
    ///
    /// # Errors
    /// If the options of the command line cannot be written as an object.
    pub(super) fn new(
        path: &'a Path,
        manifest: &Manifest,
        defaults: &Defaults<'a>,
        references: &'a [PathBuf],
    ) -> anyhow::Result<Self> {
        let request = defaults.request;
        let mut fields = written(request)?;
        if !defaults.has_prompt {
            fields.remove("prompt");
        }
        // The run's seed; each line derives its own.
        fields.remove("seed");
        let lines = manifest.lines.iter().filter_map(|(_, line)| line.as_ref().ok());
        let texts = lines
            .chain([&fields])
            .flat_map(|fields| TEXTS.map(|name| fields.get(name)));
        let mut variables = BTreeSet::new();
        for text in texts.flatten().filter_map(Value::as_str) {
            // The line's own reading says what is wrong with a text.
            if let Ok(template) = Template::read(text) {
                variables.extend(template.variables().into_iter().map(str::to_owned));
            }
        }
        Ok(Self {
            path,
            is_csv: manifest.is_csv,
            defaults: fields,
            request,
            references,
            options: options::names(),
            variables,
        })
    }

    /// Returns the edit of a line.
    ///
    /// # Errors
    /// The problem, without the line's number.
    pub(super) fn job(&self, number: usize, line: &Line) -> Result<Job, String> {
        for name in line.keys() {
            self.check_name(name)?;
        }
        let image = line.get("image").ok_or("no field `image`")?;
        let folder = self.path.parent().unwrap_or(Path::new(""));
        let named = self.images(image)?;
        let first = named.first().ok_or("`image` names no image")?;
        let stem = Path::new(first).file_stem().unwrap_or_default().to_string_lossy();
        let stem = format!("{stem}-{number}");
        let (key, wanted) = match line.get("out") {
            Some(name) => {
                let name = file_name(name)?;
                (name.clone(), Wanted::Given(name))
            }
            None => (format!("{stem}.{EXTENSION}"), Wanted::First(vec![stem])),
        };
        let images = named.iter().map(|path| folder.join(path));
        Ok(Job {
            key,
            line: Some(number),
            file: self.path.to_owned(),
            images: images.chain(self.references.iter().cloned()).collect(),
            request: self.request(line)?,
            wanted,
            names: Vec::new(),
            shape: String::new(),
        })
    }

    /// Checks that a field is an option, or a variable of some text.
    fn check_name(&self, name: &str) -> Result<(), String> {
        let mut known = self.options.iter().map(String::as_str).chain(OWN);
        if self.variables.contains(name) || known.clone().any(|other| other == name) {
            return Ok(());
        }
        let hint = nearest_name(name, &mut known).map_or(String::new(), |near| format!(" (nearest: `{near}`)"));
        Err(format!(
            "unknown field `{name}`{hint}; expected an option of a run, or a variable of the prompt, {{{name}}}"
        ))
    }

    fn images(&self, value: &Value) -> Result<Vec<String>, String> {
        let wrong = || "`image` is neither a path nor a list of paths".to_owned();
        match value {
            Value::String(text) if self.is_csv && text.starts_with('[') => {
                // A name may begin so, too.
                Ok(serde_json::from_str(text).unwrap_or_else(|_| vec![text.clone()]))
            }
            Value::String(path) => Ok(vec![path.clone()]),
            Value::Array(paths) => paths
                .iter()
                .map(|path| path.as_str().map(str::to_owned).ok_or_else(wrong))
                .collect(),
            _ => Err(wrong()),
        }
    }

    /// Returns the request of a line without images: its options over those of the command line.
    fn request(&self, line: &Line) -> Result<Request, String> {
        let mut fields = self.defaults.clone();
        for (name, value) in line.iter().filter(|(name, _)| self.options.contains(name)) {
            let value = options::value(name, value, self.is_csv)?;
            fields.insert(name.clone(), value);
        }
        if !fields.contains_key("prompt") {
            return Err("no `prompt`; give the line one, or all lines by --prompt".to_owned());
        }
        let vars = self.vars(line)?;
        for name in TEXTS {
            if let Some(Value::String(text)) = fields.get_mut(name) {
                *text = Template::read(text)?.fill(|variable| value(variable, &vars, line))?;
            }
        }
        let mut request: Request = serde_json::from_value(Value::Object(fields)).map_err(|error| error.to_string())?;
        // Data that is not written.
        request.noise.clone_from(&self.request.noise);
        Ok(request)
    }

    fn vars(&self, line: &Line) -> Result<Map<String, Value>, String> {
        let read = match line.get("vars") {
            None => return Ok(Map::new()),
            Some(Value::String(cell)) if self.is_csv => serde_json::from_str(cell).unwrap_or_default(),
            Some(value) => value.clone(),
        };
        match read {
            Value::Object(vars) => Ok(vars),
            _ => Err("`vars` is no object of variables and their values".to_owned()),
        }
    }
}

/// Returns the value of a variable: of `vars`, else the field of this name.
fn value(variable: &str, vars: &Map<String, Value>, line: &Line) -> Result<String, String> {
    match vars.get(variable).or_else(|| line.get(variable)) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string()),
        Some(_) => Err(format!("the variable {{{variable}}} is neither a text nor a number")),
        None => {
            let names = vars.keys().chain(line.keys()).map(String::as_str);
            let near = nearest_name(variable, names).map_or(String::new(), |near| format!(" (nearest: `{near}`)"));
            Err(format!(
                "the variable {{{variable}}} has no value{near}; write {{{{ and }}}} for braces"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, is_csv: bool, prompt: Option<&str>) -> Vec<Result<Job, String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(if is_csv { "m.csv" } else { "m.jsonl" });
        std::fs::write(&path, text).unwrap();
        let manifest = Manifest::read(&path).unwrap();
        let request = Request::generate(prompt.unwrap_or("none")).steps(3).seed(5);
        let defaults = Defaults {
            request: &request,
            has_prompt: prompt.is_some(),
        };
        let lines = Lines::new(&path, &manifest, &defaults, &[]).unwrap();
        let job = |(number, line): &(usize, Result<Line, String>)| lines.job(*number, line.as_ref().unwrap());
        manifest.lines.iter().map(job).collect()
    }

    fn object(text: &str) -> Result<Job, String> {
        read(text, false, Some("a {colour} hat")).remove(0)
    }

    #[test]
    fn a_line_overrides_the_command_line_and_fills_its_texts() {
        let job = object(
            r#"{"image": ["a/cat.jpg", "b.png"], "vars": {"colour": "red"}, "colour": "blue", "guidance": 2, "seed": 9}"#,
        );
        let job = job.unwrap();
        assert_eq!(job.request.prompt, "a red hat");
        assert_eq!(
            (job.request.steps, job.request.guidance, job.request.seed),
            (Some(3), Some(2.0), Some(9))
        );
        assert!(job.images[0].ends_with("a/cat.jpg") && job.images[1].ends_with("b.png"));
        assert_eq!((job.key.as_str(), job.line), ("cat-1.png", Some(1)));
        let job =
            object(r#"{"image": "a.png", "colour": 3, "out": "x.webp", "prompt": "{{colour}} {colour}"}"#).unwrap();
        assert_eq!((job.request.prompt.as_str(), job.request.seed), ("{colour} 3", None));
        assert_eq!(
            (job.key.as_str(), job.wanted),
            ("x.webp", Wanted::Given("x.webp".to_owned()))
        );
    }

    #[test]
    fn cells_are_read_as_the_options_that_they_are() {
        let text = "image,prompt,steps,native_size,sampler,seed,colour\n\
                    a.png,7,4,true,heun,12,\n\
                    \"[\"\"a.png\"\", \"\"b.png\"\"]\",{colour},,,,,red\n\
                    [1].png,p,,,,,red\n";
        let jobs: Vec<Job> = read(text, true, None).into_iter().map(Result::unwrap).collect();
        let request = &jobs[0].request;
        assert_eq!(
            (request.prompt.as_str(), request.steps, request.native_size),
            ("7", Some(4), true)
        );
        assert_eq!(
            (request.sampler, request.seed),
            (Some(kontext::Sampler::Heun), Some(12))
        );
        assert_eq!((jobs[1].images.len(), jobs[1].request.prompt.as_str()), (2, "red"));
        assert_eq!((jobs[2].images.len(), jobs[1].request.steps), (1, Some(3)));
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said() {
        for (line, words) in [
            (
                r#"{"image": "a.png", "colour": "r", "step": 3}"#,
                "unknown field `step` (nearest: `steps`)",
            ),
            (
                r#"{"image": "a.png", "colour": "r", "qqqq": 3}"#,
                "unknown field `qqqq`; expected an option",
            ),
            (
                r#"{"image": "a.png", "vars": {"color": "r"}}"#,
                "the variable {colour} has no value (nearest: `color`)",
            ),
            (
                r#"{"image": "a.png", "colour": []}"#,
                "the variable {colour} is neither a text nor a number",
            ),
            (r#"{"image": "a.png", "vars": 3}"#, "`vars` is no object"),
            (
                r#"{"image": "a.png", "colour": "r", "steps": "x"}"#,
                "`steps`: invalid type: string \"x\"",
            ),
            (r#"{"image": "a.png", "prompt": "{x"}"#, "a brace has no other one"),
            (r#"{"image": 3}"#, "`image` is neither a path nor a list"),
            (r#"{"image": []}"#, "`image` names no image"),
            (r#"{"colour": "r"}"#, "no field `image`"),
            (
                r#"{"image": "a.png", "colour": "r", "out": "b/a.png"}"#,
                "expected the name of a file",
            ),
            (
                r#"{"image": "a.png", "colour": "r", "out": ".a.png"}"#,
                "expected the name of a file",
            ),
            (r#"{"image": "a.png", "colour": "r", "out": 3}"#, "`out` is no text"),
        ] {
            let error = object(line).unwrap_err();
            assert!(error.contains(words), "{line}: {error}");
        }
        let error = read(r#"{"image": "a.png"}"#, false, None).remove(0).unwrap_err();
        assert!(error.contains("by --prompt"), "{error}");
    }
}
