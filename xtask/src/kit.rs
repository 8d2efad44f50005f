//! The GPU kit: a self-contained folder for a machine with an NVIDIA driver and a python3 with torch, but
//! without Rust and without a network.
//!
//! A new kit is built next to the previous one and replaces it once complete, so a kit is never partial.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, io};

use crate::failure::Failure;
use crate::goods::Goods;
use crate::home::Home;
use crate::kit_size::Contents;
use crate::lock::Lock;
use crate::python::Python;
use crate::source::Source;
use crate::{cargo, commit, kit_wheels};

/// Name of the package, of its program, and of the kit's folder.
const NAME: &str = "gpu-kit";

/// Folder of the package and its scripts.
const PACKAGE_FOLDER: &str = "benches/gpu";

/// Suffixes of the files of [`PACKAGE_FOLDER`] to copy into the kit.
const SCRIPTS: [&str; 3] = ["py", "sh", "md"];

/// Inputs of the checks.
const INPUTS: [&str; 2] = ["tests/reference/forms.safetensors", "examples/data/emoji-source.png"];

/// Returns an error on systems other than Linux, the kit's only target. `os` is [`std::env::consts::OS`].
pub(crate) fn check(os: &str) -> Result<(), Failure> {
    if os == "linux" {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "`cargo xtask gpu-kit` builds a program for Linux and works there alone, not on {os}"
    )))
}

/// Builds the kit of the repository `root` and prints its contents.
pub(crate) fn make(root: &Path, source: &Source, home: &Home) -> Result<(), Failure> {
    let target = root.join("target");
    fs::create_dir_all(&target).map_err(Failure::kit_io(&target))?;
    let lock = target.join(format!("{NAME}.lock"));
    let _lock = Lock::take(&lock)?;
    let python = Python::with_pip(Goods::KitWheels)?;

    let commit = commit::describe(root);
    let words = ["build", "--release", "--package", NAME].map(Into::into);
    if !cargo::run_and_return(&words, source, home)? {
        return Err(Failure::Build);
    }

    let kit = target.join(NAME);
    let draft = Draft::create(&target)?;
    let text = draft.new.join("commit.txt");
    fs::write(&text, commit).map_err(Failure::kit_io(&text))?;
    copy_scripts(&root.join(PACKAGE_FOLDER), &draft.new)?;
    copy_inputs(root, &draft.new.join("inputs"))?;
    kit_wheels::bring(&python, &kit.join("wheels"), &draft.new.join("wheels"), &draft.scratch)?;
    eprintln!("xtask: packing {NAME}");
    pack_program(&python, &program(root), &draft)?;

    let contents = Contents::read(&draft.new)?;
    contents.check()?;
    draft.exchange(&kit)?;
    println!("{}\n{contents}", kit.display());
    Ok(())
}

/// Returns the path at which cargo places the program.
fn program(root: &Path) -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").filter(|folder| !folder.is_empty());
    target
        .map_or_else(|| root.join("target"), PathBuf::from)
        .join("release")
        .join(NAME)
}

/// Folders of a kit in progress, removed with their contents on drop.
#[derive(Debug)]
struct Draft {
    /// The new kit.
    new: PathBuf,
    /// Files outside the kit: the uncompressed program, pip's temporary files, and finally the previous kit.
    scratch: PathBuf,
}

impl Draft {
    /// Creates empty folders and removes the leftovers of an interrupted run. The caller must hold the lock.
    fn create(target: &Path) -> Result<Self, Failure> {
        let draft = Self {
            new: target.join(format!("{NAME}.new")),
            scratch: target.join(format!("{NAME}.scratch")),
        };
        for folder in [&draft.new, &draft.scratch] {
            match fs::remove_dir_all(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Failure::kit_io(folder)(error)),
                _ => fs::create_dir(folder).map_err(Failure::kit_io(folder))?,
            }
        }
        Ok(draft)
    }

    /// Replaces `kit`, if it exists, by the draft.
    fn exchange(&self, kit: &Path) -> Result<(), Failure> {
        match fs::rename(kit, self.scratch.join("old")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Failure::kit_io(kit)(error)),
            _ => {}
        }
        fs::rename(&self.new, kit).map_err(Failure::kit_io(kit))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        for folder in [&self.new, &self.scratch] {
            // The next run removes anything that cannot be removed now.
            let _ = fs::remove_dir_all(folder);
        }
    }
}

/// Copies the scripts directly in `from`, not those of its subfolders.
fn copy_scripts(from: &Path, to: &Path) -> Result<(), Failure> {
    for entry in fs::read_dir(from).map_err(Failure::kit_io(from))? {
        let path = entry.map_err(Failure::kit_io(from))?.path();
        let is_script = path
            .extension()
            .is_some_and(|suffix| SCRIPTS.iter().any(|script| suffix == *script));
        if let (true, true, Some(name)) = (is_script, path.is_file(), path.file_name()) {
            fs::copy(&path, to.join(name)).map_err(Failure::kit_io(&path))?;
        }
    }
    Ok(())
}

