//! A run's folder, in which a pair is done once its record exists.
//!
//! ```text
//! run.json             facts of the run
//! pictures/KEY.png     results
//! records/KEY.json     their metrics, written last
//! timings/KEY.json     seconds; only files under timings/ differ if a run is repeated
//! ```
//!
//! Every file is an [`OutputFile`](kontext_core::OutputFile), so that a process may be killed, or the power
//! cut, at any moment, and that several shards may work in one run folder.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder, RgbImage};
use kontext_core::{Error, Result, create_folder, read_json, write_file};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::{Pair, Record, RunInfo, Timing};

/// A folder with results of one run.
#[derive(Debug, Clone)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Opens an existing folder.
    ///
    /// # Errors
    /// [`Error::Io`] if there is no `run.json`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let info = path.join("run.json");
        if !info.is_file() {
            return Err(Error::io(info)(ErrorKind::NotFound.into()));
        }
        Ok(Self { path })
    }

    /// Opens a folder for writing: created if missing, refused if it holds a different run.
    pub(super) fn create(path: &Path, info: &RunInfo) -> Result<(Self, Writer)> {
        let folder = Self { path: path.to_owned() };
        if folder.file("run.json").is_file()
            && let Some(difference) = folder.info()?.difference(info)
        {
            let expected = "a folder that is new or holds the same run";
            return Err(Error::invalid(
                "output folder",
                expected,
                format!("{}: {difference}", path.display()),
            ));
        }
        for name in ["pictures", "records", "timings"] {
            create_folder(folder.file(name))?;
        }
        let writer = Writer { folder: folder.clone() };
        writer.json("run.json", info)?;
        Ok((folder, writer))
    }

    /// Returns the folder's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the facts of the run.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Checkpoint`] if `run.json` cannot be read.
    pub fn info(&self) -> Result<RunInfo> {
        read_json(self.file("run.json"))
    }

    /// Returns the names of two runs, which distinguish their results in votes.
    pub(super) fn names(runs: &[&Self; 2]) -> Result<[String; 2]> {
        let [a, b] = runs;
        let (a, b) = (a.info()?.name, b.info()?.name);
        if a == b {
            let got = format!("two that are called {a:?}");
            return Err(Error::invalid("runs", "two of different names (--name)", got));
        }
        Ok([a, b])
    }

    /// Returns a pair's record if the pair is done: the record is complete and of this pair, and the image is
    /// the one that was measured.
    #[must_use]
    pub fn record(&self, pair: &Pair) -> Option<Record> {
        let record: Record = self.json("records", pair)?;
        let same = record.key == pair.key && record.sha256 == sha256(&fs::read(self.image(pair)).ok()?);
        same.then_some(record)
    }

    /// Returns the timing of a pair.
    #[must_use]
    pub fn timing(&self, pair: &Pair) -> Option<Timing> {
        self.json("timings", pair)
    }

    /// Returns the path of a pair's result.
    #[must_use]
    pub fn image(&self, pair: &Pair) -> PathBuf {
        self.file("pictures").join(pair.file_stem()).with_extension("png")
    }

    /// Returns the file stems of all records in the folder, whatever their pairs.
    pub(super) fn stems(&self) -> Result<Vec<String>> {
        let folder = self.file("records");
        let mut stems = Vec::new();
        for entry in fs::read_dir(&folder).map_err(Error::io(&folder))? {
            let name = entry
                .map_err(Error::io(&folder))?
                .file_name()
                .to_string_lossy()
                .into_owned();
            stems.extend(name.strip_suffix(".json").map(str::to_owned));
        }
        stems.sort();
        Ok(stems)
    }

    fn json<T: DeserializeOwned>(&self, folder: &str, pair: &Pair) -> Option<T> {
        let path = self.file(folder).join(pair.file_stem()).with_extension("json");
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Writer of the folder's files.
#[derive(Debug)]
pub(super) struct Writer {
    folder: RunFolder,
}

impl Writer {
    /// Writes a pair's image, its timing if any, and last its record.
    pub(super) fn pair(&self, pair: &Pair, png: &[u8], timing: Option<&Timing>, record: &Record) -> Result<()> {
        let stem = pair.file_stem();
        self.bytes(&format!("pictures/{stem}.png"), png)?;
        if let Some(timing) = timing {
            self.json(&format!("timings/{stem}.json"), timing)?;
        }
        self.json(&format!("records/{stem}.json"), record)
    }

    pub(super) fn json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(|e| Error::io(self.folder.file(name))(e.into()))?;
        self.bytes(name, format!("{text}\n").as_bytes())
    }

    pub(super) fn bytes(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_file(self.folder.file(name), bytes)
    }
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// Encodes an image as PNG.
pub(super) fn png(image: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let encoder = PngEncoder::new(&mut bytes);
    let (width, height) = image.dimensions();
    encoder
        .write_image(image.as_raw(), width, height, ExtendedColorType::Rgb8)
        .map_err(Error::image("result"))?;
    Ok(bytes)
}
