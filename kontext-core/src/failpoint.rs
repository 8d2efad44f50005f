//! Hooks at the renaming of files, for tests that stop a program at each of them (feature `failpoints`).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::{Error, Result, lock};

/// A function that is called with the final path of a file.
type Hook = Box<dyn Fn(&Path) -> io::Result<()> + Send>;

static HOOKS: Mutex<BTreeMap<PathBuf, Hook>> = Mutex::new(BTreeMap::new());

/// Calls `hook` before each renaming of a file to a path below `folder`, instead of the hook set there before.
/// Its error is that of the renaming, which then does not happen. The hook may end the process.
pub fn set(folder: impl Into<PathBuf>, hook: impl Fn(&Path) -> io::Result<()> + Send + 'static) {
    lock(&HOOKS).insert(folder.into(), Box::new(hook));
}

/// Removes the hook of `folder`.
pub fn clear(folder: &Path) {
    lock(&HOOKS).remove(folder);
}

/// Calls the hooks of the folders above `path`.
pub(crate) fn reached(path: &Path) -> Result<()> {
    for (folder, hook) in lock(&HOOKS).iter() {
        if path.starts_with(folder) {
            hook(path).map_err(Error::io(path))?;
        }
    }
    Ok(())
}
