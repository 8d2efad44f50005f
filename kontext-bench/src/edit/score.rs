//! Scores of one result against the true image, the source, and other images that it might have become.

use image::{GrayImage, Luma, Rgb, RgbImage};
use kontext_core::Result;

use crate::metrics::{psnr, psnr_where, same_size};

/// PSNR in dB above which two images count as the same, such as the mirror image of a symmetric one.
const SAME: f64 = 40.0;
/// Largest difference in levels at which source and truth agree.
const AGREE: u8 = 4;

/// An edit with a known result.
#[derive(Debug, Clone, Copy)]
pub struct KnownEdit<'a> {
    /// The image to edit; `None` if the image is generated from text only.
    pub source: Option<&'a RgbImage>,
    /// The correct result.
    pub truth: &'a RgbImage,
    /// Possible wrong results.
    pub candidates: &'a [RgbImage],
    /// The truth encoded and decoded by the model's autoencoder: the best that the model can achieve.
    pub reconstruction: &'a RgbImage,
}

/// Scores of a result against the known answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EditScore {
    /// `true` if neither a candidate nor the source is nearer to the result than the truth (mean squared
    /// error).
    pub right: bool,
    /// `true` if the source is nearest: nothing was edited.
    pub copied: bool,
    /// Index of the candidate nearest to a wrong result; `None` if the source is nearest.
    pub mistaken_for: Option<usize>,
    /// PSNR of the result against the truth, in dB.
    pub psnr: f64,
    /// PSNR of the source against the truth, in dB: the score of a copy. `None` without a source, or if they
    /// are the same.
    pub copy_psnr: Option<f64>,
    /// PSNR of the autoencoder's reconstruction of the truth against the truth, in dB.
    pub reconstruction_psnr: f64,
    /// PSNR of the result against the source over the pixels on which source and truth agree, in dB; `None`
    /// without a source, or if they agree on fewer than 2 % of the pixels.
    pub untouched_psnr: Option<f64>,
}

impl KnownEdit<'_> {
    /// Scores a result.
    ///
    /// # Errors
    /// [`kontext_core::Error::InvalidArgument`] if the images are not all of one size.
    ///
    /// # Example
    /// ```
    /// use image::{Rgb, RgbImage};
    /// use kontext_bench::edit::KnownEdit;
    /// let plain = |level: u8| RgbImage::from_pixel(8, 8, Rgb([level; 3]));
    /// let (source, truth) = (plain(10), plain(200));
    /// let edit = KnownEdit { source: Some(&source), truth: &truth, candidates: &[plain(90)], reconstruction: &truth };
    /// assert!(edit.score(&plain(190))?.right);
    /// assert!(edit.score(&plain(20))?.copied);
    /// # Ok::<(), kontext_core::Error>(())
    /// ```
    pub fn score(&self, result: &RgbImage) -> Result<EditScore> {
        let to_truth = psnr(result, self.truth)?;
        let (mut nearest, mut index) = (f64::NEG_INFINITY, None);
        for (number, other) in self.candidates.iter().map(Some).chain([self.source]).enumerate() {
            let Some(other) = other else { continue };
            let to_other = psnr(result, other)?;
            if to_other > nearest && psnr(other, self.truth)? < SAME {
                (nearest, index) = (to_other, (number < self.candidates.len()).then_some(number));
            }
        }
        let copy_psnr = self
            .source
            .map(|source| psnr(source, self.truth))
            .transpose()?
            .filter(|copy| *copy < SAME);
        let to_source = self.source.map(|source| psnr(result, source)).transpose()?;
        let right = to_truth >= nearest;
        let copied = !right && copy_psnr.is_some() && to_source.is_some_and(|source| source >= nearest);
        Ok(EditScore {
            right,
            copied,
            mistaken_for: index.filter(|_| !right),
            psnr: to_truth,
            copy_psnr,
            reconstruction_psnr: psnr(self.reconstruction, self.truth)?,
            untouched_psnr: self.source.and_then(|source| untouched(result, source, self.truth)),
        })
    }
}

