//! Errors of xtask; each message also names the remedy.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fmt, io};

use crate::goods::Goods;
use crate::kit_entry::{Entry, LIMIT, Size};
use crate::wheels::{Bytes, TORCH_VERSION};

#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line of xtask itself is wrong.
    Usage(String),
    /// PyPI has no wheel for this kind of machine.
    Platform {
        os: String,
        arch: String,
    },
    /// CUDA was requested on a system without it.
    NoCuda {
        os: String,
    },
    /// The user's own libtorch cannot be used.
    Unusable {
        variable: &'static str,
        found: String,
    },
    NoPython {
        goods: Goods,
    },
    NoPip {
        goods: Goods,
        python: String,
        said: String,
    },
    OldPip {
        goods: Goods,
        python: String,
        version: String,
    },
    NoRoom {
        folder: PathBuf,
        needed: Bytes,
        free: Bytes,
    },
    /// The disk ran full during the download or installation.
    RanFull {
        goods: Goods,
    },
    NoNetwork {
        goods: Goods,
    },
    Certificate {
        goods: Goods,
    },
    NoWheel {
        goods: Goods,
    },
    /// pip failed in another way and has printed the reason.
    Pip {
        goods: Goods,
    },
    /// pip reported success, but something is missing.
    Incomplete {
        goods: Goods,
        folder: PathBuf,
    },
    /// File system error while installing libtorch.
    Io {
        path: PathBuf,
        source: io::Error,
    },
    /// File system error while building the GPU kit.
    KitIo {
        path: PathBuf,
        source: io::Error,
    },
    /// Cargo failed to build the kit's program and has printed the reason.
    Build,
    /// Cargo reported success, but the program is not at the expected path.
    NoProgram {
        path: PathBuf,
    },
    /// Python failed to compress the kit's program.
    Pack {
        python: String,
        said: String,
    },
    /// The kit exceeds the size limit, [`LIMIT`].
    TooLarge {
        whole: Size,
        largest: Vec<Entry>,
    },
    /// A program could not be started.
    Start {
        program: String,
        source: io::Error,
    },
    /// A check of the repository has findings, each with its remedy.
    Findings {
        check: &'static str,
        findings: Vec<String>,
    },
    /// Cargo does not list the crates of the workspace.
    Metadata {
        said: String,
    },
    /// The file system refuses a file of the repository that a check reads.
    SourceIo {
        path: PathBuf,
        source: io::Error,
    },
    /// A source file is not Rust.
    Syntax {
        path: PathBuf,
        line: usize,
    },
    /// Git lists no files to check.
    Untracked,
    /// A pattern of the check of the prose is wrong.
    Pattern {
        pattern: String,
        said: String,
    },
    /// Rustdoc could not write its JSON; it has said why.
    Document,
    /// `xtask/api` could not read rustdoc's JSON; it has said why.
    Listing,
}

impl Failure {
    /// Returns a closure for `map_err` that attaches the path to an I/O error.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }

    /// Like [`Self::io`], for a file of the GPU kit, where another libtorch would not help.
    pub(crate) fn kit_io(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::KitIo { path, source }
    }

    /// The same for a file of the repository that a check reads.
    pub(crate) fn source_io(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self::SourceIo { path, source }
    }

    /// For `map_err`: attaches the program to an error of starting it.
    pub(crate) fn start(program: &OsStr) -> impl FnOnce(io::Error) -> Self + use<> {
        let program = program.display().to_string();
        move |source| Self::Start { program, source }
    }

    /// Fails if the `check` of this name has findings.
    pub(crate) fn unless_empty(check: &'static str, findings: Vec<String>) -> Result<(), Self> {
        if findings.is_empty() {
            Ok(())
        } else {
            Err(Self::Findings { check, findings })
        }
    }

