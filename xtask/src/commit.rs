//! The commit of a GPU kit.

use std::path::Path;

use crate::git;

/// Placeholder for a missing answer from git.
const UNKNOWN: &str = "unknown";

/// Returns two lines: the commit checked out in `root`, marked if the working tree differs, and its date.
pub(crate) fn describe(root: &Path) -> String {
    let commit = git::output(root, &["rev-parse", "HEAD"]);
    let status = git::output(root, &["status", "--porcelain"]);
    let date = git::output(root, &["show", "--no-patch", "--format=%cI", "HEAD"]);
    lines(commit.as_deref(), status.as_deref(), date.as_deref())
}

/// Formats the two lines. With an unknown `status` the commit is not named: it would pass for a clean one.
fn lines(commit: Option<&str>, status: Option<&str>, date: Option<&str>) -> String {
    match (commit, status) {
        (Some(commit), Some(status)) => {
            let changes = if status.is_empty() { "" } else { " (with changes)" };
            format!("{commit}{changes}\n{}\n", date.unwrap_or(UNKNOWN))
        }
        _ => format!("{UNKNOWN}\n{UNKNOWN}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_files_are_told_beside_the_commit() {
        let (commit, date) = (Some("0123abc"), Some("2026-01-02T03:04:05+00:00"));
        assert_eq!(lines(commit, Some(""), date), "0123abc\n2026-01-02T03:04:05+00:00\n");
        assert_eq!(
            lines(commit, Some("?? new.rs"), date),
            "0123abc (with changes)\n2026-01-02T03:04:05+00:00\n"
        );
    }

    #[test]
    fn what_git_does_not_tell_is_unknown() {
        assert_eq!(lines(None, None, None), "unknown\nunknown\n");
        assert_eq!(lines(Some("0123abc"), None, Some("today")), "unknown\nunknown\n");
        assert_eq!(describe(Path::new("/no/such/folder")), "unknown\nunknown\n");
    }
}
