//! Measurement of one image through one autoencoder and back.

use image::RgbImage;
use kontext_core::{Error, Result};
use serde::{Deserialize, Serialize};

use super::Records;
use crate::metrics::{Perceptual, psnr, ssim};
use crate::statistics::PSNR_CAP;

/// Metrics of one reconstruction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// The autoencoder's name in the table.
    pub vae: String,
    /// The image's name.
    pub image: String,
    /// Setting of the measurement: [`Subject::setting`] and the names of the distances.
    pub setting: String,
    /// CRC-32 of the original's pixels, as encoded.
    pub pixels: u32,
    /// [`Perceptual::distance`], if a network was given.
    pub pdist: Option<f64>,
    /// The distance by cosines, if a network was given for it.
    #[serde(default)]
    pub cosine: Option<f64>,
    /// [`ssim`].
    pub ssim: f64,
    /// [`psnr`] in dB, at most [`PSNR_CAP`].
    pub psnr: f64,
}

impl Measurement {
    pub(super) fn key(&self) -> (String, String) {
        (self.vae.clone(), self.image.clone())
    }
}

/// An autoencoder under test.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Its name in the table.
    pub vae: &'a str,
    /// Everything apart from the image that determines the numbers, such as digests of its weights and the
    /// network's. A record with another setting is measured again.
    pub setting: &'a str,
    /// Network of the perceptual distance; without one, [`Measurement::pdist`] is `None`.
    pub perceptual: Option<&'a Perceptual>,
    /// Network of the distance by cosines ([`Perceptual::cosine`]), for a row that is comparable with
    /// [`PUBLISHED`](super::PUBLISHED); without one, [`Measurement::cosine`] is `None`.
    pub cosine: Option<&'a Perceptual>,
}

impl Subject<'_> {
    /// Returns the recorded measurement of an image; `None` if there is none, or if it has another setting or
    /// network, or other pixels under the same name.
    #[must_use]
    pub fn recorded(&self, image: &str, original: &RgbImage, records: &Records) -> Option<Measurement> {
        let found = records.find(self.vae, image)?;
        (found.setting == self.full_setting() && found.pixels == crc32fast::hash(original.as_raw()))
            .then(|| found.clone())
    }

    /// Measures a reconstruction and adds it to the records, unless already recorded.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the sizes differ or the distance is not finite, and the errors of the
    /// metrics and of [`Records::add`].
    pub fn measure(
        &self,
        image: &str,
        original: &RgbImage,
        reconstruction: &RgbImage,
        records: &mut Records,
    ) -> Result<Measurement> {
        if let Some(done) = self.recorded(image, original, records) {
            return Ok(done);
        }
        let distance = |network: Option<&Perceptual>| network.map(|n| finite(n, original, reconstruction)).transpose();
        let (pdist, cosine) = (distance(self.perceptual)?, distance(self.cosine)?);
        let measurement = Measurement {
            vae: self.vae.to_owned(),
            image: image.to_owned(),
            setting: self.full_setting(),
            pixels: crc32fast::hash(original.as_raw()),
            pdist,
            cosine,
            ssim: ssim(original, reconstruction)?,
            psnr: psnr(original, reconstruction)?.min(PSNR_CAP),
        };
        records.add(measurement.clone())?;
        Ok(measurement)
    }

    fn full_setting(&self) -> String {
        let first = self.perceptual.map_or("no network", Perceptual::name);
        // Not named if absent: earlier records stay valid.
        let second = self
            .cosine
            .map_or(String::new(), |network| format!(", {}", network.name()));
        format!("{}, {first}{second}", self.setting)
    }
}

/// Computes the distance of two images.
fn finite(network: &Perceptual, original: &RgbImage, reconstruction: &RgbImage) -> Result<f64> {
    let distances = network.distance(&[(original, reconstruction)])?;
    let distance = distances.first().copied().unwrap_or(f64::NAN);
    if distance.is_finite() {
        return Ok(distance);
    }
    let expected = "a finite number (check the network's weights)";
    Err(Error::invalid("distance", expected, distance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_taken_unless_the_setting_or_the_image_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let mut records = Records::open(folder.path().join("records.jsonl")).unwrap();
        let original = RgbImage::from_fn(16, 16, |x, y| image::Rgb([x as u8 * 10, y as u8 * 10, 0]));
        let off = RgbImage::from_fn(16, 16, |x, y| original.get_pixel(x, y).0.map(|level| level + 10).into());
        let subject = Subject {
            vae: "A",
            setting: "first",
            perceptual: None,
            cosine: None,
        };
        let first = subject.measure("a.png", &original, &off, &mut records).unwrap();
        assert!((first.psnr - 28.131).abs() < 1e-3 && first.pdist.is_none());
        // Not measured again: the reconstruction is ignored.
        assert_eq!(
            subject.measure("a.png", &original, &original, &mut records).unwrap(),
            first
        );
        let other = Subject {
            setting: "second",
            ..subject
        };
        assert_eq!(other.recorded("a.png", &original, &records), None);
        assert_eq!(subject.recorded("a.png", &off, &records), None);
        assert_eq!(
            other.measure("a.png", &original, &original, &mut records).unwrap().psnr,
            PSNR_CAP
        );
    }
}
