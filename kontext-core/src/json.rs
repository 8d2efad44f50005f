//! Reading and writing of configuration files.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::{Error, Result, write_file};

/// Reads a JSON file that holds one object, also one that starts with a byte order mark.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; a checkpoint error with line and column if its content is not as
/// expected.
pub fn read_json<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T> {
    let path = path.as_ref();
    let text = read_text(path)?;
    // A struct would also be read from a list of its fields' values, and `[]` as all defaults.
    if !text.trim_start().starts_with('{') {
        let reason = "expected an object in braces, `{…}`; correct it or fetch it again";
        return Err(Error::config(path, reason));
    }
    serde_json::from_str(&text).map_err(|e| Error::config(path, format!("{e}; correct it or fetch it again")))
}

/// Reads a text file, also one that starts with a byte order mark.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; a checkpoint error if it is not UTF-8.
pub fn read_text(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let text = utf8(&bytes).map_err(|reason| Error::config(path, reason))?;
    Ok(text.to_owned())
}

/// Returns the text of a UTF-8 file, without the byte order mark that some editors write at its start.
///
/// # Errors
/// The problem and its remedy, if the bytes are not UTF-8.
pub fn utf8(bytes: &[u8]) -> std::result::Result<&str, &'static str> {
    std::str::from_utf8(without_mark(bytes)?).map_err(|_| "its text is not UTF-8; save it as UTF-8")
}

/// Returns the bytes of a text file without a byte order mark, for a reader that checks the encoding line by
/// line.
///
/// # Errors
/// The problem and its remedy for UTF-16: a byte order mark of that encoding, or a first letter next to a
/// zero byte.
pub fn without_mark(bytes: &[u8]) -> std::result::Result<&[u8], &'static str> {
    let utf16 = match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => true,
        [first, second, ..] => (*first == 0) != (*second == 0),
        _ => false,
    };
    if utf16 {
        return Err("its text is UTF-16; save it as UTF-8");
    }
    Ok(bytes.strip_prefix(MARK).unwrap_or(bytes))
}

/// The byte order mark in UTF-8.
const MARK: &[u8] = "\u{feff}".as_bytes();

/// Writes an indented JSON file, which appears whole or not at all.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written.
pub fn write_json(path: impl AsRef<Path>, value: &serde_json::Value) -> Result<()> {
    write_file(path, format!("{value:#}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(default)]
    struct Sizes {
        heads: i64,
    }

    impl Default for Sizes {
        fn default() -> Self {
            Self { heads: 24 }
        }
    }

    fn read(bytes: &[u8]) -> std::result::Result<i64, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, bytes).unwrap();
        read_json::<Sizes>(&path)
            .map(|sizes| sizes.heads)
            .map_err(|error| std::error::Error::source(&error).map_or_else(String::new, ToString::to_string))
    }

    #[test]
    fn a_byte_order_mark_is_skipped_and_other_encodings_are_named() {
        assert_eq!(read(b"\xef\xbb\xbf{\"heads\": 2}"), Ok(2));
        assert_eq!(read(b" {}"), Ok(24));
        assert!(
            read(b"\xff\xfe{\0}\0")
                .unwrap_err()
                .contains("UTF-16; save it as UTF-8")
        );
        assert!(read(b"{\0}\0").unwrap_err().contains("UTF-16") && read(b"\0{\0}").unwrap_err().contains("UTF-16"));
        assert!(read(b"{\"\xe9\": 1}").unwrap_err().contains("not UTF-8"));
    }

    #[test]
    fn a_list_is_not_a_configuration() {
        for text in ["[]", "[2]", "2", "null", ""] {
            assert!(
                read(text.as_bytes()).unwrap_err().contains("expected an object"),
                "{text}"
            );
        }
    }
}