impl KnownEdit<'_> {
    /// Returns the mask of the edit: 255 where source and truth differ by more than 4 levels, else 0. `None` without a
    /// source, or if they agree everywhere.
    ///
    /// # Errors
    /// [`kontext_core::Error::InvalidArgument`] if the images are not of one size.
    ///
    /// # Example
    /// ```
    /// use image::{Rgb, RgbImage};
    /// use kontext_bench::edit::KnownEdit;
    /// let source = RgbImage::new(3, 1);
    /// let truth = RgbImage::from_fn(3, 1, |x, _| Rgb([if x == 1 { 90 } else { 3 }; 3]));
    /// let edit = KnownEdit { source: Some(&source), truth: &truth, candidates: &[], reconstruction: &truth };
    /// assert_eq!(edit.mask()?.unwrap().into_raw(), [0, 255, 0]);
    /// # Ok::<(), kontext_core::Error>(())
    /// ```
    pub fn mask(&self) -> Result<Option<GrayImage>> {
        let Some(source) = self.source else {
            return Ok(None);
        };
        same_size(source, self.truth)?;
        let level = |x, y| {
            let agree = agree(source.get_pixel(x, y), self.truth.get_pixel(x, y));
            Luma([if agree { 0 } else { 255 }])
        };
        let mask = GrayImage::from_fn(source.width(), source.height(), level);
        let differ = mask.iter().any(|&level| level > 0);
        Ok(differ.then_some(mask))
    }
}

/// Returns the PSNR of `result` against `source` over the pixels on which `source` and `truth` agree; all
/// three are of one size.
pub(crate) fn untouched(result: &RgbImage, source: &RgbImage, truth: &RgbImage) -> Option<f64> {
    let pixels = source.pixels().zip(truth.pixels());
    let agree: Vec<bool> = pixels.map(|(source, truth)| agree(source, truth)).collect();
    psnr_where(result, source, |pixel| agree.get(pixel) == Some(&true))
}

/// Returns `true` if two pixels are too close for an edit between them to count.
pub(crate) fn agree(source: &Rgb<u8>, truth: &Rgb<u8>) -> bool {
    source.0.iter().zip(truth.0).all(|(a, b)| a.abs_diff(b) <= AGREE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(left: u8, right: u8) -> RgbImage {
        RgbImage::from_fn(8, 8, |x, _| Rgb([if x < 4 { left } else { right }; 3]))
    }

    #[test]
    fn only_what_should_stay_counts_as_untouched() {
        let (source, truth) = (split(100, 50), split(100, 200));
        let edit = KnownEdit {
            source: Some(&source),
            truth: &truth,
            candidates: &[],
            reconstruction: &truth,
        };
        let score = edit.score(&split(110, 0)).unwrap();
        assert!((score.untouched_psnr.unwrap() - 28.131).abs() < 1e-3);
        assert!(score.copied && !score.right);
    }

    #[test]
    fn a_candidate_that_is_the_truth_in_other_words_does_not_count_against_it() {
        let (source, truth) = (split(0, 0), split(100, 200));
        let candidates = [split(100, 201)];
        let edit = KnownEdit {
            source: Some(&source),
            truth: &truth,
            candidates: &candidates,
            reconstruction: &truth,
        };
        assert!(edit.score(&split(100, 202)).unwrap().right);
        let other = [split(100, 230)];
        let edit = KnownEdit {
            candidates: &other,
            ..edit
        };
        let score = edit.score(&split(100, 225)).unwrap();
        assert!(!score.right && !score.copied);
    }

    #[test]
    fn an_edit_that_changes_nothing_has_no_copies() {
        let truth = split(1, 2);
        let edit = KnownEdit {
            source: Some(&truth),
            truth: &truth,
            candidates: &[],
            reconstruction: &truth,
        };
        let score = edit.score(&split(3, 4)).unwrap();
        assert!(score.right && !score.copied && score.copy_psnr.is_none());
    }
}
