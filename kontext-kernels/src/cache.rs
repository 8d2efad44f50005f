//! Compiled kernels on disk.

use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

use kontext_core::{create_folder, write_file};
use sha2::{Digest, Sha256};

/// First bytes of a file, before the SHA-256 of the code and the code.
const MAGIC: &[u8; 16] = b"kontext-cubin-2\n";
/// First bytes of a cubin.
const ELF: &[u8; 4] = b"\x7fELF";
const SUFFIX: &str = ".kontext-cubin";
/// Most files of a folder: 2 MB.
const KEPT: usize = 24;

/// The file of a text, options and compiler in a folder.
#[derive(Debug)]
pub(crate) struct Entry {
    path: PathBuf,
    key: [u8; 32],
}

impl Entry {
    pub(crate) fn of(folder: &Path, source: &str, options: &[String], version: (i32, i32)) -> Self {
        let mut hash = Sha256::new();
        for part in [source, &options.join("\n"), &format!("{version:?}")] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let key: [u8; 32] = hash.finalize().into();
        let name: String = key[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            path: folder.join(name + SUFFIX),
            key,
        }
    }

    /// Returns the code; `None` if there is no file, or one that is damaged or of another key.
    pub(crate) fn read(&self) -> Option<Vec<u8>> {
        let bytes = fs::read(&self.path).ok()?;
        let rest = bytes.strip_prefix(MAGIC)?;
        let (digest, code) = rest.split_at_checked(32)?;
        let is_whole = code.starts_with(ELF) && self.digest(code)[..] == *digest;
        if is_whole {
            // In use: others are older. A folder that cannot be written keeps its files in any case.
            let file = fs::File::options().append(true).open(&self.path);
            let _ = file.and_then(|file| file.set_modified(SystemTime::now()));
        }
        is_whole.then(|| code.to_vec())
    }

    /// Digests the key with the code, so that a file under another name is not taken for its code.
    fn digest(&self, code: &[u8]) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.key);
        hash.update(code);
        hash.finalize().into()
    }

    /// Writes the code, and removes the files beyond [`KEPT`] that were not used for longest. A folder that cannot be written costs
    /// only the time to compile again, so that errors are ignored.
    pub(crate) fn write(&self, code: &[u8]) {
        let bytes = [&MAGIC[..], &self.digest(code)[..], code].concat();
        let folder = self.path.parent().unwrap_or(Path::new("."));
        if create_folder(folder)
            .and_then(|()| write_file(&self.path, &bytes))
            .is_ok()
        {
            let _ = remove_oldest(folder);
        }
    }
}

fn remove_oldest(folder: &Path) -> io::Result<()> {
    let mut files: Vec<(SystemTime, PathBuf)> = fs::read_dir(folder)?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(SUFFIX))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    files.sort();
    let excess = files.len().saturating_sub(KEPT);
    for (_, path) in files.into_iter().take(excess) {
        // Another process may have removed it.
        let _ = fs::remove_file(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn entry(folder: &Path, option: &str) -> Entry {
        Entry::of(folder, "text", &[option.to_owned()], (13, 0))
    }

    #[test]
    fn code_is_found_by_text_options_and_version() {
        let folder = tempfile::tempdir().unwrap();
        let (path, code) = (folder.path().join("new/folder"), b"\x7fELF code".to_vec());
        let first = entry(&path, "-arch=sm_90");
        assert_eq!(first.read(), None);
        first.write(&code);
        assert_eq!(entry(&path, "-arch=sm_90").read(), Some(code));
        assert_eq!(entry(&path, "-arch=sm_89").read(), None);
        let options = ["-arch=sm_90".to_owned()];
        assert_eq!(Entry::of(&path, "text 2", &options, (13, 0)).read(), None);
        assert_eq!(Entry::of(&path, "text", &options, (13, 1)).read(), None);
    }

    #[test]
    fn code_under_the_name_of_another_key_is_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["-DWIDTH=3072", "-DWIDTH=192"].map(|option| entry(folder.path(), option));
        first.write(b"\x7fELF code");
        fs::rename(&first.path, &second.path).unwrap();
        assert_eq!(second.read(), None);
    }

    #[test]
    fn a_damaged_or_foreign_file_is_ignored_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (entry, code) = (entry(folder.path(), "-arch=sm_90"), b"\x7fELF some code".to_vec());
        entry.write(&code);
        let whole = fs::read(&entry.path).unwrap();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let damaged = [
            &whole[..whole.len() - 1],
            &whole[..20],
            &flipped,
            b"",
            b"another program's",
            &code,
        ];
        for bytes in damaged {
            fs::write(&entry.path, bytes).unwrap();
            assert_eq!(entry.read(), None, "{bytes:?}");
            entry.write(&code);
            assert_eq!(entry.read().as_ref(), Some(&code));
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let entry = entry(&file, "-arch=sm_90");
        entry.write(b"\x7fELF");
        assert_eq!(entry.read(), None);
    }

    #[test]
    fn the_oldest_files_are_removed_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let other = folder.path().join("other.txt");
        fs::write(&other, "").unwrap();
        for age in 0..KEPT + 3 {
            let entry = entry(folder.path(), &age.to_string());
            entry.write(b"\x7fELF");
            let written = fs::File::options().write(true).open(&entry.path).unwrap();
            let time = SystemTime::now() - Duration::from_secs(1000 - age as u64);
            written.set_modified(time).unwrap();
        }
        entry(folder.path(), "new").write(b"\x7fELF");
        let files = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(files, KEPT + 1);
        assert!(other.is_file());
        let read = |age: usize| entry(folder.path(), &age.to_string()).read();
        assert_eq!((read(0), read(3)), (None, None));
        assert!(read(4).is_some() && read(KEPT + 2).is_some() && entry(folder.path(), "new").read().is_some());
    }

    #[test]
    fn a_file_in_use_stays() {
        let folder = tempfile::tempdir().unwrap();
        let used = entry(folder.path(), "used");
        used.write(b"\x7fELF");
        let written = fs::File::options().write(true).open(&used.path).unwrap();
        written
            .set_modified(SystemTime::now() - Duration::from_secs(1000))
            .unwrap();
        assert!(used.read().is_some());
        for other in 0..KEPT {
            let entry = entry(folder.path(), &other.to_string());
            entry.write(b"\x7fELF");
            let written = fs::File::options().write(true).open(&entry.path).unwrap();
            written
                .set_modified(SystemTime::now() - Duration::from_secs(100))
                .unwrap();
        }
        entry(folder.path(), "last").write(b"\x7fELF");
        assert!(used.read().is_some());
    }
}
