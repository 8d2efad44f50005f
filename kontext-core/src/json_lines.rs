//! Reading of JSON Lines files that people write: one object a line, with paths of images next to the file.

use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use crate::{printable, shortened, without_mark};

/// Number of fields listed in a message.
const SHOWN: usize = 8;
/// Characters of a field's name that a message shows.
const LONGEST_NAME: usize = 40;

/// Iterates over the lines of a file that are not blank: their numbers from 1, and their fields or the
/// problem.
///
/// A line may start with a byte order mark, which some editors write at a file's start, also where files were
/// joined.
///
/// # Errors
/// The problem and its remedy, if the whole file is in another encoding.
///
/// # Example
/// ```
/// use kontext_core::json_lines;
/// let file = "\u{feff}{\"target\": \"a.png\"}\r\n\r\n{\"target\"}";
/// let lines: Vec<_> = json_lines::read(file.as_bytes())?.collect();
/// assert!(lines[0].0 == 1 && lines[0].1.is_ok());
/// assert_eq!(lines[1].0, 3);
/// assert_eq!(lines[1].1.as_ref().unwrap_err(), "it is no JSON: expected `:`");
/// # Ok::<(), &str>(())
/// ```
pub fn read(bytes: &[u8]) -> Result<impl Iterator<Item = (usize, Result<Fields, String>)>, &'static str> {
    let lines = without_mark(bytes)?.split(|byte| *byte == b'\n').enumerate();
    Ok(lines.filter_map(|(index, line)| {
        let fields = match std::str::from_utf8(line) {
            Ok(text) => match text.trim_start_matches('\u{feff}') {
                blank if blank.trim().is_empty() => return None,
                text => Fields::read(text),
            },
            Err(_) => Err("it is not UTF-8; save the file as UTF-8".to_owned()),
        };
        Some((index + 1, fields))
    }))
}

