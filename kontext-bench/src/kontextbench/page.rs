//! A self-contained HTML page, for viewing one run or voting between two.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder, ImageFormat, RgbImage};
use kontext_core::images::{self, resize};
use kontext_core::{Error, Result, threads};
use rayon::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Bench, Column, Pair, Record, RunFolder, report};
use crate::cell::html;

const TEMPLATE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// Total size of the image files in bytes above which a page shows them smaller, unless a size is set.
const MOST_BYTES: u64 = 48 << 20;
/// Longest side of the smaller images, in pixels.
const SMALLER: u32 = 512;
/// JPEG quality of the smaller images.
const QUALITY: u8 = 85;

/// An HTML page of one run, or of two to vote between.
#[derive(Debug, Clone)]
pub struct Page<'a> {
    bench: &'a Bench,
    runs: Vec<&'a RunFolder>,
    thumbnails: Option<u32>,
    seed: u64,
}

/// A pair for which all runs of the page have a result.
struct Row<'a> {
    pair: &'a Pair,
    records: Vec<Record>,
}

impl<'a> Page<'a> {
    /// Creates a page of one run.
    #[must_use]
    pub fn of(bench: &'a Bench, run: &'a RunFolder) -> Self {
        Self {
            bench,
            runs: vec![run],
            thumbnails: None,
            seed: 0,
        }
    }

    /// Creates a page for blind votes between two runs, side by side in random order.
    #[must_use]
    pub fn between(bench: &'a Bench, a: &'a RunFolder, b: &'a RunFolder) -> Self {
        Self {
            bench,
            runs: vec![a, b],
            thumbnails: None,
            seed: 0,
        }
    }

    /// Shows images with at most `side` pixels on a side, as JPEG. By default the files are embedded
    /// unchanged, or with at most 512 pixels if they exceed 48 MiB in total; the page says so.
    #[must_use]
    pub fn thumbnails(mut self, side: u32) -> Self {
        self.thumbnails = Some(side.max(1));
        self
    }

    /// Sets the seed that decides, pair by pair, which run is on the left; 0 by default.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Renders the page as self-contained HTML.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the runs have no pair in common or the same name, [`Error::Io`] and
    /// [`Error::Image`] if an image cannot be read.
    pub fn html(&self) -> Result<String> {
        let infos = self.runs.iter().map(|run| run.info()).collect::<Result<Vec<_>>>()?;
        let names: Vec<&str> = infos.iter().map(|info| info.name.as_str()).collect();
        if let [a, b] = self.runs[..] {
            RunFolder::names(&[a, b])?;
        }
        let rows = self.rows();
        if rows.is_empty() {
            return Err(Error::invalid(
                "runs",
                "a pair of the bench that each has a result of",
                "none",
            ));
        }
        let mut images = Images::new(self.bench, &self.runs, &rows, self.thumbnails);
        let columns = report::used(&rows.iter().flat_map(|row| &row.records).collect::<Vec<_>>());
        let pairs: Vec<Value> = rows.iter().map(|row| self.pair(row, &columns, &mut images)).collect();
        let run = |(index, info): (usize, &super::RunInfo)| {
            let records: Vec<&Record> = rows.iter().map(|row| &row.records[index]).collect();
            json!({"name": info.name, "facts": info.facts().into_iter().collect::<Vec<_>>(), "means": report::means(&records, &columns)})
        };
        let mut notes = Vec::new();
        if let Some(side) = images.side {
            notes.push(format!("Images are shown with at most {side} pixels on a side."));
        }
        let missing = self.bench.pairs.len() - rows.len();
        if missing > 0 {
            notes.push(format!(
                "{missing} pairs of the bench are not here: they have no result."
            ));
        }
        let categories: Vec<(String, usize)> = self
            .bench
            .categories()
            .into_iter()
            .map(|(name, _)| {
                (
                    name.clone(),
                    rows.iter().filter(|row| row.pair.category == name).count(),
                )
            })
            .filter(|(_, count)| *count > 0)
            .collect();
        let data = json!({
            "id": identity(&infos, &rows),
            "runs": infos.iter().enumerate().map(run).collect::<Vec<_>>(),
            "columns": columns.iter().map(|column| column.title).collect::<Vec<_>>(),
            "categories": categories,
            "pairs": pairs,
            "images": images.finish()?,
            "note": notes.join(" "),
        });
        let title = format!("KontextBench: {}", names.join(" and "));
        Ok(filled(&[
            ("title", &html(&title)),
            ("style", STYLE),
            ("data", &in_script(&data)),
            ("script", SCRIPT),
        ]))
    }

    fn rows(&self) -> Vec<Row<'a>> {
        let row = |pair: &'a Pair| {
            let records: Option<Vec<Record>> = self.runs.iter().map(|run| run.record(pair)).collect();
            Some(Row {
                pair,
                records: records?,
            })
        };
        self.bench.pairs.iter().filter_map(row).collect()
    }

    fn pair(&self, row: &Row<'_>, columns: &[Column], images: &mut Images) -> Value {
        let Row { pair, records } = row;
        let in_bench = |path: &PathBuf| self.bench.folder.join(path);
        let sources: Vec<usize> = pair.images.iter().map(|path| images.index(in_bench(path))).collect();
        let truth = pair.truth.as_ref().map(|path| images.index(in_bench(path)));
        let result = |(run, record): (&&RunFolder, &Record)| {
            let measures: Vec<String> = columns.iter().map(|column| column.text(&record.measures)).collect();
            json!({"image": images.index(run.image(pair)), "measures": measures})
        };
        let results: Vec<Value> = self.runs.iter().zip(records).map(result).collect();
        json!({
            "key": pair.key, "category": pair.category, "instruction": pair.instruction, "sources": sources,
            "truth": truth, "results": results, "swapped": Pair::is_swapped(self.seed, &pair.key),
        })
    }
}

