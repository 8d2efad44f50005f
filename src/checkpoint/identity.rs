//! Digests of model files, independent of their paths.

use std::fs::File;
use std::io::{Error as IoError, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use kontext_core::{Error, Result};
use sha2::{Digest, Sha256};

use super::Checkpoint;
use super::files::weights_files;

/// Size above which only samples of a file are read; files of equal size that agree in all samples count as equal.
const WHOLE: u64 = 64 << 20;
/// Samples of a larger file, including its beginning and its end.
const SAMPLES: u64 = 64;
/// Bytes of a sample: the header of a weights file fits into a few.
const SAMPLE: u64 = 1 << 20;

impl Checkpoint {
    /// Returns a digest of the contents of the files that the model is read from ([`Checkpoint::files`] without
    /// `model_index.json`), each with its role, and of `more`, such as LoRAs; as [`file_digest`], 16 hexadecimal
    /// digits. Names and other files in the folders do not count.
    ///
    /// # Errors
    /// Those of [`Checkpoint::files`], and [`Error::Io`] if a file cannot be read.
    pub fn digest(&self, more: &[PathBuf]) -> Result<String> {
        let mut roles = self.files_by_role()?;
        for path in more {
            // What is no file of weights counts as it is.
            let files = weights_files(path).unwrap_or_else(|_| vec![path.clone()]);
            roles.push(("more", files));
        }
        let mut hash = Sha256::new();
        for (role, files) in roles {
            add_name(role.as_bytes(), &mut hash);
            hash.update(files.len().to_le_bytes());
            files.iter().try_for_each(|file| add(file, &mut hash))?;
        }
        Ok(shown(hash))
    }
}

/// Returns a digest of files and folders, 16 hexadecimal digits: of their contents in this order, and of the names of
/// the files in folders, but not of the names of the paths themselves. Hidden files and what is no regular file are
/// left out in folders. Of a file above 64 MiB it takes 64 samples of 1 MiB each, with its beginning and its end.
///
/// # Errors
/// [`Error::Io`] if a file cannot be read or a path is a pipe or a device.
pub fn file_digest<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Result<String> {
    let mut hash = Sha256::new();
    paths.into_iter().try_for_each(|path| add(path, &mut hash))?;
    Ok(shown(hash))
}

fn shown(hash: Sha256) -> String {
    format!("{:x}", hash.finalize()).chars().take(16).collect()
}

/// Adds a name so that it cannot be mistaken for content.
fn add_name(name: &[u8], hash: &mut Sha256) {
    hash.update(name.len().to_le_bytes());
    hash.update(name);
}

/// Adds a file, or the files of a folder.
fn add(path: &Path, hash: &mut Sha256) -> Result<()> {
    if !path.is_dir() {
        return add_file(path, hash).map_err(Error::io(path));
    }
    let entries = std::fs::read_dir(path).map_err(Error::io(path))?;
    let entries = entries.map(|entry| Ok(entry?.path()));
    let mut paths = entries
        .collect::<std::io::Result<Vec<PathBuf>>>()
        .map_err(Error::io(path))?;
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        if !name.starts_with(b".") && (path.is_file() || path.is_dir()) {
            add_name(name, hash);
            add(&path, hash)?;
        }
    }
    Ok(())
}

fn add_file(path: &Path, hash: &mut Sha256) -> std::io::Result<()> {
    // Opening a pipe would wait for its writer.
    if !path.metadata()?.is_file() {
        return Err(IoError::new(
            ErrorKind::InvalidInput,
            "it is a pipe or a device; expected a file",
        ));
    }
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    hash.update(size.to_le_bytes());
    if size <= WHOLE {
        std::io::copy(&mut file, hash)?;
        return Ok(());
    }
    for start in samples(size) {
        file.seek(SeekFrom::Start(start))?;
        std::io::copy(&mut Read::by_ref(&mut file).take(SAMPLE), hash)?;
    }
    Ok(())
}

