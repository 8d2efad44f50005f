//! `cargo xtask api`: compares the public API of the published libraries with the listings in `docs/api`.
//!
//! The listings are made of rustdoc's JSON, which stable Rust writes only with a switch. The switch (`RUSTC_BOOTSTRAP`)
//! is set for rustdoc only, as many build scripts look at it: cargo would compile libtorch's bindings twice. So xtask
//! takes the part of rustdoc, see [`as_rustdoc`]. `xtask/api` turns a JSON file into a listing.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::{env, fs, io};

use crate::cargo;
use crate::failure::Failure;
use crate::workspace::{Package, Workspace};

/// The folder of the listings, `<crate>.txt` each.
const FOLDER: &str = "docs/api";

/// Set to the rustdoc that xtask takes the part of.
const RUSTDOC: &str = "XTASK_RUSTDOC";

/// The feature that documents a crate without libtorch.
const FEATURE: &str = "doc-only";

/// Runs rustdoc with its unstable options allowed, if this program was started in its part.
pub(crate) fn as_rustdoc() -> Option<Result<ExitCode, Failure>> {
    let rustdoc = env::var_os(RUSTDOC)?;
    let mut command = Command::new(&rustdoc);
    command.args(env::args_os().skip(1)).env("RUSTC_BOOTSTRAP", "1");
    Some(cargo::execute(command).map_err(Failure::start(&rustdoc)))
}

/// Compares all listings, or writes them. Listings without a crate are findings too, or removed.
pub(crate) fn check(root: &Path, write: bool) -> Result<(), Failure> {
    let workspace = Workspace::read(root)?;
    let libraries: Vec<(&Package, &str)> = workspace
        .packages
        .iter()
        .filter(|package| package.is_published)
        .filter_map(|package| Some((package, package.library.as_deref()?)))
        .collect();
    document(root, libraries.iter().map(|(package, _)| *package))?;

    let folder = root.join(FOLDER);
    let mut listings = BTreeMap::new();
    for (package, library) in libraries {
        let json = workspace.target.join("doc").join(format!("{library}.json"));
        listings.insert(
            format!("{}.txt", package.name),
            listing(root, &workspace.target, &json)?,
        );
    }
    if write {
        return write_listings(&folder, &listings);
    }
    Failure::unless_empty("api", findings(&read_listings(&folder)?, &listings))
}

/// Writes rustdoc's JSON of the packages into the target folder.
fn document<'a>(root: &Path, packages: impl Iterator<Item = &'a Package>) -> Result<(), Failure> {
    let own = env::current_exe().map_err(Failure::start(OsStr::new("xtask")))?;
    let mut command = Command::new(cargo::program());
    command.args(["doc", "--quiet", "--no-deps", "--lib", "--features", FEATURE]);
    for package in packages {
        command.args(["--package", &package.name]);
    }
    command
        .env("RUSTDOC", own)
        .env(RUSTDOC, env::var_os("RUSTDOC").unwrap_or_else(|| "rustdoc".into()))
        .env(
            "RUSTDOCFLAGS",
            "-Z unstable-options --output-format json --cap-lints allow",
        );
    if run(command.current_dir(root).stdout(io::stderr()))?.is_none() {
        return Err(Failure::Document);
    }
    Ok(())
}

/// The listing of a JSON file, by `xtask/api`.
fn listing(root: &Path, target: &Path, json: &Path) -> Result<String, Failure> {
    let mut command = Command::new(cargo::program());
    command
        .args([
            "run",
            "--quiet",
            "--locked",
            "--manifest-path",
            "xtask/api/Cargo.toml",
            "--target-dir",
        ])
        .arg(target)
        .arg("--")
        .arg(json)
        .current_dir(root);
    run(&mut command)?.ok_or(Failure::Listing)
}

/// The output of the command, unless it fails; its complaints go to stderr.
fn run(command: &mut Command) -> Result<Option<String>, Failure> {
    let program = command.get_program().to_owned();
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(Failure::start(&program))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(output.status.success().then_some(text))
}

