//! Measurements in an append-only file, so that nothing is measured twice.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use kontext_core::{Error, Result, sync_entry, without_mark};

use super::Measurement;

/// A file of [`Measurement`]s, one JSON object per line. Each is on disk before the next is made.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    file: File,
    done: BTreeMap<(String, String), Measurement>,
}

impl Records {
    /// Opens or creates the file and reads its records. A last line truncated by a kill is dropped.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read and written; a checkpoint error if it is UTF-16;
    /// [`Error::InvalidArgument`] with the line number if a complete line is not a measurement.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = || Error::io(path);
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(io())?;
        sync_entry(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io())?;
        without_mark(&bytes).map_err(|reason| Error::config(path, reason))?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let mut done = BTreeMap::new();
        for (number, line) in bytes
            .get(..whole)
            .unwrap_or_default()
            .split(|byte| *byte == b'\n')
            .enumerate()
        {
            let line = without_mark(line).unwrap_or(line).trim_ascii();
            if line.is_empty() {
                continue;
            }
            let record: Measurement = serde_json::from_slice(line).map_err(|error| {
                let expected = "a measurement (remove the line, or name another file or folder)";
                Error::invalid(
                    "record",
                    expected,
                    format!("{} line {}: {error}", path.display(), number + 1),
                )
            })?;
            done.insert(record.key(), record);
        }
        if whole < bytes.len() {
            file.set_len(whole as u64).map_err(io())?;
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            done,
        })
    }

    /// Returns the measurement of an image by an autoencoder, whatever its setting.
    #[must_use]
    pub fn find(&self, vae: &str, image: &str) -> Option<&Measurement> {
        self.done.get(&(vae.to_owned(), image.to_owned()))
    }

    /// Returns the number of measurements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.done.len()
    }

    /// Returns `true` if there are no measurements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.done.is_empty()
    }

    /// Adds a measurement, replacing one of the same image and autoencoder, and waits until it is on disk.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn add(&mut self, record: Measurement) -> Result<()> {
        let mut line = serde_json::to_vec(&record).map_err(|error| Error::io(&self.path)(error.into()))?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .and_then(|()| self.file.sync_data())
            .map_err(Error::io(&self.path))?;
        self.done.insert(record.key(), record);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(image: &str, psnr: f64) -> Measurement {
        let (vae, setting) = ("A".to_owned(), "s".to_owned());
        Measurement {
            vae,
            image: image.to_owned(),
            setting,
            pixels: 7,
            pdist: None,
            cosine: None,
            ssim: 0.1 + 0.2,
            psnr,
        }
    }

    #[test]
    fn a_torn_last_line_is_dropped_and_the_rest_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records.jsonl");
        let mut records = Records::open(&path).unwrap();
        records.add(record("a.png", 30.0)).unwrap();
        records.add(record("b.png", 31.5)).unwrap();
        let length = std::fs::metadata(&path).unwrap().len();
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(length - 5)
            .unwrap();
        let mut records = Records::open(&path).unwrap();
        assert_eq!((records.len(), records.find("A", "b.png")), (1, None));
        assert_eq!(records.find("A", "a.png"), Some(&record("a.png", 30.0)));
        // A line added now is not joined to the torn one.
        records.add(record("b.png", 32.0)).unwrap();
        records.add(record("a.png", 33.0)).unwrap();
        let records = Records::open(&path).unwrap();
        assert_eq!(records.find("A", "b.png").unwrap().psnr, 32.0);
        assert_eq!((records.len(), records.find("A", "a.png").unwrap().psnr), (2, 33.0));
    }

    #[test]
    fn a_line_that_is_no_measurement_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records.jsonl");
        std::fs::write(&path, "\n{\"vae\": 3}\n").unwrap();
        let error = Records::open(&path).unwrap_err().to_string();
        assert!(error.contains("records.jsonl line 2: "), "{error}");
        assert!(Records::open(folder.path()).is_err());
    }

    #[test]
    fn records_that_an_editor_has_saved_are_read_or_its_encoding_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records.jsonl");
        let line = serde_json::to_string(&record("a.png", 30.0)).unwrap();
        std::fs::write(&path, format!("\u{feff}{line}\r\n\r\n")).unwrap();
        assert_eq!(Records::open(&path).unwrap().find("A", "a.png").unwrap().psnr, 30.0);
        let wide: Vec<u8> = format!("\u{feff}{line}\n")
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        std::fs::write(&path, &wide).unwrap();
        let error = Records::open(&path).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("UTF-16; save it as UTF-8"), "{cause}");
        assert_eq!(std::fs::read(&path).unwrap(), wide);
    }
}
