//! Reading of a bench's folder: `test/metadata.jsonl` and its images.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use image::RgbImage;
use kontext_core::{Error, Result, images, json_lines, threads};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{CATEGORIES, Pair, Problem, category};

/// Category assigned to a line without one.
const NO_CATEGORY: &str = "no category";

/// The usable pairs of a folder, and the problems of the others.
#[derive(Debug, Clone)]
pub struct Bench {
    /// The folder of `metadata.jsonl`, to which the pairs' paths are relative.
    pub folder: PathBuf,
    /// The pairs, in file order.
    pub pairs: Vec<Pair>,
    /// Problems found; the pairs are usable without the affected parts.
    pub problems: Vec<Problem>,
    /// Path of `metadata.jsonl`, relative to the opened folder.
    metadata: PathBuf,
    /// SHA-256 of every image file.
    images: BTreeMap<PathBuf, String>,
}

impl Bench {
    /// Reads `folder/test/metadata.jsonl`, or `folder/metadata.jsonl`, and all images that it names.
    ///
    /// The layout is that of black-forest-labs/kontext-bench: one object per line with `file_name` (or
    /// `image`), `instruction` (or `prompt`), `category` and `key` (or `id`). Paths are relative to the file.
    /// As an extension, a line may name further reference images (`references`), the true result (`truth`),
    /// and possible wrong results (`candidates`).
    ///
    /// A line is left out if it is malformed, repeats an earlier key, or names a missing or damaged image; a
    /// missing truth, or a category not in [`CATEGORIES`], has no other effect on the pair. All of these are
    /// reported in [`Bench::problems`], and so are categories without a pair.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the folder holds no such file, or no usable pair; [`Error::Io`] if the
    /// file cannot be read, a checkpoint error if it is UTF-16.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let metadata = ["test/metadata.jsonl", "metadata.jsonl"].map(PathBuf::from);
        let Some(metadata) = metadata.into_iter().find(|path| folder.join(path).is_file()) else {
            let expected = "a folder with test/metadata.jsonl and images, as black-forest-labs/kontext-bench has them";
            return Err(Error::invalid("bench", expected, folder.display()));
        };
        let path = folder.join(&metadata);
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        let mut bench = Self {
            folder: path.parent().unwrap_or(folder).to_owned(),
            pairs: Vec::new(),
            problems: Vec::new(),
            metadata,
            images: BTreeMap::new(),
        };
        bench
            .read_lines(&bytes)
            .map_err(|reason| Error::config(&path, reason))?;
        bench.read_images()?;
        bench.problems.sort_by_key(|problem| problem.line);
        for category in CATEGORIES {
            if !bench.pairs.iter().any(|pair| pair.category == category) {
                bench.problem(None, format!("no pair of the category {category:?}"));
            }
        }
        if bench.pairs.is_empty() {
            let first = bench.problems.first().map(ToString::to_string).unwrap_or_default();
            return Err(Error::invalid(
                "bench",
                "at least one pair that can be used",
                format!("none; {first}"),
            ));
        }
        Ok(bench)
    }

    /// Returns the path of `metadata.jsonl`, relative to the opened folder.
    pub(super) fn metadata(&self) -> &Path {
        &self.metadata
    }

    fn problem(&mut self, line: Option<usize>, what: String) {
        self.problems.push(Problem {
            file: self.metadata.clone(),
            line,
            what,
        });
    }

    fn read_lines(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        // Some file systems do not distinguish upper and lower case.
        let mut lines_of_keys = BTreeMap::<String, usize>::new();
        for (number, fields) in json_lines::read(bytes)? {
            let mut pair = match fields.and_then(|fields| Pair::read(&fields, number)) {
                Ok(pair) => pair,
                Err(what) => {
                    self.problem(Some(number), format!("{what}; the line is left out"));
                    continue;
                }
            };
            if let Some(first) = lines_of_keys.get(&pair.key.to_lowercase()) {
                let what = format!(
                    "the key {:?} stands in line {first} already; the line is left out",
                    pair.key
                );
                self.problem(Some(number), what);
                continue;
            }
            lines_of_keys.insert(pair.key.to_lowercase(), number);
            match category(&pair.category) {
                Some(category) => pair.category = category.to_owned(),
                None if pair.category.is_empty() => {
                    self.problem(Some(number), format!("no category; it is counted as {NO_CATEGORY:?}"));
                    pair.category = NO_CATEGORY.to_owned();
                }
                None => {
                    let what = format!("unknown category {:?}; it is counted by that name", pair.category);
                    self.problem(Some(number), what);
                }
            }
            self.pairs.push(pair);
        }
        Ok(())
    }

    /// Reads every image once; drops pairs and truths whose images cannot be read.
    fn read_images(&mut self) -> Result<()> {
        let named: BTreeSet<PathBuf> = self.pairs.iter().flat_map(Pair::all_images).cloned().collect();
        let read = |path: PathBuf| {
            let digest = digest(&self.folder.join(&path));
            (path, digest)
        };
        threads::start()?;
        let read: BTreeMap<PathBuf, Result<String, String>> = named.into_par_iter().map(read).collect();
        let mut pairs = Vec::new();
        for mut pair in std::mem::take(&mut self.pairs) {
            let lost = |path: &PathBuf| {
                let reason = read.get(path)?.as_ref().err()?;
                Some(format!("the image {}: {reason}", path.display()))
            };
            if let Some(what) = pair.images.iter().find_map(lost) {
                self.problem(Some(pair.line), format!("{what}; the pair is left out"));
                continue;
            }
            if let Some(what) = pair.truth.iter().chain(&pair.candidates).find_map(lost) {
                self.problem(Some(pair.line), format!("{what}; the pair is judged without the truth"));
                (pair.truth, pair.candidates) = (None, Vec::new());
            }
            pairs.push(pair);
        }
        self.pairs = pairs;
        self.images = read
            .into_iter()
            .filter_map(|(path, digest)| Some((path, digest.ok()?)))
            .collect();
        Ok(())
    }

    /// Keeps the first `most` pairs of each category.
    #[must_use]
    pub fn limit(mut self, most: usize) -> Self {
        let mut counts = BTreeMap::<String, usize>::new();
        self.pairs.retain(|pair| {
            let count = counts.entry(pair.category.clone()).or_default();
            *count += 1;
            *count <= most
        });
        self
    }

    /// Returns the categories with their numbers of pairs: the published ones first, in their order.
    #[must_use]
    pub fn categories(&self) -> Vec<(String, usize)> {
        let count = |name: &str| self.pairs.iter().filter(|pair| pair.category == name).count();
        let others: BTreeSet<&str> = self.pairs.iter().map(|pair| pair.category.as_str()).collect();
        let others = others.into_iter().filter(|name| !CATEGORIES.contains(name));
        let all = CATEGORIES
            .into_iter()
            .chain(others)
            .map(|name| (name.to_owned(), count(name)));
        all.filter(|(_, count)| *count > 0).collect()
    }

    /// Opens an image of the bench as 8-bit RGB.
    ///
    /// # Errors
    /// The errors of [`images::open`].
    pub fn image(&self, path: &Path) -> Result<RgbImage> {
        images::open(self.folder.join(path))
    }

    /// Computes SHA-256 over the pairs and their images, in order: benches with equal digests contain the
    /// same tasks.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let mut add = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        for pair in &self.pairs {
            [&pair.key, &pair.instruction, &pair.category]
                .into_iter()
                .for_each(|text| add(text));
            for list in [&pair.images[..], pair.truth.as_slice(), &pair.candidates] {
                add(&list.len().to_string());
                list.iter()
                    .filter_map(|path| self.images.get(path))
                    .for_each(|digest| add(digest));
            }
        }
        format!("{:x}", hash.finalize())
    }
}

/// Formats a summary, such as "280 pairs of 150 images: Character Reference 40, …".
impl fmt::Display for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let images: BTreeSet<&PathBuf> = self.pairs.iter().flat_map(|pair| &pair.images).collect();
        let categories = self.categories();
        let counts: Vec<String> = categories
            .into_iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        write!(
            f,
            "{} pairs of {} images: {}",
            self.pairs.len(),
            images.len(),
            counts.join(", ")
        )
    }
}

/// Decodes an image file completely and returns its SHA-256.
fn digest(path: &Path) -> Result<String, String> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err("there is no such file".to_owned()),
        Err(error) => return Err(error.to_string()),
    };
    images::from_bytes(&bytes).map_err(|error| match error {
        Error::Image { reason, .. } => reason,
        other => other.to_string(),
    })?;
    Ok(format!("{:x}", Sha256::digest(&bytes)))
}
