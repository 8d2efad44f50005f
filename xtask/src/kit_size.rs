//! The size of a whole GPU kit.

use std::path::Path;
use std::{fmt, fs};

use crate::failure::Failure;
use crate::kit_entry::{Entry, LIMIT, Size};

/// Number of entries named in the error for a kit above the limit.
const NAMED: usize = 3;

/// All files of a kit.
#[derive(Debug)]
pub(crate) struct Contents(Vec<Entry>);

impl Contents {
    /// Measures the files of `folder` and its subfolders.
    pub(crate) fn read(folder: &Path) -> Result<Self, Failure> {
        let mut entries = Vec::new();
        let mut folders = vec![folder.to_path_buf()];
        while let Some(inner) = folders.pop() {
            for found in fs::read_dir(&inner).map_err(Failure::kit_io(&inner))? {
                let path = found.map_err(Failure::kit_io(&inner))?.path();
                let metadata = fs::metadata(&path).map_err(Failure::kit_io(&path))?;
                if metadata.is_dir() {
                    folders.push(path);
                } else {
                    let path = path.strip_prefix(folder).unwrap_or(&path).to_path_buf();
                    entries.push(Entry {
                        path,
                        size: Size(metadata.len()),
                    });
                }
            }
        }
        entries.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(Self(entries))
    }

    fn whole(&self) -> Size {
        Size(self.0.iter().map(|entry| entry.size.0).sum())
    }

    /// Returns an error with the largest entries if the kit exceeds [`LIMIT`].
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let whole = self.whole();
        if whole <= LIMIT {
            return Ok(());
        }
        let mut largest = self.0.clone();
        largest.sort_by_key(|entry| std::cmp::Reverse(entry.size));
        largest.truncate(NAMED);
        Err(Failure::TooLarge { whole, largest })
    }
}

/// Writes a line for each entry and one for the total.
impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in &self.0 {
            writeln!(f, "{entry}")?;
        }
        write!(f, "{:>10}  in all", self.whole().to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn contents(sizes: &[(&str, u64)]) -> Contents {
        Contents(
            sizes
                .iter()
                .map(|(path, size)| Entry {
                    path: PathBuf::from(path),
                    size: Size(*size),
                })
                .collect(),
        )
    }

    #[test]
    fn the_report_has_each_entry_and_the_whole() {
        let report = contents(&[("commit.txt", 60), ("gpu-kit.xz", 3 << 20)]).to_string();
        assert_eq!(
            report,
            "  0.01 MiB  commit.txt\n  3.00 MiB  gpu-kit.xz\n  3.01 MiB  in all"
        );
    }

    #[test]
    fn a_kit_of_the_limit_passes_and_a_byte_more_does_not() {
        assert!(contents(&[("a", LIMIT.0 - 1), ("b", 1)]).check().is_ok());
        assert!(contents(&[("a", LIMIT.0), ("b", 1)]).check().is_err());
    }

    #[test]
    fn what_is_too_large_is_named_largest_first() {
        let mib = 1 << 20;
        let kit = contents(&[("tiny", 1), ("b", 10 * mib), ("a", 5 * mib), ("c", 30 * mib)]);
        let message = kit.check().expect_err("too large").to_string();
        let places: Vec<_> = ["MiB  c", "MiB  b", "MiB  a"].map(|part| message.find(part)).to_vec();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{message}");
        assert!(
            message.contains("45.01 MiB") && message.contains("40.00 MiB"),
            "{message}"
        );
        assert!(!message.contains("tiny") && !message.contains("LIBTORCH"), "{message}");
    }

    #[test]
    fn files_of_inner_folders_are_measured_too() {
        let folder = tempfile::tempdir().expect("created");
        fs::create_dir(folder.path().join("wheels")).expect("created");
        fs::write(folder.path().join("wheels/a.whl"), "123").expect("written");
        fs::write(folder.path().join("run.py"), "12").expect("written");
        let read = Contents::read(folder.path()).expect("readable");
        assert_eq!(read.0, contents(&[("run.py", 2), ("wheels/a.whl", 3)]).0);
        assert_eq!(read.whole(), Size(5));
    }
}
