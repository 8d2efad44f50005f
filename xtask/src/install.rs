//! Installation of libtorch into [`Home`], all or nothing.
//!
//! pip unpacks into a per-process folder inside `.libtorch`; on success its contents are swapped in by
//! renaming. An interruption therefore costs at most the download, and the next run removes its leftovers.

use std::env::consts::{ARCH, OS};
use std::path::{Path, PathBuf};
use std::{fs, process};

use crate::disk;
use crate::failure::Failure;
use crate::goods::Goods;
use crate::home::Home;
use crate::host::{self, Driver};
use crate::lock::Lock;
use crate::python::Python;
use crate::wheels::{TORCH_VERSION, Variant};

/// Name prefix of the folders of unfinished installations, followed by the process id.
const PARTIAL: &str = ".partial-";

/// Installs libtorch unless the present installation suffices. `asked` is the variant of the command line.
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
    let wheels: Vec<_> = variant.wheels(OS).iter().map(|wheel| wheel.requirement).collect();
    python.install(&wheels, &partial.new, &partial.scratch)?;
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

/// Returns `true` if the installed variant serves. Without a request either one does: a working installation
/// is never replaced unasked.
fn suffices(asked: Option<Variant>, installed: Option<Variant>) -> bool {
    match (asked, installed) {
        (_, None) => false,
        (Some(Variant::Cuda), Some(installed)) => installed == Variant::Cuda,
        (Some(Variant::Cpu) | None, Some(_)) => true,
    }
}

/// Chooses the variant for this machine if nothing is installed and none was requested.
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

/// Folders of an installation in progress, removed with their contents on drop.
#[derive(Debug)]
pub(crate) struct Partial {
    folder: PathBuf,
    /// Target of pip.
    pub(crate) new: PathBuf,
    /// pip's temporary files.
    pub(crate) scratch: PathBuf,
    /// Destination of the previous installation.
    old: PathBuf,
}

impl Partial {
    pub(crate) fn create(home: &Path) -> Result<Self, Failure> {
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
        // The next installation removes anything that cannot be removed now.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Removes the leftovers of interrupted installations. The caller must hold the lock.
fn clear(home: &Path) {
    let Ok(entries) = fs::read_dir(home) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            // A failure only costs disk space, which the disk check that follows notices.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Moves the contents of `home` to `old` and those of `new` to `home`; names with a leading dot are xtask's
/// own and stay.
///
/// Programs that run with the old libtorch keep its files open and are not affected.
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
