//! The files of a session's folder: images and latents, whose names hold a digest of their content.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Component, Path, PathBuf};

use kontext_core::{Error, Result, buffer, printable, shortened, write_file};
use sha2::{Digest, Sha256};

use super::index::INDEX;

/// Largest file that is read, a little more than the largest image takes.
const MOST_BYTES: u64 = 1 << 30;
/// Hexadecimal digits of a digest. Names of earlier versions have 16, of a hash that is not checked.
const DIGITS: usize = 32;
/// Characters of a name that a message shows.
const LONGEST_NAME: usize = 200;

/// A session's folder.
#[derive(Debug, Clone, Copy)]
pub(super) struct Files<'a> {
    pub(super) folder: &'a Path,
}

impl<'a> Files<'a> {
    /// Writes a file unless it is there with this content, and returns its name.
    pub(super) fn write(self, name: &str, extension: &str, bytes: &[u8]) -> Result<String> {
        let name = format!("{name}-{}.{extension}", digest(bytes));
        let path = self.folder.join(&name);
        let metadata = path.symlink_metadata();
        let is_file = metadata
            .as_ref()
            .is_ok_and(|m| m.is_file() && m.len() == bytes.len() as u64);
        if is_file && std::fs::read(&path).is_ok_and(|there| there == bytes) {
            return Ok(name);
        }
        if metadata.is_ok_and(|metadata| metadata.is_symlink()) {
            // It could lead anywhere.
            std::fs::remove_file(&path).map_err(Error::io(&path))?;
        }
        write_file(&path, bytes)?;
        Ok(name)
    }

    /// Reads a file that `session.json` names, and checks its digest.
    pub(super) fn read(self, name: &str) -> Result<Vec<u8>> {
        let path = self.own(name)?;
        let bytes = read_bounded(&path)?;
        match digest_of(name) {
            Some(expected) if expected != digest(&bytes) => {
                let reason =
                    "its content is not the one that was saved; restore it from a copy, or save the session again";
                Err(Error::config(path, reason))
            }
            _ => Ok(bytes),
        }
    }

    /// Returns the path of a regular file, and checks that it is in the folder itself; another could lead
    /// anywhere.
    pub(super) fn own(self, name: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        let mut parts = Path::new(name).components();
        let is_name =
            matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) && !name.contains('\0');
        let canonical = |path: &Path| path.canonicalize().map_err(Error::io(path));
        if is_name && canonical(&path)?.parent() == Some(&canonical(self.folder)?) && path.is_file() {
            return Ok(path);
        }
        let shown = shortened(&printable(name), LONGEST_NAME);
        let reason = format!("`{shown}` is no file of this folder; correct it");
        Err(Error::config(self.folder.join(INDEX), reason))
    }
}

/// Reads a regular file of at most a gigabyte.
pub(super) fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let metadata = path.metadata().map_err(Error::io(path))?;
    let size = metadata.len();
    if metadata.is_dir() {
        return Err(Error::io(path)(ErrorKind::IsADirectory.into()));
    }
    if !metadata.is_file() || size > MOST_BYTES {
        let reason = format!("expected a regular file of at most {MOST_BYTES} bytes; restore it from a copy");
        return Err(Error::config(path, reason));
    }
    let mut bytes = buffer::with_room(size as usize, "a file of the session")?;
    let file = File::open(path).map_err(Error::io(path))?;
    file.take(size).read_to_end(&mut bytes).map_err(Error::io(path))?;
    Ok(bytes)
}

/// Returns the digest of a file's bytes.
pub(super) fn digest(bytes: &[u8]) -> String {
    let mut text = format!("{:x}", Sha256::digest(bytes));
    text.truncate(DIGITS);
    text
}

/// Returns the digest in a file's name; `None` for names of earlier versions.
fn digest_of(name: &str) -> Option<&str> {
    let (_, digest) = name.rsplit_once('.')?.0.rsplit_once('-')?;
    let is_digest = digest.len() == DIGITS && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_digest.then_some(digest)
}
