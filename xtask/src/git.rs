//! Questions to git.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

/// The output of git in `folder`, or `None` if it is absent or fails.
pub(crate) fn output<W: AsRef<OsStr>>(folder: &Path, words: &[W]) -> Option<String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(folder)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