fn copy_inputs(root: &Path, to: &Path) -> Result<(), Failure> {
    fs::create_dir_all(to).map_err(Failure::kit_io(to))?;
    for input in INPUTS {
        let path = root.join(input);
        let name = path.file_name().unwrap_or_default();
        fs::copy(&path, to.join(name)).map_err(Failure::kit_io(&path))?;
    }
    Ok(())
}

/// Strips a copy of `program` and compresses it into the draft.
fn pack_program(python: &Python, program: &Path, draft: &Draft) -> Result<(), Failure> {
    if !program.is_file() {
        return Err(Failure::NoProgram {
            path: program.to_path_buf(),
        });
    }
    let copy = draft.scratch.join(NAME);
    fs::copy(program, &copy).map_err(Failure::kit_io(program))?;
    strip(&copy);
    python.pack(&copy, &draft.new.join(format!("{NAME}.xz")))
}

/// Strips the symbols of `program`, which runs without them; if that fails, it is left as it is.
fn strip(program: &Path) {
    let why = match Command::new("strip")
        .arg(program)
        .stdin(Stdio::null())
        .stdout(io::stderr())
        .status()
    {
        Ok(status) if status.success() => return,
        Ok(status) => format!("`strip` failed ({status})"),
        Err(error) => format!("`strip` cannot be started ({error})"),
    };
    eprintln!("xtask: {why}: the program of the kit keeps its symbols and is larger for it");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("readable").flatten();
        let mut names: Vec<_> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn other_systems_are_refused_in_a_sentence() {
        assert!(check("linux").is_ok());
        for os in ["macos", "windows"] {
            let failure = check(os).expect_err("refused");
            assert!(matches!(failure, Failure::Usage(_)));
            assert!(failure.to_string().contains(os), "{failure}");
        }
    }

    #[test]
    fn scripts_of_the_folder_itself_are_copied() {
        let (from, to) = (
            tempfile::tempdir().expect("created"),
            tempfile::tempdir().expect("created"),
        );
        for folder in ["__pycache__", "src", "folder.py"] {
            fs::create_dir(from.path().join(folder)).expect("created");
        }
        for file in [
            "run.sh",
            "speed.py",
            "README.md",
            "Cargo.toml",
            "py",
            "__pycache__/speed.py",
            "src/main.rs",
        ] {
            fs::write(from.path().join(file), "").expect("written");
        }
        copy_scripts(from.path(), to.path()).expect("copied");
        assert_eq!(names(to.path()), ["README.md", "run.sh", "speed.py"]);
    }

    #[test]
    fn the_inputs_are_in_the_repository() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("in the repository");
        let to = tempfile::tempdir().expect("created");
        copy_inputs(root, to.path()).expect("copied");
        assert_eq!(names(to.path()), ["emoji-source.png", "forms.safetensors"]);
    }

    #[test]
    fn a_draft_takes_the_place_of_the_kit_whole() {
        let folder = tempfile::tempdir().expect("created");
        let target = folder.path();
        let kit = target.join(NAME);
        for file in ["first.py", "second.py"] {
            let draft = Draft::create(target).expect("created");
            fs::write(draft.new.join(file), "").expect("written");
            draft.exchange(&kit).expect("exchanged");
            drop(draft);
            assert_eq!(names(&kit), [file]);
            assert_eq!(names(target), [NAME], "nothing else is left");
        }
    }

    #[test]
    fn a_draft_that_fails_leaves_the_kit_and_what_was_left_before_is_cleared() {
        let folder = tempfile::tempdir().expect("created");
        let target = folder.path();
        for folder in [NAME, "gpu-kit.new/wheels", "gpu-kit.scratch"] {
            fs::create_dir_all(target.join(folder)).expect("created");
        }
        let draft = Draft::create(target).expect("created");
        assert!(names(&draft.new).is_empty());
        drop(draft);
        assert_eq!(names(target), [NAME]);
    }

    #[test]
    fn a_program_that_is_not_there_is_told_with_its_path() {
        let folder = tempfile::tempdir().expect("created");
        let draft = Draft::create(folder.path()).expect("created");
        let python = Python::imitated("no-such-program", Goods::KitWheels);
        let failure = pack_program(&python, Path::new("/no/gpu-kit"), &draft)
            .expect_err("missing")
            .to_string();
        assert!(
            failure.contains("/no/gpu-kit") && failure.contains("CARGO_TARGET_DIR"),
            "{failure}"
        );
    }
}
