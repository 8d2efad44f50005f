//! A run's folder, in which a pair is done when its record is there.
//!
//! ```text
//! run.json             what made the run
//! pictures/KEY.png     results
//! records/KEY.json     their metrics, written last
//! timings/KEY.json     seconds; what is under timings/ is the only thing that differs when a run is made again
//! ```
//!
//! Every file is written under another name in `.partial-i-of-n/`, and then renamed, so that a process may be killed
//! at any moment. Each shard has such a folder of its own, because several may work in one folder.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder, RgbImage};
use kontext_core::{Error, Result, read_json};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::{Pair, Record, RunInfo, Timing};

/// Folders with files that are not whole yet begin so.
const PARTIAL: &str = ".partial-";
/// A folder with such files is taken away once by each shard that ends, and there are seldom many at one moment.
const ATTEMPTS: usize = 100;

/// A folder with results of one run.
#[derive(Debug, Clone)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// An existing one.
    ///
    /// # Errors
    /// [`Error::Io`] where there is no `run.json`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let info = path.join("run.json");
        if !info.is_file() {
            return Err(Error::io(info)(ErrorKind::NotFound.into()));
        }
        Ok(Self { path })
    }

    /// One to write to: made if it is not there, and refused where it holds a run that something else made.
    pub(super) fn create(path: &Path, info: &RunInfo, name: &str) -> Result<(Self, Writer)> {
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
            let path = folder.file(name);
            fs::create_dir_all(&path).map_err(Error::io(path))?;
        }
        let writer = Writer {
            folder: folder.clone(),
            partial: folder.file(&format!("{PARTIAL}{name}")),
        };
        writer.json("run.json", info)?;
        Ok((folder, writer))
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What made it.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Checkpoint`] where `run.json` cannot be read.
    pub fn info(&self) -> Result<RunInfo> {
        read_json(self.file("run.json"))
    }

    /// A pair's record, where the pair is done: the record is whole and of this pair, and the picture is the one that
    /// was measured.
    #[must_use]
    pub fn record(&self, pair: &Pair) -> Option<Record> {
        let record: Record = self.json("records", pair)?;
        let same = record.key == pair.key && record.sha256 == sha256(&fs::read(self.picture(pair)).ok()?);
        same.then_some(record)
    }

    /// How long a pair took.
    #[must_use]
    pub fn timing(&self, pair: &Pair) -> Option<Timing> {
        self.json("timings", pair)
    }

    /// The file of a pair's result.
    #[must_use]
    pub fn picture(&self, pair: &Pair) -> PathBuf {
        self.file("pictures").join(pair.file_stem()).with_extension("png")
    }

    /// The stems of all records in it, of whatever pairs.
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

    /// Takes away what killed processes left, of whatever shard. A shard that is still at work makes its own anew, and
    /// takes it away at its end.
    pub(super) fn sweep(&self) -> Result<()> {
        for entry in fs::read_dir(&self.path).map_err(Error::io(&self.path))? {
            let entry = entry.map_err(Error::io(&self.path))?;
            if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(())
    }

    fn json<T: DeserializeOwned>(&self, folder: &str, pair: &Pair) -> Option<T> {
        let path = self.file(folder).join(pair.file_stem()).with_extension("json");
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Writes files that appear whole or not at all.
#[derive(Debug)]
pub(super) struct Writer {
    folder: RunFolder,
    partial: PathBuf,
}

impl Writer {
    /// A pair's picture, how long it took, and then its record; answers with the record.
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
        let path = self.folder.file(name);
        let mut left = ATTEMPTS;
        loop {
            left -= 1;
            match self.publish(&path, bytes) {
                Err(error) if error.kind() == ErrorKind::NotFound && left > 0 => {}
                result => return result.map_err(Error::io(path)),
            }
        }
    }

    fn publish(&self, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        let partial = self.partial.join("file");
        // Another shard that finds the bench complete takes this folder for one that a killed process left.
        fs::create_dir_all(&self.partial)?;
        fs::write(&partial, bytes)?;
        fs::rename(&partial, path)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // It holds nothing that anyone needs; the next run would take it away.
        let _ = fs::remove_dir_all(&self.partial);
    }
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// A picture as the bytes of a PNG.
pub(super) fn png(picture: &RgbImage) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let encoder = PngEncoder::new(&mut bytes);
    let (width, height) = picture.dimensions();
    encoder
        .write_image(picture.as_raw(), width, height, ExtendedColorType::Rgb8)
        .map_err(Error::image("result"))?;
    Ok(bytes)
}
