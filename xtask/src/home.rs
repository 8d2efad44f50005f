//! The folder `.libtorch` of the repository, and the check for a usable libtorch in it.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::failure::Failure;
use crate::wheels::{TORCH_VERSION, Variant};

/// xtask's libtorch folder: the target of a `pip install --target`.
#[derive(Debug, Clone)]
pub(crate) struct Home(PathBuf);

/// Marker of a finished installation. xtask's own files start with a dot, unlike any that pip installs.
const MARKER: &str = ".installed";
const LOCK: &str = ".lock";

impl Home {
    /// Returns `.libtorch` next to the workspace's `Cargo.toml`, as in `.gitignore` and `.cargo/config.toml`.
    pub(crate) fn of_repository(root: &Path) -> Self {
        Self(root.join(".libtorch"))
    }

    pub(crate) fn at(folder: PathBuf) -> Self {
        Self(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the folder for `LIBTORCH`, which contains `lib` and `include`.
    pub(crate) fn torch(&self) -> PathBuf {
        self.0.join("torch")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.0.join(LOCK)
    }

    /// Returns the variant whose installation is complete, on `os` (as [`std::env::consts::OS`] names it).
    ///
    /// Manual installations count as well (`pip install --target`, an unpacked archive of pytorch.org), as
    /// long as nothing is missing; the marker only records what the files do not show: the intended variant
    /// and its pinned versions.
    pub(crate) fn installed(&self, os: &str) -> Option<Variant> {
        match fs::read_to_string(self.0.join(MARKER)) {
            Ok(text) => [Variant::Cpu, Variant::Cuda]
                .into_iter()
                .find(|variant| text == marker(*variant, os) && self.is_complete(*variant, os)),
            Err(_) => [Variant::Cuda, Variant::Cpu]
                .into_iter()
                .find(|variant| self.is_complete(*variant, os)),
        }
    }

    /// Writes the marker of a finished installation; `draft` is a path on the same disk that may be
    /// overwritten.
    pub(crate) fn mark(&self, variant: Variant, os: &str, draft: &Path) -> Result<(), Failure> {
        fs::write(draft, marker(variant, os)).map_err(Failure::io(draft))?;
        let path = self.0.join(MARKER);
        fs::rename(draft, &path).map_err(Failure::io(&path))
    }

    /// Removes the marker: from then on, only the files in the folder count.
    pub(crate) fn unmark(&self) -> Result<(), Failure> {
        let path = self.0.join(MARKER);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::io(&path)(error)),
            _ => Ok(()),
        }
    }

    /// Returns `true` if all files of `variant` are present.
    pub(crate) fn is_complete(&self, variant: Variant, os: &str) -> bool {
        let torch = self.torch();
        if version(&torch).as_deref() != Some(TORCH_VERSION) || !has_core(&torch) {
            return false;
        }
        let has_cuda = torch.join("lib/libtorch_cuda.so").is_file();
        // The archives of pytorch.org (recognised by their file `build-version`) contain NVIDIA's libraries
        // in `torch/lib`; builds without CUDA need none.
        if !has_cuda || torch.join("build-version").is_file() {
            return has_cuda || variant == Variant::Cpu;
        }
        variant
            .wheels(os)
            .iter()
            .all(|wheel| self.0.join(wheel.library).is_file())
    }
}

/// Returns `true` if the files required to compile, link and start are present.
fn has_core(torch: &Path) -> bool {
    let library = |name: &str| {
        ["so", "dylib"]
            .iter()
            .any(|suffix| torch.join(format!("lib/{name}.{suffix}")).is_file())
    };
    ["libtorch", "libtorch_cpu", "libc10"].into_iter().all(library)
        && torch.join("include/torch/csrc/api/include/torch/torch.h").is_file()
}

