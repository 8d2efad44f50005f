//! NVRTC, the compiler of the CUDA kernels, for their tests on machines without a GPU.
//!
//! A libtorch with CUDA brings it. For the one for CPUs, its two libraries are taken from the wheel that
//! libtorch names and put where that would put them: next to the CUDA runtime.

use std::env::consts::OS;
use std::fs;
use std::path::{Path, PathBuf};

use crate::disk;
use crate::failure::Failure;
use crate::goods::Goods;
use crate::home::Home;
use crate::install::Partial;
use crate::lock::Lock;
use crate::python::Python;
use crate::wheels::{Bytes, NVRTC};

/// The libraries of the wheel, in its folder; the last one proves the presence of all.
const LIBRARIES: [&str; 2] = ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"];
/// The wheel, and all that is in it.
const NEEDED: Bytes = Bytes(320_000_000);

/// Fetches NVRTC unless it is there. Returns its file.
pub(crate) fn ensure(home: &Home) -> Result<PathBuf, Failure> {
    if OS != "linux" {
        return Err(Failure::Usage(format!(
            "`cargo xtask nvrtc` fetches a library for Linux, the only system that uses it, not for {OS}"
        )));
    }
    let file = home.path().join(NVRTC.library);
    if file.is_file() {
        return Ok(file);
    }
    let python = Python::with_pip(Goods::Nvrtc)?;
    fs::create_dir_all(home.path()).map_err(Failure::io(home.path()))?;
    let _lock = Lock::take(&home.lock())?;
    if file.is_file() {
        return Ok(file);
    }
    disk::check(home.path(), NEEDED)?;
    eprintln!("xtask: fetching {} into {}", NVRTC.requirement, home.path().display());
    let partial = Partial::create(home.path())?;
    python.install(&[NVRTC.requirement], &partial.new, &partial.scratch)?;
    take_over(&partial.new.join(NVRTC.library), &file)?;
    Ok(file)
}

/// Moves the libraries from the folder of `from` to that of `to`.
fn take_over(from: &Path, to: &Path) -> Result<(), Failure> {
    let folder = to.parent().unwrap_or(to);
    fs::create_dir_all(folder).map_err(Failure::io(folder))?;
    for name in LIBRARIES {
        let library = from.with_file_name(name);
        if !library.is_file() {
            return Err(Failure::Incomplete {
                goods: Goods::Nvrtc,
                folder: folder.to_path_buf(),
            });
        }
        fs::rename(&library, folder.join(name)).map_err(Failure::io(&library))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_library_is_the_wheels_proof() {
        assert!(NVRTC.library.ends_with(LIBRARIES[1]) && NVRTC.requirement.starts_with("nvidia-cuda-nvrtc==13.0."));
    }

    #[test]
    fn both_libraries_are_moved_or_the_missing_one_is_noticed() {
        let folder = tempfile::tempdir().expect("created");
        let (from, to) = (folder.path().join("wheel"), folder.path().join("home/lib"));
        fs::create_dir(&from).expect("created");
        let (from, to) = (from.join(LIBRARIES[1]), to.join(LIBRARIES[1]));
        fs::write(&from, "library").expect("written");
        let failure = take_over(&from, &to).expect_err("no builtins");
        assert!(failure.to_string().contains("NVRTC") && !to.exists(), "{failure}");
        fs::write(from.with_file_name(LIBRARIES[0]), "builtins").expect("written");
        take_over(&from, &to).expect("moved");
        assert!(to.is_file() && to.with_file_name(LIBRARIES[0]).is_file() && !from.exists());
    }
}
