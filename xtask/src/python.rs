//! python3 and its pip, which downloads, verifies and unpacks the wheels.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, io};

use crate::failure::Failure;
use crate::goods::Goods;

/// Python version of the selected wheels, whichever runs pip: libtorch is the same in all of them, and
/// a fixed choice works with every pip. (torch 2.11.0 has wheels for 3.10 to 3.14.)
const WHEELS_FOR_PYTHON: &str = "3.12";

/// First pip that understands the wheels' tag `manylinux_2_28`.
const OLDEST_PIP: (u32, u32) = (20, 3);

/// Python program that compresses the file of the first argument into that of the second.
const PACK: &str = "\
import lzma, shutil, sys
with open(sys.argv[1], 'rb') as plain, lzma.open(sys.argv[2], 'wb', preset=9) as packed:
    shutil.copyfileobj(plain, packed)
";

/// A Python with a pip that can fetch wheels.
#[derive(Debug)]
pub(crate) struct Python {
    program: &'static str,
    /// Download target named in pip's failures.
    goods: Goods,
}

impl Python {
    pub(crate) fn with_pip(goods: Goods) -> Result<Self, Failure> {
        let mut failure = Failure::NoPython { goods };
        for program in ["python3", "python"] {
            match pip_of(program, goods) {
                Ok(()) => return Ok(Self { program, goods }),
                // A problem of an existing Python is more informative than the absence of another.
                Err(Failure::NoPython { .. }) => {}
                Err(other) => {
                    if matches!(failure, Failure::NoPython { .. }) {
                        failure = other;
                    }
                }
            }
        }
        Err(failure)
    }

    /// Returns a Python of any name for tests, without a check that it exists.
    #[cfg(test)]
    pub(crate) fn imitated(program: &'static str, goods: Goods) -> Self {
        Self { program, goods }
    }

    /// Installs wheels into `target`; pip shows its own progress, on stderr.
    ///
    /// `scratch` is a folder on the same disk for pip's log and temporary files: the default one, often a
    /// small in-memory file system, would have to hold the downloads and everything unpacked.
    pub(crate) fn install(&self, requirements: &[&str], target: &Path, scratch: &Path) -> Result<(), Failure> {
        let mut pip = self.pip("install", scratch);
        pip.arg("--no-compile").arg("--target").arg(target);
        pip.args(requirements);
        self.execute(pip, scratch)
    }

    /// Downloads the wheels of `requirements`, still packed, into `target`. A wheel must name one of
    /// `platforms` literally. For `scratch`, see [`Self::install`].
    pub(crate) fn download(
        &self,
        requirements: &[&str],
        platforms: &[String],
        target: &Path,
        scratch: &Path,
    ) -> Result<(), Failure> {
        let mut pip = self.pip("download", scratch);
        for platform in platforms {
            pip.arg("--platform").arg(platform);
        }
        pip.arg("--dest").arg(target).args(requirements);
        self.execute(pip, scratch)
    }

    /// Compresses the file `plain` into `packed`, in the xz format.
    pub(crate) fn pack(&self, plain: &Path, packed: &Path) -> Result<(), Failure> {
        let output = Command::new(self.program)
            .args(["-c", PACK])
            .args([plain, packed])
            .stdin(Stdio::null())
            .output()
            .map_err(|source| Failure::Start {
                program: self.program.to_owned(),
                source,
            })?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().lines().last().unwrap_or("it says nothing").to_owned();
        Err(Failure::Pack {
            python: self.program.to_owned(),
            said,
        })
    }

    /// Builds a pip command with the options common to both.
    fn pip(&self, command: &str, scratch: &Path) -> Command {
        let mut pip = Command::new(self.program);
        pip.args([
            "-m",
            "pip",
            command,
            "--disable-pip-version-check",
            "--no-input",
            "--no-deps",
        ])
        .args([
            "--only-binary=:all:",
            "--implementation=cp",
            "--python-version",
            WHEELS_FOR_PYTHON,
        ])
        // Up to 22.3, pip still checks the wheels against its own Python.
        .arg("--ignore-requires-python")
        .arg("--log")
        .arg(log(scratch));
        // Overrides user settings that would keep pip from installing into a folder, and silences a warning
        // about running as root.
        pip.env("PIP_USER", "0")
            .env("PIP_REQUIRE_VIRTUALENV", "0")
            .env("PIP_ROOT_USER_ACTION", "ignore");
        pip.env("TMPDIR", scratch);
        // Stdout is reserved for xtask's own output.
        pip.stdin(Stdio::null()).stdout(io::stderr());
        pip
    }

