//! The input positions of each output position on one axis, and their coefficients.

use std::f64::consts::PI;

use crate::{Result, buffer};

/// Lobes of the filter on each side.
pub(super) const LOBES: f64 = 3.0;
/// Fractional bits of a coefficient: 32 minus 8 for the level and 2 of headroom for overshoot.
pub(super) const PRECISION: u32 = 22;

/// One axis of a resizing.
pub(super) struct Axis {
    /// The image's side, in pixels.
    pub input: usize,
    /// The part of it that is resized, in f32 as in Pillow.
    part: [f32; 2],
    /// The result's side, in pixels.
    pub output: usize,
}

impl Axis {
    pub(super) fn new(input: u32, part: [f32; 2], output: u32) -> Self {
        Self {
            input: input as usize,
            part,
            output: output as usize,
        }
    }

    /// Returns `true` if the part is a finite interval with more than a point of the image.
    pub(super) fn has_part(&self) -> bool {
        let [start, end] = self.part;
        start.is_finite() && end.is_finite() && start < end && start < self.input as f32 && end > 0.0
    }

    /// Returns `true` if the axis stays as it is.
    pub(super) fn is_kept(&self) -> bool {
        self.input == self.output && self.part == [0.0, self.output as f32]
    }
}

/// Input positions of each output position, and their coefficients.
pub(super) struct Taps {
    /// The first input position, and the end of the coefficients in `weights`.
    positions: Vec<(usize, usize)>,
    weights: Vec<i32>,
}

impl Taps {
    pub(super) fn new(axis: &Axis) -> Result<Self> {
        const PURPOSE: &str = "the coefficients of a resized image";
        let (input, output) = (axis.input, axis.output);
        let [start, end] = axis.part;
        let scale = f64::from(end - start) / output as f64;
        let stretch = scale.max(1.0);
        let support = LOBES * stretch;
        let inputs = |position: usize| {
            // Within the image: further out, the outer lobes alone would have a sum near zero or below.
            let center = (f64::from(start) + (position as f64 + 0.5) * scale).clamp(0.0, input as f64);
            let first = (center - support + 0.5).max(0.0) as usize;
            let last = ((center + support + 0.5) as usize).min(input);
            (center, first..last)
        };
        let mut weights = buffer::with_room((0..output).map(|position| inputs(position).1.len()).sum(), PURPOSE)?;
        let mut positions = buffer::with_room(output, PURPOSE)?;
        for position in 0..output {
            let (center, inputs) = inputs(position);
            let weight = |x: usize| lanczos((x as f64 - center + 0.5) * (1.0 / stretch));
            let sum: f64 = inputs.clone().map(weight).sum();
            let fixed = |x: usize| (weight(x) / sum * f64::from(1 << PRECISION)).round() as i32;
            weights.extend(inputs.clone().map(fixed));
            positions.push((inputs.start, weights.len()));
        }
        Ok(Self { positions, weights })
    }

    /// Returns the first input position and the coefficients of each output position.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        (0..self.positions.len()).map(|position| self.at(position))
    }

    /// Returns the first input position of an output position, and the coefficients.
    pub(super) fn at(&self, position: usize) -> (usize, &[i32]) {
        let start = position.checked_sub(1).map_or(0, |before| self.positions[before].1);
        let (first, end) = self.positions[position];
        (first, &self.weights[start..end])
    }
}

fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
    if (-LOBES..LOBES).contains(&x) {
        sinc(x) * sinc(x / LOBES)
    } else {
        0.0
    }
}