    /// Returns 2 for a wrong command line, 1 otherwise. (Cargo's own failures never reach this: its exit code
    /// is passed on.)
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(if matches!(self, Self::Usage(_)) { 2 } else { 1 })
    }

    /// Returns `true` if a libtorch from another source would help.
    fn has_a_way_round(&self) -> bool {
        match self {
            Self::NoPython { goods }
            | Self::NoPip { goods, .. }
            | Self::OldPip { goods, .. }
            | Self::RanFull { goods }
            | Self::NoNetwork { goods }
            | Self::Certificate { goods }
            | Self::NoWheel { goods }
            | Self::Pip { goods }
            | Self::Incomplete { goods, .. } => *goods == Goods::Libtorch,
            Self::Platform { .. } | Self::NoRoom { .. } | Self::Io { .. } => true,
            Self::Usage(_)
            | Self::NoCuda { .. }
            | Self::Unusable { .. }
            | Self::KitIo { .. }
            | Self::Build
            | Self::NoProgram { .. }
            | Self::Pack { .. }
            | Self::TooLarge { .. }
            | Self::Start { .. }
            | Self::Findings { .. }
            | Self::Metadata { .. }
            | Self::SourceIo { .. }
            | Self::Syntax { .. }
            | Self::Untracked
            | Self::Pattern { .. }
            | Self::Document
            | Self::Listing => false,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(wrong) => write!(f, "{wrong}; see `cargo xtask --help`"),
            Self::Platform { os, arch } => write!(
                f,
                "PyPI has no libtorch {TORCH_VERSION} that xtask can install on {os} ({arch}): \
                 it does so on Linux with glibc (x86_64, aarch64) and on macOS (aarch64)."
            ),
            Self::NoCuda { os } => {
                write!(f, "there is no CUDA on {os}; leave --cuda away.")
            }
            Self::Unusable { variable, found } => write!(
                f,
                "{variable} is set, but {found}.\n\
                 Correct {variable}, or unset it and let xtask install libtorch {TORCH_VERSION}."
            ),
            Self::NoPython { goods } => {
                write!(
                    f,
                    "found no python3, whose pip fetches {goods}.\nInstall both: {INSTALL_PIP}"
                )
            }
            Self::NoPip { goods, python, said } => write!(
                f,
                "{python} is there, but its pip, which fetches {goods}, is not: {said}\n\
                 Install it: {INSTALL_PIP} In a virtual environment, run `{python} -m ensurepip`."
            ),
            Self::OldPip { goods, python, version } => write!(
                f,
                "pip {version} of {python} is too old to fetch {goods}: 20.3 or newer is needed.\n\
                 Run `{python} -m pip install --user --upgrade pip`, or let `python3` be that of a new \
                 environment: `{python} -m venv ~/kontext-pip && . ~/kontext-pip/bin/activate`."
            ),
            Self::NoRoom { folder, needed, free } => {
                let folder = folder.display();
                write!(
                    f,
                    "the disk of {folder} is too full for libtorch, which takes {needed} while it is installed: \
                     {free} are free.\nMake room, or make {folder} a link to a folder on another disk."
                )
            }
            Self::RanFull { goods } => write!(
                f,
                "the disk ran full while pip fetched {goods}; nothing that it wrote is left.\n\
                 Make room and run the command again."
            ),
            Self::NoNetwork { goods } => write!(
                f,
                "pip could not reach PyPI to fetch {goods}.\n\
                 Check the network and run the command again; behind a proxy set HTTPS_PROXY, \
                 and for a mirror of PyPI set PIP_INDEX_URL."
            ),
            Self::Certificate { goods } => write!(
                f,
                "pip does not trust the certificate of the server that it fetches {goods} from.\n\
                 Behind a proxy that opens TLS, set PIP_CERT to the file of its certificates; \
                 otherwise check the date of this machine."
            ),
            Self::NoWheel {
                goods: Goods::KitWheels,
            } => write!(
                f,
                "pip does not find all {}; it says above which one it lacks.\n\
                 Where PIP_INDEX_URL names a mirror, the mirror may lack it. A newer pip may help as well: \
                 `python3 -m pip install --user --upgrade pip`.",
                Goods::KitWheels
            ),
            Self::NoWheel { goods: Goods::Nvrtc } => write!(
                f,
                "pip finds no wheel of NVRTC for this machine.\n\
                 There are wheels for Linux on x86_64 and aarch64. Where PIP_INDEX_URL names a mirror, the mirror may \
                 lack it. A newer pip may help as well: `python3 -m pip install --user --upgrade pip`."
            ),
            Self::NoWheel { goods: Goods::Libtorch } => write!(
                f,
                "pip finds no wheel of libtorch {TORCH_VERSION} for this machine.\n\
                 The wheels need glibc 2.28 or newer on Linux, macOS 11 or newer on Apple silicon, and a python3 \
                 of the machine's own architecture. Where PIP_INDEX_URL names a mirror, the mirror may lack them. \
                 A newer pip may help as well: `python3 -m pip install --user --upgrade pip`."
            ),
            Self::Pip { goods } => write!(
                f,
                "pip could not fetch {goods}; it says why above.\n\
                 Nothing was changed: run the command again once that is put right."
            ),
            Self::Incomplete {
                goods: Goods::KitWheels,
                folder,
            } => write!(
                f,
                "pip succeeded, but not all {} came into {}.\n\
                 A setting of pip may be the cause: `python3 -m pip config list` shows them.",
                Goods::KitWheels,
                folder.display()
            ),
            Self::Incomplete {
                goods: Goods::Nvrtc,
                folder,
            } => write!(
                f,
                "pip succeeded, but NVRTC did not come into {}.\n\
                 A setting of pip may be the cause: `python3 -m pip config list` shows them.",
                folder.display()
            ),
            Self::Incomplete {
                goods: Goods::Libtorch,
                folder,
            } => write!(
                f,
                "pip succeeded, but no whole libtorch {TORCH_VERSION} came into {}.\n\
                 A setting of pip may be the cause: `python3 -m pip config list` shows them.",
                folder.display()
            ),
            Self::Io { path, source } | Self::KitIo { path, source } | Self::SourceIo { path, source } => {
                write!(f, "cannot access {}: {source}", path.display())
            }
            Self::Build => write!(
                f,
                "cargo could not build the program of the GPU kit; it says why above.\n\
                 Put that right and run the command again: the kit that was there is as it was."
            ),
            Self::NoProgram { path } => write!(
                f,
                "cargo has built the program of the GPU kit, but it is not at {}.\n\
                 A setting of cargo may put it elsewhere (build.target, build.target-dir): leave that away, \
                 and name another target folder by CARGO_TARGET_DIR.",
                path.display()
            ),
            Self::Pack { python, said } => write!(
                f,
                "{python} could not pack the program of the GPU kit: {said}\n\
                 Its module lzma and room on the disk are needed; where the module is missing, use the python3 of \
                 the system."
            ),
            Self::TooLarge { whole, largest } => {
                write!(
                    f,
                    "the GPU kit would take {whole}, and {LIMIT} is the most. Its largest entries:"
                )?;
                for entry in largest {
                    write!(f, "\n  {entry}")?;
                }
                write!(
                    f,
                    "\nMake them smaller, or leave one away. The kit that was there is as it was."
                )
            }
            Self::Start { program, source } => write!(f, "cannot start {program}: {source}"),
            Self::Findings { check, findings } => {
                let count = findings.len();
                let noun = if count == 1 { "finding" } else { "findings" };
                write!(f, "`cargo xtask {check}` has {count} {noun}:")?;
                findings.iter().try_for_each(|finding| write!(f, "\n{finding}"))
            }
            Self::Metadata { said } => write!(
                f,
                "`cargo metadata` does not list the crates of the workspace: {said}\n\
                 Correct the Cargo.toml that it names and run the command again."
            ),
            Self::Syntax { path, line } => write!(
                f,
                "{}:{line} is not Rust; correct it (`cargo check` says more) and run the command again.",
                path.display()
            ),
            Self::Untracked => write!(
                f,
                "git lists no files to check.\n\
                 Git and a clone of the repository are needed; paths have to name files in it that git does not ignore."
            ),
            Self::Document => write!(
                f,
                "rustdoc could not write the public API as JSON; it says why above.\n\
                 Correct that (`cargo doc --features doc-only` says more) and run the command again."
            ),
            Self::Listing => write!(
                f,
                "the public API could not be listed; the reason and a remedy are above."
            ),
            Self::Pattern { pattern, said } => write!(
                f,
                "the pattern {pattern} of xtask/src/prose/counts.rs is wrong; correct it: {said}"
            ),
        }?;
        if self.has_a_way_round() {
            write!(
                f,
                "\nOr use a libtorch {TORCH_VERSION} that you have: set LIBTORCH to its folder, the one with lib and \
                 include (an unpacked archive of https://pytorch.org, or the folder torch of a Python installation)."
            )?;
        }
        Ok(())
    }
}

