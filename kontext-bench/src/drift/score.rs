//! Scores of one walk, turn by turn.

use image::RgbImage;
use kontext_core::{Error, Result};

use super::{Networks, Walk};
use crate::edit::untouched;
use crate::metrics::{identity, psnr, ssim};
use crate::statistics::capped;

/// Metrics of a result against another image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Values {
    /// PSNR in dB, at most [`PSNR_CAP`](crate::statistics::PSNR_CAP); `None` if fewer than 2 % of the pixels
    /// count.
    pub psnr: Option<f64>,
    /// Structural similarity.
    pub ssim: f64,
    /// Distance in the features of a network; `None` without one.
    pub distance: Option<f64>,
    /// Cosine similarity of the embeddings ([`Networks::identity`]); `None` without a network, or if it finds no subject
    /// in one of the images.
    pub identity: Option<f64>,
}

/// Scores of a result after a turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Metrics against the correct image.
    pub truth: Values,
    /// Metrics against the image before the first turn. PSNR is over the pixels that should be as they were
    /// then.
    pub start: Values,
}

/// Computes the scores of a walk's turns.
pub(super) fn scores(walk: Walk<'_>, networks: Networks<'_>) -> Result<Vec<Score>> {
    let Walk { start, truths, results } = walk;
    if truths.len() != results.len() {
        let got = format!("{} results and {} truths", results.len(), truths.len());
        return Err(Error::invalid("walk", "a result for each turn", got));
    }
    let to_truth: Vec<(&RgbImage, &RgbImage)> = results.iter().zip(truths).collect();
    let to_start: Vec<(&RgbImage, &RgbImage)> = results.iter().map(|result| (result, start)).collect();
    let all: Vec<(&RgbImage, &RgbImage)> = to_truth.iter().chain(&to_start).copied().collect();
    let distances = networks.perceptual.map(|network| network.distance(&all)).transpose()?;
    let identities = networks
        .identity()
        .map(|embedder| identity(embedder, &all))
        .transpose()?;
    let values = |index: usize, decibels: Option<f64>| -> Result<Values> {
        let (a, b) = all
            .get(index)
            .ok_or_else(|| Error::bug(format!("a walk without pair {index}")))?;
        let distance = distances.as_ref().and_then(|all| all.get(index)).copied();
        let identity = identities.as_ref().and_then(|all| all.get(index)).copied().flatten();
        Ok(Values {
            psnr: decibels.map(capped),
            ssim: ssim(a, b)?,
            distance,
            identity,
        })
    };
    let score = |(turn, (result, truth)): (usize, &(&RgbImage, &RgbImage))| {
        let whole = psnr(result, truth)?;
        Ok(Score {
            truth: values(turn, Some(whole))?,
            start: values(results.len() + turn, untouched(result, start, truth))?,
        })
    };
    to_truth.iter().enumerate().map(score).collect()
}
