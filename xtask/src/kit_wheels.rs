//! The wheels of kontext's opponents on a GPU, in the kit for a machine without a network.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::goods::Goods;
use crate::python::Python;

/// Packages required in addition to torch 2.11.0. diffusers requires importlib_metadata, whose
/// own requirement zipp is installed there; 10.1.0 is the last version without further requirements, as
/// 10.2.0 does not start without lazy-importer.
const REQUIREMENTS: [&str; 3] = ["diffusers==0.38.0", "fa3-fwd==0.0.3", "importlib_metadata==10.1.0"];

/// Returns the accepted platform tags, which pip matches literally. The wheel of fa3-fwd names only
/// `manylinux_2_24`.
fn platforms() -> Vec<String> {
    ["manylinux_2_28", "manylinux_2_24", "manylinux_2_17", "manylinux2014"]
        .map(|platform| format!("{platform}_{ARCH}"))
        .to_vec()
}

/// Fills the folder `new` with the wheels: from the folder `existing` if it has all of them, else from PyPI.
pub(crate) fn bring(python: &Python, existing: &Path, new: &Path, scratch: &Path) -> Result<(), Failure> {
    fs::create_dir_all(new).map_err(Failure::kit_io(new))?;
    if let Some(wheels) = present(existing) {
        for wheel in wheels {
            let name = wheel.file_name().unwrap_or_default();
            fs::copy(&wheel, new.join(name)).map_err(Failure::kit_io(&wheel))?;
        }
        return Ok(());
    }
    python.download(&REQUIREMENTS, &platforms(), new, scratch)?;
    match present(new) {
        Some(_) => Ok(()),
        None => Err(Failure::Incomplete {
            goods: Goods::KitWheels,
            folder: new.to_path_buf(),
        }),
    }
}

/// Returns the wheel of each requirement in `folder`, or `None` if one is missing.
fn present(folder: &Path) -> Option<Vec<PathBuf>> {
    let files: Vec<PathBuf> = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    REQUIREMENTS
        .iter()
        .map(|requirement| files.iter().find(|file| is_wheel_of(file, requirement)).cloned())
        .collect()
}

/// Returns `true` if `file` is the wheel of `requirement` by its name: `fa3_fwd-0.0.3-...whl` for
/// `fa3-fwd==0.0.3`. Wheels for this architecture and for any are accepted.
fn is_wheel_of(file: &Path, requirement: &str) -> bool {
    let (Some(name), Some((package, version))) =
        (file.file_name().and_then(|n| n.to_str()), requirement.split_once("=="))
    else {
        return false;
    };
    let start = format!("{}-{version}-", package.replace('-', "_"));
    let ends = ["-any.whl".to_owned(), format!("_{ARCH}.whl")];
    name.starts_with(&start)
        && ends.iter().any(|end| name.ends_with(end))
        && fs::metadata(file).is_ok_and(|file| file.is_file() && file.len() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with files of these names.
    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("created");
        for name in names {
            fs::write(folder.path().join(name), "wheel").expect("written");
        }
        folder
    }

    const DIFFUSERS: &str = "diffusers-0.38.0-py3-none-any.whl";
    const METADATA: &str = "importlib_metadata-10.1.0-py3-none-any.whl";

    fn attention() -> String {
        format!("fa3_fwd-0.0.3-cp39-abi3-manylinux_2_24_{ARCH}.whl")
    }

    #[test]
    fn every_wheel_is_pinned() {
        assert!(REQUIREMENTS.iter().all(|requirement| requirement.contains("==")));
    }

    #[test]
    fn all_wheels_are_found_and_nothing_else() {
        let folder = folder(&[
            DIFFUSERS,
            METADATA,
            &attention(),
            "diffusers-0.37.0-py3-none-any.whl",
            "notes.txt",
        ]);
        let mut names: Vec<_> = present(folder.path())
            .expect("all there")
            .iter()
            .map(|wheel| wheel.file_name().expect("has a name").to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert_eq!(names, [DIFFUSERS.to_owned(), attention(), METADATA.to_owned()]);
    }

    #[test]
    fn a_missing_wheel_is_noticed() {
        assert_eq!(present(Path::new("/no/such/folder")), None);
        assert_eq!(present(folder(&[DIFFUSERS, METADATA]).path()), None);
    }

    #[test]
    fn another_version_processor_or_an_empty_file_is_no_wheel_of_the_kit() {
        let attention = attention();
        for other in [
            "fa3_fwd-0.0.2-cp39-abi3-manylinux_2_24_x86_64.whl",
            "fa3_fwd-0.0.30-cp39-abi3-manylinux_2_24_x86_64.whl",
            "fa3_fwd-0.0.3-cp39-abi3-manylinux_2_24_riscv64.whl",
            "fa3_fwd-0.0.3.tar.gz",
        ] {
            assert_eq!(present(folder(&[DIFFUSERS, METADATA, other]).path()), None, "{other}");
        }
        let folder = folder(&[DIFFUSERS, METADATA, &attention]);
        fs::write(folder.path().join(&attention), "").expect("written");
        assert_eq!(present(folder.path()), None);
    }

    #[test]
    fn wheels_that_are_there_are_taken_over() {
        let (folder, new) = (
            folder(&[DIFFUSERS, METADATA, &attention()]),
            tempfile::tempdir().expect("created"),
        );
        let new = new.path().join("wheels");
        // A Python that cannot be started: pip is not called.
        let python = Python::imitated("no-such-program", Goods::KitWheels);
        bring(&python, folder.path(), &new, &new).expect("copied");
        assert!(present(&new).is_some());
    }
}