/// Returns the places of a large file's samples: the first begins with it, the last ends with it.
fn samples(size: u64) -> impl Iterator<Item = u64> {
    let (last, gaps) = (size - SAMPLE, SAMPLES - 1);
    // As `last * sample / gaps`, without an overflow.
    (0..SAMPLES).map(move |sample| last / gaps * sample + last % gaps * sample / gaps)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{Layout, Weights};

    fn digest(folder: &Path) -> String {
        Checkpoint::find(folder).unwrap().digest(&[]).unwrap()
    }

    fn model(layout: Layout) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        crate::random_model(folder.path(), 7, layout).unwrap();
        folder
    }

    #[test]
    fn every_file_that_is_read_counts_and_no_other() {
        for layout in [Layout::Diffusers, Layout::SingleFiles] {
            let folder = model(layout);
            let folder = folder.path();
            let before = digest(folder);
            // A change that keeps the files usable: spaces in texts, other bytes at the end of weights.
            let files = Checkpoint::find(folder).unwrap().files().unwrap();
            for file in files.iter().filter(|file| !file.ends_with("model_index.json")) {
                let bytes = fs::read(file).unwrap();
                let mut changed = bytes.clone();
                match file.extension().unwrap().to_str().unwrap() {
                    "safetensors" => *changed.last_mut().unwrap() ^= 1,
                    _ => changed.push(b' '),
                }
                fs::write(file, changed).unwrap();
                assert_ne!(digest(folder), before, "{}", file.display());
                fs::write(file, bytes).unwrap();
            }
            for name in ["transformer", "vae", "text_encoder", "tokenizer", "tokenizer_2"] {
                let part = folder.join(name);
                for other in [".DS_Store", "notes.txt"].map(|other| part.join(other)) {
                    if part.is_dir() {
                        fs::write(other, "not read").unwrap();
                    }
                }
            }
            assert_eq!(digest(folder), before);
        }
    }

    #[test]
    fn neither_the_folder_nor_the_name_of_a_single_file_counts() {
        let folder = model(Layout::SingleFiles);
        let before = digest(folder.path());
        let found = Checkpoint::find(folder.path()).unwrap();
        for part in [&found.transformer, &found.vae] {
            let renamed = part.with_file_name(format!("my-{}", part.file_name().unwrap().display()));
            fs::rename(part, renamed).unwrap();
        }
        let moved = folder.path().with_extension("moved");
        fs::rename(folder.path(), &moved).unwrap();
        let after = digest(&moved);
        fs::rename(&moved, folder.path()).unwrap();
        assert_eq!(after, before);
    }

    #[test]
    fn every_shard_of_a_set_and_both_files_of_clips_tokenizer_count() {
        let folder = model(Layout::SingleFiles);
        let found = Checkpoint::find(folder.path()).unwrap();
        let weights = Weights::open(&found.vae).unwrap();
        let names = weights.names();
        let shard = |number: usize| {
            found
                .vae
                .with_file_name(format!("vae-0000{number}-of-00002.safetensors"))
        };
        for (number, names) in names.chunks(names.len().div_ceil(2)).enumerate() {
            let tensors: Vec<_> = names
                .iter()
                .map(|name| (name.clone(), weights.raw(name).unwrap()))
                .collect();
            kontext_formats::save(shard(number + 1), &tensors, None).unwrap();
        }
        fs::remove_file(&found.vae).unwrap();
        let before = digest(folder.path());
        let bytes = fs::read(shard(2)).unwrap();
        let mut changed = bytes.clone();
        *changed.last_mut().unwrap() ^= 1;
        fs::write(shard(2), changed).unwrap();
        assert_ne!(digest(folder.path()), before);
        fs::write(shard(2), bytes).unwrap();
        assert_eq!(digest(folder.path()), before);

        let tokenizer = found.clip_tokenizer;
        let of = |path: PathBuf| Checkpoint {
            clip_tokenizer: path,
            ..Checkpoint::find(folder.path()).unwrap()
        };
        let by_file = of(tokenizer.join("vocab.json"));
        assert_eq!(by_file.digest(&[]).unwrap(), before);
        let merges = tokenizer.join("merges.txt");
        let text = fs::read_to_string(&merges).unwrap();
        fs::write(merges, text + "\n").unwrap();
        assert_ne!(by_file.digest(&[]).unwrap(), before);
    }

    #[test]
    fn hidden_files_in_a_folder_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        fs::write(path.join("a"), "a").unwrap();
        let before = file_digest([&path]).unwrap();
        fs::write(path.join(".DS_Store"), "").unwrap();
        assert_eq!(file_digest([&path]).unwrap(), before);
        fs::rename(path.join("a"), path.join("b")).unwrap();
        assert_ne!(file_digest([&path]).unwrap(), before);
    }

    #[cfg(unix)]
    #[test]
    fn a_socket_is_left_out_in_a_folder_and_refused_as_a_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let before = file_digest([&path]).unwrap();
        let socket = path.join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(file_digest([&path]).unwrap(), before);
        assert!(file_digest([&socket]).is_err());
    }

    #[test]
    fn the_samples_of_a_large_file_reach_its_end() {
        for size in [WHOLE + 1, WHOLE + 62, 23_802_932_552, u64::MAX] {
            let places: Vec<u64> = samples(size).collect();
            assert_eq!((places[0], places[63]), (0, size - SAMPLE), "{size}");
            assert!(places.is_sorted());
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let error = file_digest([&PathBuf::from("no/such.safetensors")]).unwrap_err();
        assert!(error.to_string().contains("no/such.safetensors"), "{error}");
    }
}
