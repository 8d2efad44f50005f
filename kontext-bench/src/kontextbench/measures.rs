//! Metrics of a result.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use image::RgbImage;
use kontext_core::Result;
use kontext_core::images::resize;
use serde::{Deserialize, Serialize};

use super::{Bench, Pair, wilson};
use crate::edit::KnownEdit;
use crate::metrics::{self, ChangeMap, DEFAULT_THRESHOLD, Embedder, Perceptual, WINDOW};
use crate::statistics::{Estimate, PSNR_CAP};

/// Metrics of one result; `None` if undefined. The source is the pair's first image, resized to the result.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// PSNR of the result against the source over the unchanged pixels, in dB, at most 60; `None` if nearly
    /// everything changed.
    pub preservation: Option<f64>,
    /// Share of the image that changed, from 0 to 1.
    pub changed: f64,
    /// Mean absolute difference of result and source, in levels from 0 to 255.
    pub magnitude: f64,
    /// Distance of result and source in a network's features, from 0; `None` without a network, or if the
    /// result is too small for it.
    pub distance: Option<f64>,
    /// Cosine similarity of the embeddings of result and source, from -1 to 1; `None` without a network, or if it
    /// finds no subject in one of them.
    pub identity: Option<f64>,
    /// Variance of the result's Laplacian, in squared levels.
    pub sharpness: f64,
    /// Variance of the source's Laplacian, in squared levels.
    pub source_sharpness: f64,
    /// PSNR of the result against the truth, in dB, at most 60; `None` if the truth is unknown.
    pub truth_psnr: Option<f64>,
    /// Structural similarity of result and truth; `None` if the truth is unknown or the result is smaller
    /// than a window.
    pub truth_ssim: Option<f64>,
    /// `true` if the result is nearer to the truth than to the source and all candidates; `None` if the truth
    /// is unknown.
    pub right: Option<bool>,
    /// `true` if the source is nearest: nothing was edited; `None` if the truth is unknown.
    pub copied: Option<bool>,
}

/// Number format of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// A number with this many decimal places.
    Decimals(usize),
    /// A share, in percent.
    Percent,
    /// Yes or no; a share in means.
    YesNo,
}

/// One of the [`Measures`], as a table column.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Name in `results.csv`.
    pub name: &'static str,
    /// Title in tables.
    pub title: &'static str,
    /// Meaning, in one sentence.
    pub meaning: &'static str,
    /// Accessor of the value; yes is 1 and no 0.
    pub value: fn(&Measures) -> Option<f64>,
    form: Form,
}

/// All columns, in order.
pub const COLUMNS: [Column; 11] = [
    Column {
        name: "preservation",
        title: "preservation, dB",
        meaning: "PSNR of result and source outside of what changed, at most 60",
        value: |m| m.preservation,
        form: Form::Decimals(1),
    },
    Column {
        name: "changed",
        title: "changed",
        meaning: "share of the image that changed",
        value: |m| Some(m.changed),
        form: Form::Percent,
    },
    Column {
        name: "magnitude",
        title: "magnitude",
        meaning: "mean absolute difference of result and source, in levels of 255",
        value: |m| Some(m.magnitude),
        form: Form::Decimals(1),
    },
    Column {
        name: "distance",
        title: "distance",
        meaning: "distance of result and source by a network's features",
        value: |m| m.distance,
        form: Form::Decimals(3),
    },
    Column {
        name: "identity",
        title: "identity",
        meaning: "cosine of the embeddings of result and source",
        value: |m| m.identity,
        form: Form::Decimals(3),
    },
    Column {
        name: "sharpness",
        title: "sharpness",
        meaning: "variance of the result's Laplacian",
        value: |m| Some(m.sharpness),
        form: Form::Decimals(0),
    },
    Column {
        name: "source_sharpness",
        title: "source's",
        meaning: "variance of the source's Laplacian",
        value: |m| Some(m.source_sharpness),
        form: Form::Decimals(0),
    },
    Column {
        name: "truth_psnr",
        title: "truth, dB",
        meaning: "PSNR of result and truth, at most 60",
        value: |m| m.truth_psnr,
        form: Form::Decimals(1),
    },
    Column {
        name: "truth_ssim",
        title: "truth, SSIM",
        meaning: "structural similarity of result and truth",
        value: |m| m.truth_ssim,
        form: Form::Decimals(3),
    },
    Column {
        name: "right",
        title: "right",
        meaning: "whether the result is nearer to the truth than to the source and to all candidates",
        value: |m| m.right.map(|yes| f64::from(u8::from(yes))),
        form: Form::YesNo,
    },
    Column {
        name: "copied",
        title: "copied",
        meaning: "whether the source is nearest to the result",
        value: |m| m.copied.map(|yes| f64::from(u8::from(yes))),
        form: Form::YesNo,
    },
];

/// Bootstrap resamples for the interval of a mean.
const RESAMPLES: usize = 1000;

impl Column {
    /// Formats a pair's value; empty if there is none.
    #[must_use]
    pub fn text(&self, measures: &Measures) -> String {
        let Some(value) = (self.value)(measures) else {
            return String::new();
        };
        match self.form {
            Form::Decimals(digits) => format!("{value:.digits$}"),
            Form::Percent => format!("{:.0} %", 100.0 * value),
            Form::YesNo => (if value > 0.5 { "yes" } else { "no" }).to_owned(),
        }
    }

