//! Drift over many successive edits: the distance from the correct image, turn by turn.
//!
//! [`Drift`] takes the images that several methods produced on the same walks, and reports means with
//! bootstrap intervals over the walks as tables and curves. It contains no model.

mod map;
mod networks;
pub(crate) mod plot;
mod score;
mod table;

use image::RgbImage;
use kontext_core::{Error, Result};

pub use map::MapQuality;
pub use networks::Networks;
pub use plot::{Panel, plot};
pub use score::{Score, Values};
pub use table::Column;

use crate::statistics::{Estimate, paired_differences};

/// Bootstrap resamples for the interval of a mean.
const RESAMPLES: usize = 2000;

/// An image, the correct images after each turn, and the results.
#[derive(Debug, Clone, Copy)]
pub struct Walk<'a> {
    /// The image before the first turn.
    pub start: &'a RgbImage,
    /// The correct image after each turn.
    pub truths: &'a [RgbImage],
    /// The result of each turn.
    pub results: &'a [RgbImage],
}

/// The walks of several methods.
#[derive(Debug, Clone, Default)]
pub struct Drift {
    /// Methods in order of addition, each with the turns of its walks.
    methods: Vec<(String, Vec<Vec<Score>>)>,
}

impl Drift {
    /// Creates an instance without walks.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Measures a walk and adds it to a method. The n-th walk of every method must start from the same image
    /// and apply the same edits.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the images differ in size, or the numbers of results and truths differ.
    ///
    /// # Example
    /// ```
    /// use image::{Rgb, RgbImage};
    /// use kontext_bench::drift::{Column, Drift, Networks, Walk};
    /// let plain = |level: u8| RgbImage::from_pixel(16, 16, Rgb([level; 3]));
    /// let (start, truths) = (plain(100), [plain(200), plain(100)]);
    /// let mut drift = Drift::new();
    /// let none = Networks::default();
    /// drift.add("exact", Walk { start: &start, truths: &truths, results: &truths.clone() }, none)?;
    /// drift.add("fading", Walk { start: &start, truths: &truths, results: &[plain(190), plain(80)] }, none)?;
    /// let psnr = drift.curve("fading", &Column::PSNR)?;
    /// assert_eq!(psnr.len(), 2);
    /// assert!((psnr[0].value - 28.13).abs() < 0.01 && (psnr[1].value - 22.11).abs() < 0.01);
    /// # Ok::<(), kontext_core::Error>(())
    /// ```
    pub fn add(&mut self, method: &str, walk: Walk<'_>, networks: Networks<'_>) -> Result<()> {
        let scores = score::scores(walk, networks)?;
        match self.methods.iter_mut().find(|(name, _)| name == method) {
            Some((_, walks)) => walks.push(scores),
            None => self.methods.push((method.to_owned(), vec![scores])),
        }
        Ok(())
    }

    /// Returns the methods, in order of addition.
    pub fn methods(&self) -> impl Iterator<Item = &str> {
        self.methods.iter().map(|(name, _)| name.as_str())
    }

    /// Returns the number of walks of a method.
    #[must_use]
    pub fn walks(&self, method: &str) -> usize {
        self.of(method).map_or(0, Vec::len)
    }

    /// Returns the number of turns.
    #[must_use]
    pub fn turns(&self) -> usize {
        self.methods
            .iter()
            .flat_map(|(_, walks)| walks)
            .map(Vec::len)
            .max()
            .unwrap_or_default()
    }

    /// Returns a method's means after each turn for which the column has values.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the method has no walks.
    pub fn curve(&self, method: &str, column: &Column) -> Result<Vec<Estimate>> {
        let curves = (0..self.turns()).map(|turn| self.estimate(method, column, turn));
        Ok(curves.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// Returns a method's mean after a turn, counted from 0; `None` if the column has no values there.
    pub(crate) fn estimate(&self, method: &str, column: &Column, turn: usize) -> Result<Option<Estimate>> {
        let values: Vec<f64> = self.values(method, column, turn)?.into_iter().flatten().collect();
        if values.is_empty() {
            Ok(None)
        } else {
            Estimate::of_mean(&values, RESAMPLES).map(Some)
        }
    }

    /// Returns the mean difference between two methods on the same walks; `None` if the column has no values.
    pub(crate) fn difference(&self, a: &str, b: &str, column: &Column, turn: usize) -> Result<Option<Estimate>> {
        let (a, b) = (self.values(a, column, turn)?, self.values(b, column, turn)?);
        let pairs: (Vec<f64>, Vec<f64>) = a.into_iter().zip(b).filter_map(|(a, b)| Some((a?, b?))).unzip();
        if pairs.0.is_empty() {
            return Ok(None);
        }
        Estimate::of_mean(&paired_differences(&pairs.0, &pairs.1)?, RESAMPLES).map(Some)
    }

    /// Returns the values of a method's walks after a turn.
    fn values(&self, method: &str, column: &Column, turn: usize) -> Result<Vec<Option<f64>>> {
        let walks = self
            .of(method)
            .ok_or_else(|| Error::invalid("method", "one that has walks", method))?;
        Ok(walks
            .iter()
            .map(|scores| scores.get(turn).and_then(|score| (column.of)(score)))
            .collect())
    }

    fn of(&self, method: &str) -> Option<&Vec<Vec<Score>>> {
        self.methods
            .iter()
            .find(|(name, _)| name == method)
            .map(|(_, walks)| walks)
    }
}