/// Returns the version of a libtorch without its build suffix, `2.11.0` for `2.11.0+cu130`, or `None` if no
/// file states it.
pub(crate) fn version(torch: &Path) -> Option<String> {
    let full = fs::read_to_string(torch.join("build-version")).ok().or_else(|| {
        let text = fs::read_to_string(torch.join("version.py")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
        Some(line.trim_matches(['\'', '"']).to_owned())
    })?;
    full.trim().split('+').next().map(str::to_owned)
}

/// Returns the text of the marker. It changes with every pinned version; an installation with other pins is
/// then replaced.
fn marker(variant: Variant, os: &str) -> String {
    let mut text = format!("libtorch {TORCH_VERSION} {variant}, installed by cargo xtask\n");
    for wheel in variant.wheels(os) {
        text.push_str(wheel.requirement);
        text.push('\n');
    }
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Creates empty files at the paths of an installation of `variant`.
    pub(crate) fn imitate(home: &Path, variant: Variant) {
        let mut files = vec![
            "torch/lib/libtorch.so",
            "torch/lib/libtorch_cpu.so",
            "torch/lib/libc10.so",
            "torch/include/torch/csrc/api/include/torch/torch.h",
        ];
        files.extend(variant.wheels("linux").iter().map(|wheel| wheel.library));
        for file in files {
            write(home, file, "");
        }
        write(
            home,
            "torch/version.py",
            "debug = False\n__version__ = '2.11.0+cu130'\n",
        );
    }

    fn write(home: &Path, file: &str, text: &str) {
        let path = home.join(file);
        fs::create_dir_all(path.parent().expect("has a parent")).expect("created");
        fs::write(path, text).expect("written");
    }

    fn empty() -> (tempfile::TempDir, Home) {
        let folder = tempfile::tempdir().expect("created");
        let home = Home::at(folder.path().to_path_buf());
        (folder, home)
    }

    #[test]
    fn an_empty_folder_has_nothing_installed() {
        let (_folder, home) = empty();
        assert_eq!(home.installed("linux"), None);
    }

    #[test]
    fn an_installation_by_hand_is_recognised() {
        for variant in [Variant::Cpu, Variant::Cuda] {
            let (folder, home) = empty();
            imitate(folder.path(), variant);
            assert_eq!(home.installed("linux"), Some(variant));
        }
    }

    #[test]
    fn a_missing_nvidia_library_is_noticed() {
        let (folder, home) = empty();
        imitate(folder.path(), Variant::Cpu);
        fs::remove_file(folder.path().join("nvidia/cu13/lib/libcupti.so.13")).expect("removed");
        assert_eq!(home.installed("linux"), None);
    }

    #[test]
    fn another_version_is_not_taken() {
        let (folder, home) = empty();
        imitate(folder.path(), Variant::Cpu);
        write(folder.path(), "torch/version.py", "__version__ = '2.10.0+cu130'\n");
        assert_eq!(home.installed("linux"), None);
    }

    #[test]
    fn a_build_without_cuda_needs_no_nvidia_library() {
        let (folder, home) = empty();
        imitate(folder.path(), Variant::Cpu);
        fs::remove_dir_all(folder.path().join("nvidia")).expect("removed");
        fs::remove_file(folder.path().join("torch/lib/libtorch_cuda.so")).expect("removed");
        assert_eq!(home.installed("linux"), Some(Variant::Cpu));
    }

    #[test]
    fn an_archive_of_pytorch_org_is_complete_in_itself() {
        let (folder, home) = empty();
        imitate(folder.path(), Variant::Cpu);
        fs::remove_dir_all(folder.path().join("nvidia")).expect("removed");
        write(folder.path(), "torch/build-version", "2.11.0+cu130\n");
        assert_eq!(home.installed("linux"), Some(Variant::Cuda));
    }

    #[test]
    fn the_libraries_of_macos_are_found_by_their_suffix() {
        let (folder, home) = empty();
        for library in ["libtorch", "libtorch_cpu", "libc10"] {
            write(folder.path(), &format!("torch/lib/{library}.dylib"), "");
        }
        write(folder.path(), "torch/include/torch/csrc/api/include/torch/torch.h", "");
        write(folder.path(), "torch/version.py", "__version__ = '2.11.0'\n");
        assert_eq!(home.installed("macos"), Some(Variant::Cpu));
    }

    #[test]
    fn a_marker_tells_the_variant_and_its_pins() {
        let (folder, home) = empty();
        imitate(folder.path(), Variant::Cuda);
        home.mark(Variant::Cuda, "linux", &folder.path().join("draft"))
            .expect("written");
        assert_eq!(home.installed("linux"), Some(Variant::Cuda));

        // The files of the smaller variant are all present, but the marker promises the larger one.
        fs::remove_file(folder.path().join("nvidia/cudnn/lib/libcudnn.so.9")).expect("removed");
        assert_eq!(home.installed("linux"), None);

        home.unmark().expect("removed");
        home.unmark().expect("nothing to remove is no failure");
        assert_eq!(home.installed("linux"), Some(Variant::Cpu));
    }

    #[test]
    fn a_marker_of_other_pins_is_out_of_date() {
        let (folder, home) = empty();
        imitate(folder.path(), Variant::Cpu);
        write(folder.path(), MARKER, "libtorch 2.11.0 for CPUs\ntorch==2.11.0\n");
        assert_eq!(home.installed("linux"), None);
    }
}