    /// Formats the mean of values with its 95 % interval; empty if there are none.
    pub(super) fn mean(&self, values: &[f64]) -> String {
        let estimate = match self.form {
            // A bootstrap has zero width if all answers are equal.
            Form::YesNo => Some(wilson(values.iter().sum(), values.len() as f64)).filter(|_| !values.is_empty()),
            _ => Estimate::of_mean(values, RESAMPLES).ok(),
        };
        let Some(Estimate { value, low, high }) = estimate else {
            return String::new();
        };
        match self.form {
            Form::Decimals(n) => format!("{value:.n$} ({low:.n$} to {high:.n$})"),
            _ => format!("{:.0} % ({:.0} to {:.0})", 100.0 * value, 100.0 * low, 100.0 * high),
        }
    }
}

/// Networks used for measuring results.
#[derive(Default)]
pub struct Metrics {
    perceptual: Option<Perceptual>,
    embedder: Option<Box<dyn Embedder>>,
}

impl Metrics {
    /// Measures distance with this network, and also identity if no embedder is given.
    #[must_use]
    pub fn perceptual(mut self, perceptual: Perceptual) -> Self {
        self.perceptual = Some(perceptual);
        self
    }

    /// Measures identity with this network.
    #[must_use]
    pub fn embedder(mut self, embedder: impl Embedder + 'static) -> Self {
        self.embedder = Some(Box::new(embedder));
        self
    }

    fn identity(&self) -> Option<&dyn Embedder> {
        let features = || {
            self.perceptual
                .as_ref()
                .map(|perceptual| perceptual.features() as &dyn Embedder)
        };
        self.embedder.as_deref().or_else(features)
    }

    /// Returns the metrics by name: results with different ones never belong to one run.
    pub(super) fn facts(&self) -> BTreeMap<String, String> {
        let threshold = Some(("changed, levels", DEFAULT_THRESHOLD.to_string()));
        let distance = self
            .perceptual
            .as_ref()
            .map(|perceptual| ("distance", perceptual.name().to_owned()));
        let identity = self.identity().map(|embedder| ("identity", embedder.name().to_owned()));
        let facts = [threshold, distance, identity].into_iter().flatten();
        facts.map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Measures a result.
    pub(super) fn measure(&self, bench: &Bench, pair: &Pair, source: &RgbImage, result: &RgbImage) -> Result<Measures> {
        let source = &*at_size(source, result)?;
        let change = ChangeMap::between(source, result, DEFAULT_THRESHOLD)?;
        let magnitude = change.magnitude();
        let mut measures = Measures {
            preservation: change.preservation_psnr().map(|psnr| psnr.min(PSNR_CAP)),
            changed: magnitude.share,
            magnitude: magnitude.mean_difference,
            sharpness: metrics::sharpness(result)?,
            source_sharpness: metrics::sharpness(source)?,
            ..Measures::default()
        };
        let shortest = result.width().min(result.height()) as usize;
        if let Some(perceptual) = &self.perceptual
            && shortest >= perceptual.features().backbone().least_side()
        {
            measures.distance = perceptual.distance(&[(source, result)])?.first().copied();
        }
        if let Some(embedder) = self.identity() {
            measures.identity = metrics::identity(embedder, &[(source, result)])?
                .first()
                .copied()
                .flatten();
        }
        if let Some(truth) = &pair.truth {
            let open = |path: &Path| -> Result<RgbImage> { Ok(at_size(&bench.image(path)?, result)?.into_owned()) };
            let truth = open(truth)?;
            let candidates = pair
                .candidates
                .iter()
                .map(|path| open(path))
                .collect::<Result<Vec<_>>>()?;
            // The limit set by the autoencoder is not part of this bench.
            let known = KnownEdit {
                source: Some(source),
                truth: &truth,
                candidates: &candidates,
                reconstruction: &truth,
            };
            let score = known.score(result)?;
            measures.truth_psnr = Some(score.psnr.min(PSNR_CAP));
            (measures.right, measures.copied) = (Some(score.right), Some(score.copied));
            if shortest >= WINDOW {
                measures.truth_ssim = Some(metrics::ssim(result, &truth)?);
            }
        }
        Ok(measures)
    }
}

/// Resizes an image to the size of another.
fn at_size<'a>(image: &'a RgbImage, other: &RgbImage) -> Result<Cow<'a, RgbImage>> {
    if image.dimensions() == other.dimensions() {
        return Ok(Cow::Borrowed(image));
    }
    resize(image, other.width(), other.height()).map(Cow::Owned)
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.facts()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_by_their_kind() {
        let measures = Measures {
            changed: 0.256,
            magnitude: 3.12,
            right: Some(true),
            ..Measures::default()
        };
        let text = |name: &str| {
            COLUMNS
                .iter()
                .find(|column| column.name == name)
                .unwrap()
                .text(&measures)
        };
        assert_eq!(
            ["preservation", "changed", "magnitude", "right"].map(text),
            ["", "26 %", "3.1", "yes"]
        );
    }

    #[test]
    fn means_have_an_interval() {
        let column = |name: &str| COLUMNS.into_iter().find(|column| column.name == name).unwrap();
        assert_eq!(column("right").mean(&[1.0; 10]), "100 % (72 to 100)");
        assert_eq!(column("magnitude").mean(&[2.0, 2.0]), "2.0 (2.0 to 2.0)");
        assert_eq!(column("magnitude").mean(&[]), "");
    }
}
