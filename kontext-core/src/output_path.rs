//! The file that an output replaces or creates.

use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Number of symbolic links in a row that are followed, as on Linux.
const MOST_LINKS: usize = 40;

/// Returns the file that writing to `path` creates or replaces: `path`, or the target of the symbolic link of
/// that name, also one that does not exist yet.
///
/// # Errors
/// [`Error::Io`] if no file of this name can be written: the name is empty, too long or ends in a slash, a
/// folder or a device has it, links of it form a loop, or it is a file that the user may not write.
///
/// # Example
/// ```
/// use kontext_core::output_path;
/// assert_eq!(output_path("kontext-absent.png".as_ref())?.as_os_str(), "kontext-absent.png");
/// assert!(output_path("kontext-absent.png/".as_ref()).is_err());
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn output_path(path: &Path) -> Result<PathBuf> {
    let fault = |kind, words| Err(Error::io(path)(io::Error::new(kind, words)));
    let name = path.file_name().map(std::ffi::OsStr::as_encoded_bytes);
    if !name.is_some_and(|name| path.as_os_str().as_encoded_bytes().ends_with(name)) {
        let words = "the path ends in a slash or a dot, or is empty; expected the name of a file";
        return fault(io::ErrorKind::InvalidInput, words);
    }
    let (target, found) = followed(path)?;
    let Some(found) = found else { return Ok(target) };
    if found.is_dir() {
        return Err(Error::io(path)(io::ErrorKind::IsADirectory.into()));
    }
    if !found.is_file() {
        return fault(
            io::ErrorKind::InvalidInput,
            "it is a device, a pipe or a socket; name a file",
        );
    }
    // The first is also true for the superuser, who may write all files.
    let opened = if found.permissions().readonly() {
        Err(io::ErrorKind::PermissionDenied.into())
    } else {
        fs::OpenOptions::new().write(true).open(&target).map(drop)
    };
    opened.map_err(Error::io(path))?;
    Ok(target)
}

/// Follows symbolic links to a path that is none, and returns its metadata if it exists.
pub(crate) fn followed(path: &Path) -> Result<(PathBuf, Option<Metadata>)> {
    let mut target = path.to_owned();
    for _ in 0..=MOST_LINKS {
        match fs::symlink_metadata(&target) {
            Ok(found) if found.is_symlink() => {
                let link = fs::read_link(&target).map_err(Error::io(path))?;
                target = target.parent().unwrap_or(Path::new("")).join(link);
            }
            Ok(found) => return Ok((target, Some(found))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((target, None)),
            Err(error) => return Err(Error::io(path)(error)),
        }
    }
    let words = "its symbolic links form a loop; choose another name";
    Err(Error::io(path)(io::Error::new(io::ErrorKind::InvalidInput, words)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(path: &Path) -> String {
        let error = output_path(path).unwrap_err();
        std::error::Error::source(&error).unwrap().to_string()
    }

    #[test]
    fn a_name_that_no_file_can_have_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        for (name, part) in [
            ("a.png/", "ends in a slash"),
            ("a.png/.", "ends in a slash or a dot"),
            ("..", "ends in a slash or a dot"),
            ("file/a.png", "a part of the path is a file"),
            (&"a".repeat(256), "too long"),
        ] {
            let words = words(&folder.path().join(name));
            assert!(words.contains(part), "{name}: {words}");
        }
        assert!(words(Path::new("")).contains("is empty"));
        assert!(words(folder.path()).contains("it is a folder"));
        output_path(&folder.path().join("a".repeat(255))).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_also_to_a_file_that_does_not_exist_yet() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("deep")).unwrap();
        symlink("deep/second", path("first")).unwrap();
        symlink("../target", path("deep/second")).unwrap();
        assert_eq!(output_path(&path("first")).unwrap(), path("deep/../target"));
        fs::write(path("target"), "").unwrap();
        assert_eq!(output_path(&path("first")).unwrap(), path("deep/../target"));
        symlink("loop", path("loop")).unwrap();
        assert!(words(&path("loop")).contains("form a loop"));
        symlink("deep", path("folder")).unwrap();
        assert!(words(&path("folder")).contains("it is a folder"));
    }

    #[cfg(unix)]
    #[test]
    fn devices_and_read_only_files_are_not_replaced() {
        use std::os::unix::fs::PermissionsExt;
        assert!(words(Path::new("/dev/null")).contains("it is a device"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        assert!(words(&path).contains("permission denied"));
    }
}
