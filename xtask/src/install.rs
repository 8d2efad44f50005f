//! Brings libtorch into [`Home`], whole or not at all.
//!
//! pip unpacks into a folder of this process inside `.libtorch`; what is there is exchanged by renaming once that has
//! succeeded. An interruption therefore costs the download at most, and the next run clears up what it has left.

use std::env::consts::{ARCH, OS};
use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use crate::disk;
use crate::failure::Failure;
use crate::goods::Goods;
use crate::home::Home;
use crate::host::{self, Driver};
use crate::lock::Lock;
use crate::python::Python;
use crate::wheels::{TORCH_VERSION, Variant};

/// What the folders of unfinished installations are called, before their process's number.
const PARTIAL: &str = ".partial-";

/// Installs libtorch unless what is there will do. `asked` is the variant of the command line.
pub(crate) fn ensure(home: &Home, asked: Option<Variant>) -> Result<(), Failure> {
    let installed = home.installed(OS);
    if suffices(asked, installed) {
        if asked.is_none() && installed == Some(Variant::Cpu) && OS == "linux" && Driver::find() == Driver::Ready {
            eprintln!(
                "xtask: this machine has an NVIDIA driver, but the libtorch in {} is the one for CPUs; \
                 `cargo xtask --cuda libtorch` fetches the other ({} to download)",
                home.path().display(),
                Variant::Cuda.sizes().download
            );
        }
        return Ok(());
    }
    host::check(OS, ARCH, cfg!(target_env = "musl"), asked)?;
    let python = Python::with_pip(Goods::Libtorch)?;
    let variant = asked.unwrap_or_else(choose);

    fs::create_dir_all(home.path()).map_err(Failure::io(home.path()))?;
    let _lock = Lock::take(&home.lock())?;
    // Another process may have installed it while this one waited for the lock.
    if suffices(asked, home.installed(OS)) {
        return Ok(());
    }
    clear(home.path());
    let sizes = variant.sizes();
    disk::check(home.path(), sizes.needed())?;
    eprintln!(
        "xtask: fetching libtorch {TORCH_VERSION} {variant} into {}: {} to download, {} on disk",
        home.path().display(),
        sizes.download,
        sizes.installed
    );
    let partial = Partial::create(home.path())?;
    python.install(variant, OS, &partial.new, &partial.scratch)?;
    if !Home::at(partial.new.clone()).is_complete(variant, OS) {
        return Err(Failure::Incomplete {
            goods: Goods::Libtorch,
            folder: home.path().to_path_buf(),
        });
    }
    home.unmark()?;
    exchange(home.path(), &partial.new, &partial.old)?;
    home.mark(variant, OS, &partial.folder.join("marker"))?;
    eprintln!("xtask: libtorch {TORCH_VERSION} is installed");
    Ok(())
}

/// Whether what is installed serves. Without a wish it does in either variant: a working installation is never
/// replaced unasked.
fn suffices(asked: Option<Variant>, installed: Option<Variant>) -> bool {
    match (asked, installed) {
        (_, None) => false,
        (Some(Variant::Cuda), Some(installed)) => installed == Variant::Cuda,
        (Some(Variant::Cpu) | None, Some(_)) => true,
    }
}

/// The variant for this machine, where nothing is installed and nothing was asked for.
fn choose() -> Variant {
    match if OS == "linux" { Driver::find() } else { Driver::Absent } {
        Driver::Ready => Variant::Cuda,
        Driver::Absent => Variant::Cpu,
        Driver::Old(branch) => {
            eprintln!(
                "xtask: NVIDIA's driver {branch} is too old for the CUDA 13 of libtorch {TORCH_VERSION}, which takes \
                 580 or newer: fetching the one for CPUs. After an update of the driver, run \
                 `cargo xtask --cuda libtorch`."
            );
            Variant::Cpu
        }
    }
}

/// The folders of an installation on its way, removed with what is left in them when it goes out of scope.
#[derive(Debug)]
struct Partial {
    folder: PathBuf,
    /// Where pip installs.
    new: PathBuf,
    /// For pip's temporary files.
    scratch: PathBuf,
    /// For what was installed before.
    old: PathBuf,
}

impl Partial {
    fn create(home: &Path) -> Result<Self, Failure> {
        let folder = home.join(format!("{PARTIAL}{}", process::id()));
        let [new, scratch, old] = ["new", "scratch", "old"].map(|name| folder.join(name));
        for folder in [&new, &scratch, &old] {
            fs::create_dir_all(folder).map_err(Failure::io(folder))?;
        }
        Ok(Self {
            folder,
            new,
            scratch,
            old,
        })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // What cannot be removed now is cleared by the next installation.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Removes what interrupted installations have left. Call it under the lock.
fn clear(home: &Path) {
    let Ok(entries) = fs::read_dir(home) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            // Lost room is all that a failure costs, and the check of the disk that follows notices it.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Moves what is in `home` to `old`, and what is in `new` to `home`; names with a leading dot are xtask's own and stay.
///
/// Programs that run with the old libtorch keep its files open and do not notice.
fn exchange(home: &Path, new: &Path, old: &Path) -> Result<(), Failure> {
    for (from, to) in [(home, old), (new, home)] {
        for entry in fs::read_dir(from).map_err(Failure::io(from))? {
            let entry = entry.map_err(Failure::io(from))?;
            if !entry.file_name().to_string_lossy().starts_with('.') {
                fs::rename(entry.path(), to.join(entry.file_name())).map_err(Failure::io(&entry.path()))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::tests::imitate;

    #[test]
    fn a_working_installation_is_kept_unless_cuda_is_asked_for() {
        use Variant::{Cpu, Cuda};
        for asked in [None, Some(Cpu)] {
            assert!(suffices(asked, Some(Cpu)));
            assert!(suffices(asked, Some(Cuda)));
        }
        assert!(suffices(Some(Cuda), Some(Cuda)));
        assert!(!suffices(Some(Cuda), Some(Cpu)));
    }

    #[test]
    fn nothing_suffices_where_nothing_is_installed() {
        for asked in [None, Some(Variant::Cpu), Some(Variant::Cuda)] {
            assert!(!suffices(asked, None));
        }
    }

    #[test]
    fn an_installation_is_exchanged_whole() {
        let folder = tempfile::tempdir().expect("created");
        let home = folder.path();
        fs::create_dir_all(home.join("torch-2.10.0.dist-info")).expect("created");
        fs::write(home.join(".lock"), "").expect("written");
        let partial = Partial::create(home).expect("created");
        imitate(&partial.new, Variant::Cpu);

        exchange(home, &partial.new, &partial.old).expect("exchanged");
        assert_eq!(Home::at(home.to_path_buf()).installed("linux"), Some(Variant::Cpu));
        assert!(home.join(".lock").is_file(), "names with a dot stay");
        assert!(
            !home.join("torch-2.10.0.dist-info").exists(),
            "nothing of the old one is left"
        );

        let left = partial.folder.clone();
        drop(partial);
        assert!(!left.exists(), "the folder of the installation goes with it");
    }

    #[test]
    fn what_an_interrupted_installation_left_is_cleared() {
        let folder = tempfile::tempdir().expect("created");
        let home = folder.path();
        for name in [".partial-1/new/torch", ".partial-22/scratch", "torch"] {
            fs::create_dir_all(home.join(name)).expect("created");
        }
        clear(home);
        let left: Vec<_> = fs::read_dir(home)
            .expect("readable")
            .flatten()
            .map(|e| e.file_name())
            .collect();
        assert_eq!(left, ["torch"]);
    }
}
