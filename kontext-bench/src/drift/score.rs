//! One walk, measured turn by turn.

use image::RgbImage;
use kontext_core::{Error, Result};

use super::Walk;
use crate::edit::untouched;
use crate::metrics::{Perceptual, identity, psnr, ssim};
use crate::statistics::capped;

/// A result against another picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Values {
    /// In dB, at most [`PSNR_CAP`](crate::statistics::PSNR_CAP); `None` where hardly a pixel counts.
    pub psnr: Option<f64>,
    /// Structural similarity.
    pub ssim: f64,
    /// Distance in the features of a network, if there is one.
    pub distance: Option<f64>,
    /// Cosine of that network's embeddings.
    pub identity: Option<f64>,
}

/// A result after a turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Against what it should be.
    pub truth: Values,
    /// Against the picture before the first turn. PSNR is that of the pixels which should be as they were then.
    pub start: Values,
}

/// The scores of a walk's turns.
pub(super) fn scores(walk: Walk<'_>, perceptual: Option<&Perceptual>) -> Result<Vec<Score>> {
    let Walk { start, truths, results } = walk;
    if truths.len() != results.len() {
        let got = format!("{} results and {} truths", results.len(), truths.len());
        return Err(Error::invalid("walk", "a result for each turn", got));
    }
    let to_truth: Vec<(&RgbImage, &RgbImage)> = results.iter().zip(truths).collect();
    let to_start: Vec<(&RgbImage, &RgbImage)> = results.iter().map(|result| (result, start)).collect();
    let all: Vec<(&RgbImage, &RgbImage)> = to_truth.iter().chain(&to_start).copied().collect();
    let distances = perceptual.map(|network| network.distance(&all)).transpose()?;
    let identities = perceptual
        .map(|network| identity(network.features(), &all))
        .transpose()?;
    let at = |values: &Option<Vec<f64>>, index: usize| values.as_ref().and_then(|v| v.get(index)).copied();
    let values = |index: usize, decibels: Option<f64>| -> Result<Values> {
        let (a, b) = all
            .get(index)
            .ok_or_else(|| Error::invalid("walk", "a result for each turn", index))?;
        let (distance, identity) = (at(&distances, index), at(&identities, index));
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
