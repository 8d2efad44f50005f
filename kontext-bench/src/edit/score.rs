//! One result against the true picture, the source, and other pictures that it might have become.

use image::{Rgb, RgbImage};
use kontext_core::Result;

use crate::metrics::{psnr, psnr_where};

/// Pictures this near to each other, in dB, are one: a mirrored picture that is symmetric, for example.
const SAME: f64 = 40.0;
/// Differences between source and truth of so many levels count as none.
const AGREE: u8 = 4;

/// An edit whose result is known.
#[derive(Debug, Clone, Copy)]
pub struct KnownEdit<'a> {
    /// The picture that is edited; none where a picture is made from text alone.
    pub source: Option<&'a RgbImage>,
    /// What it has to become.
    pub truth: &'a RgbImage,
    /// What it might become instead.
    pub candidates: &'a [RgbImage],
    /// The truth through the model's autoencoder and back: the best that its results can be.
    pub reconstruction: &'a RgbImage,
}

/// How near a result is to what it has to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EditScore {
    /// Whether no candidate, nor the source, is nearer to the result than the truth (mean squared error).
    pub right: bool,
    /// Whether the source is nearest: nothing was edited.
    pub copied: bool,
    /// The candidate that a wrong result is nearest to, by its index; none where it is the source.
    pub mistaken_for: Option<usize>,
    /// Result against truth, in dB.
    pub psnr: f64,
    /// The source against the truth, in dB: what copying scores. None where they are the same.
    pub copy_psnr: Option<f64>,
    /// The autoencoder's reconstruction of the truth against the truth, in dB.
    pub reconstruction_psnr: f64,
    /// Result against source where source and truth agree, in dB; none where they agree hardly anywhere.
    pub untouched_psnr: Option<f64>,
}

impl KnownEdit<'_> {
    /// Judges a result.
    ///
    /// # Errors
    /// [`kontext_core::Error::InvalidArgument`] where the pictures are not all of one size.
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

/// The error of `result` against `source` where `source` and `truth` agree; all three are of one size.
pub(crate) fn untouched(result: &RgbImage, source: &RgbImage, truth: &RgbImage) -> Option<f64> {
    let pixels = source.pixels().zip(truth.pixels());
    let agree: Vec<bool> = pixels.map(|(source, truth)| agree(source, truth)).collect();
    psnr_where(result, source, |pixel| agree.get(pixel) == Some(&true))
}

/// Whether an edit from one pixel to the other would be none.
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