/// The listings that are there, by file name.
fn read_listings(folder: &Path) -> Result<BTreeMap<String, String>, Failure> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(Failure::source_io(folder)(error)),
    };
    let mut listings = BTreeMap::new();
    for entry in entries {
        let path = entry.map_err(Failure::source_io(folder))?.path();
        if path.extension().is_some_and(|suffix| suffix == "txt") {
            let text = fs::read_to_string(&path).map_err(Failure::source_io(&path))?;
            listings.insert(file_name(&path), text);
        }
    }
    Ok(listings)
}

fn write_listings(folder: &Path, listings: &BTreeMap<String, String>) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(Failure::source_io(folder))?;
    for name in read_listings(folder)?.into_keys() {
        if !listings.contains_key(&name) {
            let path = folder.join(name);
            fs::remove_file(&path).map_err(Failure::source_io(&path))?;
        }
    }
    for (name, text) in listings {
        let path = folder.join(name);
        fs::write(&path, text).map_err(Failure::source_io(&path))?;
    }
    Ok(())
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A finding for each listing that differs.
fn findings(accepted: &BTreeMap<String, String>, found: &BTreeMap<String, String>) -> Vec<String> {
    let names: std::collections::BTreeSet<_> = accepted.keys().chain(found.keys()).collect();
    let empty = String::new();
    names
        .into_iter()
        .filter_map(|name| {
            let before = accepted.get(name).unwrap_or(&empty);
            let after = found.get(name).unwrap_or(&empty);
            let changes = changes(before, after);
            let path = PathBuf::from(FOLDER).join(name);
            let is_same = changes.is_empty() && accepted.contains_key(name) == found.contains_key(name);
            (!is_same).then(|| {
                format!(
                    "{}: the public API has changed; undo that, or accept it by `cargo xtask api --write`{changes}",
                    path.display()
                )
            })
        })
        .collect()
}

/// The lines that went, then those that came, each with a line break before it.
fn changes(before: &str, after: &str) -> String {
    let mut text = String::new();
    for (sign, lines, others) in [('-', before, after), ('+', after, before)] {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for line in others.lines() {
            *counts.entry(line).or_default() += 1;
        }
        for line in lines.lines() {
            match counts.get_mut(line) {
                Some(count) if *count > 0 => *count -= 1,
                _ => {
                    text.push_str("\n  ");
                    text.push(sign);
                    text.push_str(line);
                }
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listings(files: &[(&str, &str)]) -> BTreeMap<String, String> {
        let files = files.iter();
        files
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect()
    }

    #[test]
    fn changed_lines_are_shown_with_their_signs() {
        assert_eq!(changes("a\nb\nc\n", "a\nb\nc\n"), "");
        assert_eq!(changes("a\nb\nc\n", "a\nd\nc\nc\n"), "\n  -b\n  +d\n  +c");
        assert_eq!(changes("a\nb\n", "b\na\n"), "", "only the set of lines counts");
    }

    #[test]
    fn changed_new_and_stale_listings_are_found() {
        let accepted = listings(&[("same.txt", "a\n"), ("other.txt", "a\n"), ("stale.txt", "")]);
        let found = listings(&[("same.txt", "a\n"), ("other.txt", "b\n"), ("new.txt", "c\n")]);
        let findings = findings(&accepted, &found);
        let starts = ["docs/api/new.txt", "docs/api/other.txt", "docs/api/stale.txt"];
        assert_eq!(findings.len(), starts.len());
        for (finding, start) in findings.iter().zip(starts) {
            assert!(finding.starts_with(start), "{finding}");
            assert!(finding.contains("`cargo xtask api --write`"), "{finding}");
        }
        assert!(findings[0].ends_with("\n  +c"), "{}", findings[0]);
        assert!(findings[1].ends_with("\n  -a\n  +b"), "{}", findings[1]);
    }

    #[test]
    fn written_listings_are_read_back_without_stale_ones() {
        let folder = tempfile::tempdir().expect("created");
        let folder = folder.path().join("api");
        assert_eq!(read_listings(&folder).expect("none"), BTreeMap::new());
        for files in [listings(&[("a.txt", "1"), ("b.txt", "2")]), listings(&[("b.txt", "3")])] {
            write_listings(&folder, &files).expect("written");
            fs::write(folder.join("README.md"), "").expect("written");
            assert_eq!(read_listings(&folder).expect("read"), files);
        }
        assert!(folder.join("README.md").exists());
    }
}
