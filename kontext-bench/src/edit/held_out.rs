//! Quality of a model's results over a set of edits with known answers.

use image::RgbImage;
use kontext_core::{Error, Result};

use crate::edit::KnownEdit;
use crate::metrics::{Kid, Samples, relative_sharpness, same_size};
use crate::statistics::{Bootstrap, Summary};

/// Resamples of the interval of KID.
const RESAMPLES: usize = 1000;

/// A set of edits with known results, each with one source, all of one size.
#[derive(Debug)]
pub struct HeldOut {
    /// All truths, then all sources: the images that a result is compared with.
    pool: Vec<RgbImage>,
    reconstructions: Vec<RgbImage>,
}

/// Means over the results of a set of edits.
#[derive(Debug, Clone, PartialEq)]
pub struct Quality {
    /// PSNR against the truths, in dB.
    pub psnr: Summary,
    /// Gradient over that of the truth's reconstruction by the model's autoencoder
    /// ([`relative_sharpness`]): 1 is as sharp as the autoencoder permits. Over the truths that are not flat.
    pub sharpness: Summary,
    /// Share of the results to which no other truth and no source of the set is nearer than the own truth
    /// (mean squared error), as [`EditScore::right`](crate::edit::EditScore::right).
    pub nearest: Summary,
    /// Distance between the distributions of results and truths; `None` without a network.
    pub kid: Option<Bootstrap>,
}

impl HeldOut {
    /// Creates a set from sources, truths, and the truths encoded and decoded by the model's autoencoder.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the numbers differ, there are no images, or not all are of one size.
    pub fn new(sources: Vec<RgbImage>, truths: Vec<RgbImage>, reconstructions: Vec<RgbImage>) -> Result<Self> {
        let counts = [sources.len(), truths.len(), reconstructions.len()];
        let [_, count, _] = counts;
        if count == 0 || counts.iter().any(|other| *other != count) {
            let got = format!(
                "{} sources, {count} truths and {} reconstructions",
                counts[0], counts[2]
            );
            return Err(Error::invalid("images", "as many of each, and at least one", got));
        }
        let mut pool = truths;
        pool.extend(sources);
        if let Some(first) = pool.first() {
            pool.iter()
                .chain(&reconstructions)
                .try_for_each(|image| same_size(first, image))?;
        }
        Ok(Self { pool, reconstructions })
    }

    /// Returns the number of edits.
    #[must_use]
    pub fn count(&self) -> usize {
        self.reconstructions.len()
    }

    /// Returns the true results.
    #[must_use]
    pub fn truths(&self) -> &[RgbImage] {
        self.pool.get(..self.count()).unwrap_or_default()
    }

    /// Returns the truths through the autoencoder and back: results that no model of it exceeds.
    #[must_use]
    pub fn reconstructions(&self) -> &[RgbImage] {
        &self.reconstructions
    }