const INSTALL_PIP: &str = "`sudo apt install python3-pip` (Debian, Ubuntu), `sudo dnf install python3-pip` (Fedora), \
    `sudo pacman -S python-pip` (Arch), `brew install python` (macOS), or see https://pip.pypa.io/en/stable/installation/.";

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. }
            | Self::KitIo { source, .. }
            | Self::SourceIo { source, .. }
            | Self::Start { source, .. } => Some(source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_with_both_numbers_and_the_folder() {
        let failure = Failure::NoRoom {
            folder: PathBuf::from("/repo/.libtorch"),
            needed: Bytes(1_764_000_000),
            free: Bytes(400_000_000),
        };
        let message = failure.to_string();
        for part in ["/repo/.libtorch", "1.8 GB", "0.4 GB", "Make room", "LIBTORCH"] {
            assert!(message.contains(part), "{part} is missing in: {message}");
        }
    }

    #[test]
    fn a_missing_python_is_told_with_how_to_install_it() {
        let message = Failure::NoPython { goods: Goods::Libtorch }.to_string();
        for part in ["python3", "apt install python3-pip", "set LIBTORCH"] {
            assert!(message.contains(part), "{part} is missing in: {message}");
        }
    }

    #[test]
    fn what_the_gpu_kit_lacks_is_not_answered_with_libtorch() {
        let goods = Goods::KitWheels;
        let kit = Path::new("/repo/target/gpu-kit.new");
        for failure in [
            Failure::NoPython { goods },
            Failure::Incomplete {
                goods,
                folder: kit.to_path_buf(),
            },
            Failure::kit_io(kit)(io::ErrorKind::NotFound.into()),
        ] {
            let message = failure.to_string();
            assert!(!message.contains("LIBTORCH"), "{message}");
        }
    }

    #[test]
    fn an_unsupported_system_is_named_with_the_way_round() {
        let failure = Failure::Platform {
            os: "windows".to_owned(),
            arch: "x86_64".to_owned(),
        };
        let message = failure.to_string();
        for part in ["windows (x86_64)", "set LIBTORCH", "https://pytorch.org"] {
            assert!(message.contains(part), "{part} is missing in: {message}");
        }
    }

    #[test]
    fn findings_are_listed_one_after_another() {
        assert!(Failure::unless_empty("layers", Vec::new()).is_ok());
        let findings = vec!["a/Cargo.toml: a".to_owned(), "b/Cargo.toml: b".to_owned()];
        let message = Failure::unless_empty("layers", findings)
            .expect_err("two findings")
            .to_string();
        assert_eq!(
            message,
            "`cargo xtask layers` has 2 findings:\na/Cargo.toml: a\nb/Cargo.toml: b"
        );
    }

    #[test]
    fn a_wrong_command_line_is_not_answered_with_libtorch() {
        let message = Failure::Usage("--cpu and --cuda exclude each other".to_owned()).to_string();
        assert!(message.contains("--help"), "{message}");
        assert!(!message.contains("LIBTORCH"), "{message}");
    }
}