    /// Runs pip to completion; on failure, derives the cause from its log.
    fn execute(&self, mut pip: Command, scratch: &Path) -> Result<(), Failure> {
        let status = pip.status().map_err(|source| Failure::Start {
            program: self.program.to_owned(),
            source,
        })?;
        if status.success() {
            return Ok(());
        }
        let said = fs::read(log(scratch)).unwrap_or_default();
        Err(cause(&String::from_utf8_lossy(&said), self.goods))
    }
}

/// Returns the path of pip's log.
fn log(scratch: &Path) -> PathBuf {
    scratch.join("pip.log")
}

/// Checks that `program` exists and has a recent enough pip.
fn pip_of(program: &'static str, goods: Goods) -> Result<(), Failure> {
    let output = match Command::new(program)
        .args(["-m", "pip", "--version"])
        .stdin(Stdio::null())
        .output()
    {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Failure::NoPython { goods }),
        output => output.map_err(|source| Failure::Start {
            program: program.to_owned(),
            source,
        })?,
    };
    let python = program.to_owned();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim().lines().last().unwrap_or("it says nothing").to_owned();
        return Err(Failure::NoPip { goods, python, said });
    }
    match pip_version(&String::from_utf8_lossy(&output.stdout)) {
        Some((version, numbers)) if numbers < OLDEST_PIP => Err(Failure::OldPip { goods, python, version }),
        // An unknown version format is left to pip itself.
        _ => Ok(()),
    }
}

/// Parses the version in `pip 23.2.1 from /usr/lib/python3/dist-packages/pip (python 3.11)`: the full text
/// and its first two numbers.
fn pip_version(text: &str) -> Option<(String, (u32, u32))> {
    let version = text.strip_prefix("pip ")?.split_whitespace().next()?;
    let mut numbers = version.split('.').map(str::parse);
    let first = numbers.next()?.ok()?;
    let second = numbers.next().and_then(Result::ok).unwrap_or(0);
    Some((version.to_owned(), (first, second)))
}

/// Derives the cause of a failure from pip's log. The order matters: without a network, pip's last message is
/// that no such wheel exists.
fn cause(said: &str, goods: Goods) -> Failure {
    let has = |signs: &[&str]| signs.iter().any(|sign| said.contains(sign));
    if has(&["No space left on device", "Errno 28", "Disk quota exceeded"]) {
        Failure::RanFull { goods }
    } else if has(&["CERTIFICATE_VERIFY_FAILED", "SSLCertVerificationError", "SSLError"]) {
        Failure::Certificate { goods }
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
        Failure::NoNetwork { goods }
    } else if has(&["No matching distribution found"]) {
        Failure::NoWheel { goods }
    } else {
        Failure::Pip { goods }
    }
}

/// Returns the Python that the build script of torch-sys uses if `LIBTORCH_USE_PYTORCH` is set.
fn python_of_pytorch() -> &'static str {
    if env::var_os("VIRTUAL_ENV").is_some() {
        "python"
    } else {
        "python3"
    }
}

/// Returns the folder of the torch that Python imports.
pub(crate) fn imported_torch() -> Result<PathBuf, Failure> {
    let program = python_of_pytorch();
    let output = Command::new(program)
        .args(["-c", "import torch; print(torch.__path__[0])"])
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Failure::Start {
            program: program.to_owned(),
            source,
        })?;
    let said = String::from_utf8_lossy(if output.status.success() {
        &output.stdout
    } else {
        &output.stderr
    });
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
        assert!(matches!(cause(nowhere, Goods::Libtorch), Failure::NoNetwork { .. }));
        let wheel = "ERROR: No matching distribution found for torch==2.11.0\n";
        assert!(matches!(cause(wheel, Goods::Libtorch), Failure::NoWheel { .. }));
    }

    #[test]
    fn a_full_disk_is_noticed_in_pips_words() {
        let said = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n";
        assert!(matches!(cause(said, Goods::Libtorch), Failure::RanFull { .. }));
    }

    #[test]
    fn an_untrusted_certificate_is_not_taken_for_a_missing_network() {
        let said = "Max retries exceeded with url: /simple/torch/ (Caused by SSLError(SSLCertVerificationError(1, \
                    '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed')))";
        assert!(matches!(cause(said, Goods::Libtorch), Failure::Certificate { .. }));
    }

    #[test]
    fn a_failure_names_what_pip_was_to_fetch() {
        let wheel = "ERROR: No matching distribution found for diffusers==0.38.0\n";
        for said in [wheel, "NewConnectionError", "SSLError", "Errno 28", "something else"] {
            let message = cause(said, Goods::KitWheels).to_string();
            assert!(
                message.contains("GPU kit") && !message.contains("libtorch"),
                "{message}"
            );
            assert!(cause(said, Goods::Libtorch).to_string().contains("libtorch"));
        }
    }

    #[test]
    fn other_words_of_pip_stand_for_themselves() {
        assert!(matches!(
            cause("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", Goods::Libtorch),
            Failure::Pip { .. }
        ));
    }
}