    /// Measures the results of all edits, in their order. `kid` has the truths as its references.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are not as many results as edits, or of another size; the errors of
    /// [`Kid::distance`].
    ///
    /// # Example
    /// ```
    /// use image::{Rgb, RgbImage};
    /// use kontext_bench::edit::HeldOut;
    /// let image = |level: u8| RgbImage::from_fn(8, 8, |x, _| Rgb([level + x as u8; 3]));
    /// let truths = vec![image(100), image(200)];
    /// let set = HeldOut::new(vec![image(10), image(20)], truths.clone(), truths)?;
    /// // The second is nearer to its source.
    /// let quality = set.measure(&[image(101), image(30)], None)?;
    /// assert_eq!((quality.nearest.mean, quality.sharpness.mean), (0.5, 1.0));
    /// # Ok::<(), kontext_core::Error>(())
    /// ```
    pub fn measure(&self, results: &[RgbImage], kid: Option<&Kid<'_>>) -> Result<Quality> {
        if results.len() != self.count() {
            let expected = format!("one for each of {} edits", self.count());
            return Err(Error::invalid("results", expected, results.len()));
        }
        let (mut psnr, mut sharpness, mut nearest) = (Vec::new(), Vec::new(), Vec::new());
        let sources = self.pool.iter().skip(self.count());
        let edits = self.truths().iter().zip(sources).zip(&self.reconstructions);
        for (result, ((truth, source), reconstruction)) in results.iter().zip(edits) {
            let edit = KnownEdit {
                source: Some(source),
                truth,
                candidates: &self.pool,
                reconstruction,
            };
            let score = edit.score(result)?;
            psnr.push(score.psnr);
            nearest.push(f64::from(u8::from(score.right)));
            sharpness.extend(relative_sharpness(result, reconstruction)?);
        }
        let images: Vec<&RgbImage> = results.iter().collect();
        let distance = |kid: &Kid<'_>| kid.distance(&images, Samples::Paired, RESAMPLES);
        Ok(Quality {
            psnr: Summary::of_psnr(&psnr)?,
            sharpness: Summary::of(&sharpness)?,
            nearest: Summary::of(&nearest)?,
            kid: kid.map(distance).transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use kontext_core::Device;
    use kontext_nn::Weights;

    use super::*;
    use crate::metrics::{Backbone, Features};

    /// Returns a textured image; `blur` averages neighbours.
    fn image(seed: u32, blur: bool) -> RgbImage {
        let level = |x: u32, y: u32| (x * x * seed + y * 37 * (seed + x)) % 220;
        RgbImage::from_fn(24, 24, |x, y| {
            let (a, b) = (level(x, y), if blur { level(x + 1, y) } else { level(x, y) });
            Rgb([((a + b) / 2) as u8, (a % 90) as u8, (seed * 5) as u8])
        })
    }

    fn images(seeds: std::ops::Range<u32>, blur: bool) -> Vec<RgbImage> {
        seeds.map(|seed| image(seed, blur)).collect()
    }

    #[test]
    fn blurred_results_are_less_sharp_and_further_away_than_true_ones() {
        let features = Features::new(Backbone::SqueezeNet11, &Weights::synthetic(3), Device::Cpu).unwrap();
        let truths = images(1..25, false);
        let set = HeldOut::new(images(25..49, false), truths.clone(), truths.clone()).unwrap();
        let kid = Kid::new(&features, &truths.iter().collect::<Vec<_>>()).unwrap();
        let exact = set.measure(&truths, Some(&kid)).unwrap();
        assert_eq!(
            (exact.psnr.mean, exact.sharpness.mean, exact.nearest.mean),
            (60.0, 1.0, 1.0)
        );
        assert!(exact.kid.unwrap().value().abs() < 1e-9);
        let blurred = set.measure(&images(1..25, true), Some(&kid)).unwrap();
        assert!(blurred.sharpness.mean < 0.95 && blurred.psnr.mean < 40.0, "{blurred:?}");
        assert!(blurred.kid.unwrap().estimate().low > 0.0);
    }

    #[test]
    fn a_result_that_is_the_truth_of_another_edit_is_not_right() {
        let truths = images(1..4, false);
        let set = HeldOut::new(images(7..10, false), truths.clone(), truths.clone()).unwrap();
        let results = [truths[1].clone(), truths[1].clone(), image(9, false)];
        let quality = set.measure(&results, None).unwrap();
        assert!((quality.nearest.mean - 1.0 / 3.0).abs() < 1e-12 && quality.kid.is_none());
        assert!(
            set.measure(&results[..2], None)
                .unwrap_err()
                .to_string()
                .contains("each of 3 edits")
        );
        let error = HeldOut::new(images(7..9, false), truths.clone(), truths)
            .unwrap_err()
            .to_string();
        assert!(error.contains("2 sources, 3 truths and 3 reconstructions"), "{error}");
    }
}
