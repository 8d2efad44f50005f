//! python3's pip, which downloads, checks and unpacks the wheels.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::failure::Failure;
use crate::wheels::Variant;

/// The wheels are chosen for this Python whatever runs pip: libtorch is the same in all of them, and one choice is
/// there for every pip. (torch 2.11.0 has wheels for 3.10 to 3.14.)
const WHEELS_FOR_PYTHON: &str = "3.12";

/// The first pip that reads the tag `manylinux_2_28` of the wheels.
const OLDEST_PIP: (u32, u32) = (20, 3);

/// A Python with a pip that can install libtorch.
#[derive(Debug)]
pub(crate) struct Python {
    program: &'static str,
}

impl Python {
    pub(crate) fn with_pip() -> Result<Self, Failure> {
        let mut failure = Failure::NoPython;
        for program in ["python3", "python"] {
            match pip_of(program) {
                Ok(()) => return Ok(Self { program }),
                // What is wrong with a Python that is there says more than that another is not.
                Err(Failure::NoPython) => {}
                Err(other) => {
                    if matches!(failure, Failure::NoPython) {
                        failure = other;
                    }
                }
            }
        }
        Err(failure)
    }

    /// Installs the wheels of `variant` into `target`; pip shows its own progress, on stderr.
    ///
    /// `scratch` is a folder on the same disk for pip's log and temporary files: the default one, often a small disk
    /// in memory, would have to hold the downloads and everything unpacked.
    pub(crate) fn install(&self, variant: Variant, os: &str, target: &Path, scratch: &Path) -> Result<(), Failure> {
        let log = scratch.join("pip.log");
        let mut pip = Command::new(self.program);
        pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-deps", "--no-compile"])
            .args(["--only-binary=:all:", "--implementation=cp", "--python-version", WHEELS_FOR_PYTHON])
            // Up to 22.3, pip holds the wheels against the Python that it runs in all the same.
            .arg("--ignore-requires-python")
            .arg("--log")
            .arg(&log)
            .arg("--target")
            .arg(target)
            .args(variant.wheels(os).iter().map(|wheel| wheel.requirement));
        // Settings of the user that would keep pip from installing into a folder, and a warning about root's packages.
        pip.env("PIP_USER", "0").env("PIP_REQUIRE_VIRTUALENV", "0").env("PIP_ROOT_USER_ACTION", "ignore");
        pip.env("TMPDIR", scratch);
        // Stdout is kept for what xtask itself prints.
        pip.stdin(Stdio::null()).stdout(io::stderr());

        let status = pip.status().map_err(|source| Failure::Start { program: self.program.to_owned(), source })?;
        if status.success() {
            return Ok(());
        }
        let said = fs::read(&log).unwrap_or_default();
        Err(cause(&String::from_utf8_lossy(&said)))
    }
}

/// Whether `program` is there and has a pip that is new enough.
fn pip_of(program: &'static str) -> Result<(), Failure> {
    let output = match Command::new(program).args(["-m", "pip", "--version"]).stdin(Stdio::null()).output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Failure::NoPython),
        output => output.map_err(|source| Failure::Start { program: program.to_owned(), source })?,
    };
    let python = program.to_owned();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().lines().last().unwrap_or("it says nothing").to_owned();
        return Err(Failure::NoPip { python, said });
    }
    match pip_version(&String::from_utf8_lossy(&output.stdout)) {
        Some((version, numbers)) if numbers < OLDEST_PIP => Err(Failure::OldPip { python, version }),
        // An unknown form is left to pip itself.
        _ => Ok(()),
    }
}

/// The version in `pip 23.2.1 from /usr/lib/python3/dist-packages/pip (python 3.11)`, whole and its first two numbers.
fn pip_version(text: &str) -> Option<(String, (u32, u32))> {
    let version = text.strip_prefix("pip ")?.split_whitespace().next()?;
    let mut numbers = version.split('.').map(str::parse);
    let first = numbers.next()?.ok()?;
    let second = numbers.next().and_then(Result::ok).unwrap_or(0);
    Some((version.to_owned(), (first, second)))
}

/// What made pip fail, from its log. The order matters: without a network, pip says last that there is
/// no such wheel.
fn cause(said: &str) -> Failure {
    let has = |signs: &[&str]| signs.iter().any(|sign| said.contains(sign));
    if has(&["No space left on device", "Errno 28", "Disk quota exceeded"]) {
        Failure::RanFull
    } else if has(&["CERTIFICATE_VERIFY_FAILED", "SSLCertVerificationError", "SSLError"]) {
        Failure::Certificate
    } else if has(&[
        "NewConnectionError",
        ": connection error",
        ": timed out",
        "NameResolutionError",
        "Max retries exceeded",
        "ConnectTimeout",
        "ReadTimeout",
        "ProxyError",
        "ConnectionError",
        "ConnectionResetError",
        "Connection broken",
        "Connection aborted",
    ]) {
        Failure::NoNetwork
    } else if has(&["No matching distribution found"]) {
        Failure::NoWheel
    } else {
        Failure::Pip
    }
}

/// The Python that the build script of torch-sys asks for its torch where `LIBTORCH_USE_PYTORCH` is set.
fn python_of_pytorch() -> &'static str {
    if env::var_os("VIRTUAL_ENV").is_some() { "python" } else { "python3" }
}

/// The folder of the torch that Python imports.
pub(crate) fn imported_torch() -> Result<PathBuf, Failure> {
    let program = python_of_pytorch();
    let output = Command::new(program)
        .args(["-c", "import torch; print(torch.__path__[0])"])
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Failure::Start { program: program.to_owned(), source })?;
    let said = String::from_utf8_lossy(if output.status.success() { &output.stdout } else { &output.stderr });
    let last = said.trim().lines().last().unwrap_or_default();
    if output.status.success() && !last.is_empty() {
        Ok(PathBuf::from(OsString::from(last)))
    } else {
        Err(Failure::Unusable {
            variable: "LIBTORCH_USE_PYTORCH",
            found: format!("{program} cannot import torch: {last}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_pip_is_read() {
        let text = "pip 23.2.1 from /usr/lib/python3/dist-packages/pip (python 3.11)\n";
        assert_eq!(pip_version(text), Some(("23.2.1".to_owned(), (23, 2))));
        assert_eq!(pip_version("pip 9"), Some(("9".to_owned(), (9, 0))));
        assert_eq!(pip_version("pip 20.3b1 from x"), Some(("20.3b1".to_owned(), (20, 0))));
        assert_eq!(pip_version("usage: pip"), None);
    }

    #[test]
    fn a_missing_network_is_told_from_a_missing_wheel() {
        let nowhere = "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(...)'\n\
                       ERROR: Could not find a version that satisfies the requirement torch==2.11.0\n\
                       ERROR: No matching distribution found for torch==2.11.0\n";
        assert!(matches!(cause(nowhere), Failure::NoNetwork));
        let wheel = "ERROR: No matching distribution found for torch==2.11.0\n";
        assert!(matches!(cause(wheel), Failure::NoWheel));
    }

    #[test]
    fn a_full_disk_is_noticed_in_pips_words() {
        let said = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n";
        assert!(matches!(cause(said), Failure::RanFull));
    }

    #[test]
    fn an_untrusted_certificate_is_not_taken_for_a_missing_network() {
        let said = "Max retries exceeded with url: /simple/torch/ (Caused by SSLError(SSLCertVerificationError(1, \
                    '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed')))";
        assert!(matches!(cause(said), Failure::Certificate));
    }

    #[test]
    fn other_words_of_pip_stand_for_themselves() {
        assert!(matches!(cause("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES"), Failure::Pip));
    }
}
