//! Reading of a manifest: requests, one a line, as JSON Lines or CSV.

use std::path::Path;

use anyhow::{Context, bail};
use kontext_core::{LineNumbers, json_lines, without_mark};
use serde_json::{Map, Value};

/// The fields of a line, by name, without those that are null or empty cells.
pub(super) type Line = Map<String, Value>;

/// The lines of a manifest.
#[derive(Debug)]
pub(super) struct Manifest {
    /// Number of each line from 1, and its fields or the problem.
    pub(super) lines: Vec<(usize, Result<Line, String>)>,
    /// `true` if all values are texts.
    pub(super) is_csv: bool,
}

impl Manifest {
    /// Reads a manifest, whose form its extension names.
    ///
    /// # Errors
    /// If the file cannot be read at all: another extension, another encoding, no lines, columns that repeat.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let is_csv = match extension.as_str() {
            "csv" => true,
            "jsonl" | "ndjson" => false,
            _ => bail!("--manifest {}: expected a .jsonl or .csv file", path.display()),
        };
        let unreadable = || format!("cannot read the manifest {}", path.display());
        let bytes = std::fs::read(path).with_context(unreadable)?;
        let lines = if is_csv {
            csv_lines(&bytes)
        } else {
            object_lines(&bytes)
        };
        let lines = lines.map_err(anyhow::Error::msg).with_context(unreadable)?;
        if lines.is_empty() {
            bail!("the manifest {} has no request; write one a line", path.display());
        }
        Ok(Self { lines, is_csv })
    }
}

type Lines = Vec<(usize, Result<Line, String>)>;

fn object_lines(bytes: &[u8]) -> Result<Lines, String> {
    let given = |fields: json_lines::Fields| {
        let mut fields = fields.into_map();
        fields.retain(|_, value| !value.is_null());
        fields
    };
    let lines = json_lines::read(bytes)?;
    Ok(lines.map(|(number, fields)| (number, fields.map(given))).collect())
}

fn csv_lines(bytes: &[u8]) -> Result<Lines, String> {
    let bytes = without_mark(bytes)?;
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .flexible(true)
        .from_reader(bytes);
    let headers = reader.headers().map_err(|error| in_words(&error))?.clone();
    for (index, name) in headers.iter().enumerate() {
        if headers.iter().skip(index + 1).any(|other| other == name) {
            return Err(format!("two columns are called {name:?}; give each a name of its own"));
        }
    }
    if !headers.iter().any(|name| name == "image") {
        let found: Vec<&str> = headers.iter().collect();
        let expected = "expected the names of columns in the first line, one of them `image`, separated by commas";
        return Err(format!("{expected}; got {found:?}"));
    }
    let mut numbers = LineNumbers::new(bytes);
    let (mut lines, mut record) = (Vec::new(), csv::StringRecord::new());
    loop {
        let line = numbers.at(reader.position().byte() as usize);
        let fields = match reader.read_record(&mut record) {
            Ok(false) => break Ok(lines),
            Ok(true) if record.len() > headers.len() => Err(format!(
                "it has {} cells, and the first line {}; quote cells with commas",
                record.len(),
                headers.len()
            )),
            Ok(true) => Ok(headers
                .iter()
                .zip(&record)
                .filter(|(_, cell)| !cell.is_empty())
                .map(|(name, cell)| (name.to_owned(), Value::from(cell)))
                .collect()),
            Err(error) => Err(in_words(&error)),
        };
        lines.push((line, fields));
    }
}

/// Formats csv's error without its position, which is reported separately.
fn in_words(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Utf8 { .. } => "it is not UTF-8; save the file as UTF-8".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_fields_with_the_line_they_begin_in() {
        let text =
            "\u{feff}image,prompt,colour\r\na.png,\"two\r\nlines, one cell\",\r\n\r\nb.png,p,red\r\nc.png,p,red,4\r\n";
        let lines = csv_lines(text.as_bytes()).unwrap();
        let numbers: Vec<usize> = lines.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [2, 5, 6]);
        let first = lines[0].1.as_ref().unwrap();
        assert_eq!(first["prompt"], "two\r\nlines, one cell");
        // An empty cell is none.
        assert_eq!(first.len(), 2);
        assert!(
            lines[2]
                .1
                .as_ref()
                .unwrap_err()
                .starts_with("it has 4 cells, and the first line 3")
        );
    }

    #[test]
    fn a_file_that_is_no_table_is_an_error_of_its_own() {
        for (text, words) in [
            ("", "expected the names of columns"),
            ("image;prompt\na;b\n", "expected the names of columns"),
            ("image,a,a\n", "two columns are called \"a\""),
        ] {
            let error = csv_lines(text.as_bytes()).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        assert_eq!(
            csv_lines(b"i\0m\0").unwrap_err(),
            "its text is UTF-16; save it as UTF-8"
        );
    }
}