/// Returns the identity under which votes are stored: a digest of the runs and results on the page.
fn identity(infos: &[super::RunInfo], rows: &[Row<'_>]) -> String {
    let mut hash = Sha256::new();
    for info in infos {
        hash.update(&info.name);
    }
    for record in rows.iter().flat_map(|row| &row.records) {
        hash.update(&record.sha256);
    }
    format!("{:x}", hash.finalize()).chars().take(16).collect()
}

/// Images of a page, each file once.
struct Images {
    /// Longest side to which images are scaled down, if they are.
    side: Option<u32>,
    paths: Vec<PathBuf>,
    indices: BTreeMap<PathBuf, usize>,
}

impl Images {
    fn new(bench: &Bench, runs: &[&RunFolder], rows: &[Row<'_>], side: Option<u32>) -> Self {
        let paths: BTreeSet<PathBuf> = rows
            .iter()
            .flat_map(|row| {
                let given = row
                    .pair
                    .images
                    .iter()
                    .chain(&row.pair.truth)
                    .map(|path| bench.folder.join(path));
                given
                    .chain(runs.iter().map(|run| run.image(row.pair)))
                    .collect::<Vec<_>>()
            })
            .collect();
        let bytes: u64 = paths
            .iter()
            .filter_map(|path| Some(std::fs::metadata(path).ok()?.len()))
            .sum();
        let side = side.or((bytes > MOST_BYTES).then_some(SMALLER));
        Self {
            side,
            paths: Vec::new(),
            indices: BTreeMap::new(),
        }
    }

    fn index(&mut self, path: PathBuf) -> usize {
        let paths = &mut self.paths;
        *self.indices.entry(path).or_insert_with_key(|path| {
            paths.push(path.clone());
            paths.len() - 1
        })
    }

    /// Returns each image as a data URI, with its width and height.
    fn finish(self) -> Result<Vec<Value>> {
        threads::start()?;
        self.paths.par_iter().map(|path| inline(path, self.side)).collect()
    }
}

fn inline(path: &Path, side: Option<u32>) -> Result<Value> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let image = images::open(path)?;
    let (width, height) = image.dimensions();
    let smaller = side.filter(|side| width.max(height) > *side);
    let (kind, bytes, (width, height)) = match (smaller, image::guess_format(&bytes)) {
        (Some(side), _) => {
            let image = fitted(&image, side)?;
            ("jpeg", jpeg(&image).map_err(Error::image(path))?, image.dimensions())
        }
        (None, Ok(ImageFormat::Png)) => ("png", bytes, (width, height)),
        (None, Ok(ImageFormat::Jpeg)) => ("jpeg", bytes, (width, height)),
        (None, Ok(ImageFormat::WebP)) => ("webp", bytes, (width, height)),
        (None, _) => ("png", super::run_folder::png(&image)?, (width, height)),
    };
    Ok(json!([
        format!("data:image/{kind};base64,{}", BASE64_STANDARD.encode(bytes)),
        width,
        height
    ]))
}

/// Scales to at most `side` pixels on a side, keeping the aspect ratio.
fn fitted(image: &RgbImage, side: u32) -> Result<RgbImage> {
    let (width, height) = image.dimensions();
    let scale = f64::from(side) / f64::from(width.max(height));
    let scaled = |length: u32| ((f64::from(length) * scale).round() as u32).max(1);
    resize(image, scaled(width), scaled(height))
}

fn jpeg(image: &RgbImage) -> Result<Vec<u8>, image::ImageError> {
    let mut bytes = Vec::new();
    let (width, height) = image.dimensions();
    let encoder = JpegEncoder::new_with_quality(&mut bytes, QUALITY);
    encoder.write_image(image.as_raw(), width, height, ExtendedColorType::Rgb8)?;
    Ok(bytes)
}

/// Fills the template's placeholders in one pass, because values may contain placeholders.
fn filled(values: &[(&str, &str)]) -> String {
    let (mut page, mut rest) = (String::new(), TEMPLATE);
    while let Some((before, after)) = rest.split_once("{{") {
        page.push_str(before);
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        page.push_str(
            values
                .iter()
                .find(|(key, _)| *key == name)
                .map_or("", |(_, value)| value),
        );
        rest = after;
    }
    page.push_str(rest);
    page
}

/// Serialises JSON for a `script` element, so that nothing in it can end the element.
fn in_script(value: &Value) -> String {
    value
        .to_string()
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_leave_its_place() {
        let hostile = json!({"instruction": "</script><script>alert(1)</script> <!-- {{script}} & "});
        let text = in_script(&hostile);
        assert!(
            !text.contains('<') && !text.contains('>') && !text.contains('&'),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), hostile);
        let page = filled(&[("title", "t"), ("style", ""), ("data", &text), ("script", "let once;")]);
        assert!(page.contains("{{script}}"));
        assert_eq!(page.matches("let once;").count(), 1);
    }

    #[test]
    fn the_page_asks_for_nothing_from_elsewhere() {
        for text in [TEMPLATE, STYLE, SCRIPT] {
            for word in ["http:", "https:", "src=\"", "@import", "fetch(", "innerHTML"] {
                assert!(!text.contains(word), "{word}");
            }
        }
    }

    #[test]
    fn smaller_images_keep_their_proportions() {
        assert_eq!(fitted(&RgbImage::new(1000, 300), 512).unwrap().dimensions(), (512, 154));
        assert_eq!(fitted(&RgbImage::new(1, 3000), 512).unwrap().dimensions(), (1, 512));
    }
}
