//! Names of results in a folder, each given once.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::run::numbered;

/// The names that are given. Letters that differ in case only count as equal, as on some file systems.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeSet<String>);

impl Names {
    /// Takes the names of a batch of `count` images: a name and those with numbers. Returns `None` if one is taken.
    pub(super) fn take(&mut self, name: &str, count: usize) -> Option<Vec<String>> {
        let all: Vec<String> = (0..count)
            .map(|index| numbered(Path::new(name), index).to_string_lossy().into_owned())
            .collect();
        if all.iter().any(|name| self.0.contains(&name.to_lowercase())) {
            return None;
        }
        self.0.extend(all.iter().map(|name| name.to_lowercase()));
        Some(all)
    }

    /// Takes the first of these stems that is free with the extension, or the last one with a number.
    pub(super) fn take_first(&mut self, stems: &[String], extension: &str, count: usize) -> Vec<String> {
        let last = stems.last().map_or("edit", String::as_str);
        let numbered = (2..).map(|number| format!("{last}-{number}"));
        let mut stems = stems.iter().cloned().chain(numbered);
        let names = stems.find_map(|stem| self.take(&format!("{stem}.{extension}"), count));
        names.unwrap_or_default()
    }
}

/// Returns the stems for the result of an image, the preferred first, from its path within a folder: `b` of `a/b.jpg`,
/// then `a-b` and `a-b.jpg`.
pub(super) fn stems(path: &Path) -> Vec<String> {
    let joined = |path: PathBuf| {
        let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        parts.join("-")
    };
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let bare = path.with_extension("");
    let mut stems = vec![name(&bare), joined(bare), joined(path.to_owned())];
    stems.dedup();
    stems
}

/// Returns a name that a line gives to its result.
///
/// # Errors
/// The reason, if it is no name of a file, or one of a hidden file.
pub(super) fn file_name(value: &Value) -> Result<String, String> {
    let name = value.as_str().ok_or("`out` is no text")?;
    let path = Path::new(name);
    if path.file_name().is_none_or(|only| only != path.as_os_str()) || name.starts_with('.') {
        return Err(format!(
            "`out` is {name:?}; expected the name of a file, without a folder"
        ));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_one_stem_get_results_of_different_names() {
        let mut names = Names::default();
        let mut result = |path: &str| names.take_first(&stems(Path::new(path)), "png", 1).concat();
        let paths = [
            "cat.jpg",
            "cat.png",
            "CAT.webp",
            "a/cat.jpg",
            "a/b.jpg",
            "b/b.jpg",
            "a-cat.jpg",
        ];
        assert_eq!(
            paths.map(&mut result),
            [
                "cat.png",
                "cat.png.png",
                "CAT.webp.png",
                "a-cat.png",
                "b.png",
                "b-b.png",
                "a-cat.jpg.png"
            ]
        );
        // All four are taken.
        assert_eq!(result("cat.jpg"), "cat.jpg.png");
        assert_eq!(result("cat.jpg"), "cat.jpg-2.png");
    }

    #[test]
    fn numbers_of_a_batch_are_taken_too() {
        let mut names = Names::default();
        assert_eq!(names.take("a.png", 2).unwrap(), ["a.png", "a-1.png"]);
        assert_eq!(names.take("A-1.png", 1), None);
        assert_eq!(names.take_first(&["a-1".to_owned()], "png", 1), ["a-1-2.png"]);
        assert_eq!(names.take("b.png", 1).unwrap(), ["b.png"]);
    }
}