/// The fields of a line, by name.
#[derive(Debug, Clone, PartialEq)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Reads an object from a line.
    ///
    /// # Errors
    /// The problem, without the line's number.
    pub fn read(line: &str) -> Result<Self, String> {
        match serde_json::from_str(line) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            _ if line.trim_start().starts_with('[') => {
                Err("expected a JSON object, got a list; put each object on a line of its own".to_owned())
            }
            Ok(_) => Err("expected a JSON object".to_owned()),
            Err(error) => {
                // serde_json's line number refers to this line only.
                let words = error.to_string();
                Err(format!(
                    "it is no JSON: {}",
                    words.split(" at line ").next().unwrap_or(&words)
                ))
            }
        }
    }

    /// Returns all fields, by name.
    #[must_use]
    pub fn into_map(self) -> Map<String, Value> {
        self.0
    }

    /// Returns the first of these fields that exists and is not null, with its name.
    #[must_use]
    pub fn get(&self, names: &[&'static str]) -> Option<(&'static str, &Value)> {
        names.iter().find_map(|name| {
            let value = self.0.get(*name).filter(|value| !value.is_null())?;
            Some((*name, value))
        })
    }

    /// As [`Fields::get`].
    ///
    /// # Errors
    /// The names, of which two are shown, and the fields that the line has.
    pub fn require(&self, names: &[&'static str]) -> Result<(&'static str, &Value), String> {
        self.get(names).ok_or_else(|| {
            let names = match names {
                [name, other, ..] => format!("`{name}` (nor `{other}`)"),
                _ => format!("`{}`", names.concat()),
            };
            format!("no field {names}; it has {}", self.names())
        })
    }

    /// Returns the text of the first of these fields that exists and is not null.
    ///
    /// # Errors
    /// The field's name, if it is no text.
    pub fn text(&self, names: &[&'static str]) -> Result<Option<&str>, String> {
        match self.get(names) {
            None => Ok(None),
            Some((_, Value::String(text))) => Ok(Some(text)),
            Some((name, _)) => Err(format!("`{name}` is no text")),
        }
    }

    fn names(&self) -> String {
        let names: Vec<String> = self
            .0
            .keys()
            .take(SHOWN)
            .map(|name| format!("`{}`", shortened(&printable(name), LONGEST_NAME)))
            .collect();
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    }
}

/// Returns the paths of a field called `name`: a path, a list of them, or objects with a `path`, as the
/// `datasets` library writes images. Each is checked by [`inside`].
///
/// # Errors
/// The field's name or the path.
pub fn paths(name: &str, value: &Value) -> Result<Vec<PathBuf>, String> {
    let one = |value: &Value| {
        let text = value.get("path").unwrap_or(value).as_str();
        inside(text.ok_or_else(|| format!("`{name}` is no path of an image"))?)
    };
    match value {
        Value::Array(values) => values.iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

/// Checks that a relative path stays in its folder, since a file of others' making is untrusted input.
/// Returns it without `.`; a link in the folder may still lead elsewhere.
///
/// # Errors
/// The path, if it is empty, absolute, or has a `..`.
///
/// # Example
/// ```
/// use std::path::Path;
/// use kontext_core::json_lines::inside;
/// assert_eq!(inside("./images/a.png")?, Path::new("images/a.png"));
/// assert_eq!(inside("../a.png").unwrap_err(), "the path \"../a.png\" does not stay in the folder");
/// # Ok::<(), String>(())
/// ```
pub fn inside(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let stays = path
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    let inside: PathBuf = path
        .components()
        .filter(|part| matches!(part, Component::Normal(_)))
        .collect();
    if !stays || inside.as_os_str().is_empty() {
        return Err(format!("the path {text:?} does not stay in the folder"));
    }
    Ok(inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_utf_16_is_named_and_a_line_of_another_encoding_costs_only_itself() {
        for bytes in [&b"\xff\xfe{\0"[..], b"\xfe\xff\0{", b"{\0}\0"] {
            assert_eq!(read(bytes).err(), Some("its text is UTF-16; save it as UTF-8"));
        }
        let lines: Vec<_> = read(b"{\"a\": \"\xe9\"}\n\0\n\xef\xbb\xbf{\"a\": 1}\n\xef\xbb\xbf\n")
            .unwrap()
            .collect();
        let numbers: Vec<usize> = lines.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [1, 2, 3]);
        assert!(lines[0].1.as_ref().unwrap_err().contains("not UTF-8; save"));
        assert!(lines[1].1.is_err() && lines[2].1.is_ok());
        assert_eq!(read(b"").unwrap().count(), 0);
    }

    #[test]
    fn what_a_line_lacks_is_said() {
        let fields = Fields::read(r#"{"text": "a", "b\u0000": 1, "image": null}"#).unwrap();
        assert_eq!(fields.text(&["prompt", "text"]), Ok(Some("a")));
        assert_eq!(fields.text(&["image"]), Ok(None));
        assert_eq!(
            fields.require(&["image", "file_name", "x"]).unwrap_err(),
            "no field `image` (nor `file_name`); it has `b\\u{0}`, `image`, `text`"
        );
        assert_eq!(
            Fields::read("{}").unwrap().require(&["target"]).unwrap_err(),
            "no field `target`; it has none"
        );
        for list in ["[", "[]", " [{\"target\": 1}]"] {
            assert!(Fields::read(list).unwrap_err().contains("got a list"), "{list}");
        }
        let deep = "{\"a\":".repeat(100_000);
        assert!(Fields::read(&deep).unwrap_err().starts_with("it is no JSON: recursion"));
    }

    #[test]
    fn paths_stay_in_their_folder() {
        for path in ["", ".", "..", "/a.png", "a/../../b.png", "../a.png", "a/.."] {
            assert!(inside(path).is_err(), "{path}");
        }
        let value = serde_json::json!([{"path": "a.png"}, "./b//c.png"]);
        assert_eq!(
            paths("image", &value).unwrap(),
            [Path::new("a.png"), Path::new("b/c.png")]
        );
        assert_eq!(
            paths("image", &serde_json::json!([3])).unwrap_err(),
            "`image` is no path of an image"
        );
    }
}
