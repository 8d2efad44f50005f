//! The row of one autoencoder in a table.

use kontext_core::Result;

use super::Measurement;
use crate::statistics::Summary;

/// The row of one autoencoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The autoencoder's name.
    pub vae: String,
    /// Perceptual distance, if every image has one.
    pub pdist: Option<Summary>,
    /// Perceptual distance by cosines, if every image has one.
    pub cosine: Option<Summary>,
    /// Structural similarity.
    pub ssim: Summary,
    /// Peak signal-to-noise ratio in dB.
    pub psnr: Summary,
}

impl Row {
    /// Summarises the measurements of an autoencoder, of which there is at least one.
    pub(super) fn of(vae: &str, measurements: &[Measurement]) -> Result<Self> {
        let named: Vec<&Measurement> = measurements.iter().filter(|m| m.vae == vae).collect();
        let distances = |value: fn(&Measurement) -> Option<f64>| {
            let values: Option<Vec<f64>> = named.iter().map(|m| value(m)).collect();
            values.map(|values| Summary::of(&values)).transpose()
        };
        Ok(Self {
            vae: vae.to_owned(),
            pdist: distances(|m| m.pdist)?,
            cosine: distances(|m| m.cosine)?,
            ssim: Summary::of(&named.iter().map(|m| m.ssim).collect::<Vec<_>>())?,
            psnr: Summary::of_psnr(&named.iter().map(|m| m.psnr).collect::<Vec<_>>())?,
        })
    }
}

/// Formats "0.8963 ± 0.0041", or only the mean for a single value.
pub(super) fn with_error(summary: &Summary, digits: usize) -> String {
    if summary.standard_error.is_nan() {
        return format!("{:.digits$}", summary.mean);
    }
    format!("{:.digits$} ± {:.digits$}", summary.mean, summary.standard_error)
}
