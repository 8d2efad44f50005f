//! Pictures as functions of the place, seen after a motion: drawn from the function itself, by no resampling.

use std::f64::consts::TAU;
use std::path::PathBuf;

use kontext::image::{self, GrayImage, Rgb, RgbImage};
use rayon::prelude::*;

/// A translation in pixels and a zoom about the centre.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moved {
    pub dx: f64,
    pub dy: f64,
    pub scale: f64,
}

impl Moved {
    pub(crate) const NOT: Self = Self::new(0.0, 0.0, 1.0);

    pub(crate) const fn new(dx: f64, dy: f64, scale: f64) -> Self {
        Self { dx, dy, scale }
    }

    /// Returns the largest distance of the corners under this motion and another, in pixels.
    pub(crate) fn distance(self, [dx, dy, scale]: [f64; 3], width: u32, height: u32) -> f64 {
        let corners = [[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]];
        let distance = |[x, y]: [f64; 2]| {
            let (x, y) = (x * f64::from(width), y * f64::from(height));
            (self.dx - dx + (self.scale - scale) * x).hypot(self.dy - dy + (self.scale - scale) * y)
        };
        corners.map(distance).into_iter().fold(0.0, f64::max)
    }
}

/// Colours in levels at a place in [0, 1] by [0, 1] and around it, in which the longer side is 1 long.
pub(crate) enum Scene {
    /// Random values, smooth between the knots of grids, each finer than the one before.
    Clouds(u32),
    /// Discs and bars with hard edges before a slope of colours.
    Shapes(u32),
    /// Waves in all directions.
    Waves(u32),
    /// Rows of dark marks on paper.
    Letters(u32),
    /// A photograph, bicubic between its pixels.
    Photo(RgbImage),
}

impl Scene {
    pub(crate) fn synthetic(seed: u32) -> [(&'static str, Self); 4] {
        [
            ("clouds", Self::Clouds(seed)),
            ("shapes", Self::Shapes(seed)),
            ("waves", Self::Waves(seed)),
            ("letters", Self::Letters(seed)),
        ]
    }

    fn color(&self, x: f64, y: f64) -> [f64; 3] {
        match self {
            Self::Clouds(seed) => [0, 1, 2].map(|channel| {
                let octave = |octave: u32| {
                    let knots = f64::from(4 << octave);
                    (smooth_noise(x * knots, y * knots, seed + 7 * octave + 1000 * (channel / 2)) - 0.5)
                        / f64::from(1 + octave)
                };
                128.0 + 130.0 * (0..6).map(octave).sum::<f64>()
            }),
            Self::Shapes(seed) => {
                let mut color = [60.0 + 90.0 * x, 120.0 + 60.0 * y, 170.0 - 80.0 * x * y];
                for shape in 0..60 {
                    let of = |at: u32| hash(shape, at, *seed);
                    let (dx, dy) = (x - of(0), y - of(1));
                    if dx.hypot(dy) > 0.15 {
                        continue;
                    }
                    let size = 0.012 + 0.06 * of(2);
                    let (sin, cos) = (TAU * of(3)).sin_cos();
                    let (along, across) = (dx * cos + dy * sin, dy * cos - dx * sin);
                    let inside = if of(4) < 0.5 {
                        dx.hypot(dy) < size
                    } else {
                        along.abs() < 2.0 * size && across.abs() < size / 3.0
                    };
                    if inside {
                        color = [of(5), of(6), of(7)].map(|level| 255.0 * level);
                    }
                }
                color
            }
            Self::Waves(seed) => {
                let wave = |wave: u32| {
                    let of = |at: u32| hash(wave, at, *seed);
                    let (sin, cos) = (TAU * of(0)).sin_cos();
                    let frequency = 20.0 + 260.0 * of(1) * of(1);
                    (frequency * (x * cos + y * sin) + TAU * of(2)).sin()
                };
                let sum: f64 = (0..12).map(wave).sum();
                [128.0 + 18.0 * sum, 120.0 + 14.0 * sum, 140.0 - 9.0 * sum]
            }
            Self::Letters(seed) => {
                let (row, column) = ((y * 24.0).floor(), (x * 32.0).floor());
                let (down, right) = (y * 24.0 - row, x * 32.0 - column);
                let of = |at: u32| hash((row as i64 * 4096 + column as i64) as u32, at, *seed);
                let stroke = |at: u32| {
                    let (x, y) = (0.1 + 0.6 * of(at), 0.1 + 0.5 * of(at + 1));
                    let [wide, high] = if of(at + 2) < 0.5 { [0.12, 0.4] } else { [0.5, 0.1] };
                    (x..x + wide).contains(&right) && (y..y + high).contains(&down)
                };
                let dark = of(0) < 0.8 && (1..4).any(|index| stroke(3 * index));
                if dark {
                    [40.0, 35.0, 60.0]
                } else {
                    [235.0, 230.0, 215.0 - 20.0 * x]
                }
            }
            Self::Photo(photo) => {
                let longest = f64::from(photo.width().max(photo.height()));
                bicubic(photo, x * longest - 0.5, y * longest - 0.5)
            }
        }
    }

    /// Draws the scene after a motion, each pixel as the mean of 3 by 3 places.
    pub(crate) fn drawn(&self, width: u32, height: u32, moved: Moved) -> RgbImage {
        const PLACES: usize = 3;
        let longest = f64::from(width.max(height));
        let (center_x, center_y) = (f64::from(width) / 2.0, f64::from(height) / 2.0);
        let mut image = RgbImage::new(width, height);
        image.par_enumerate_pixels_mut().for_each(|(column, row, pixel)| {
            let mut sums = [0.0; 3];
            for place in 0..PLACES * PLACES {
                let within = |at: usize| (at as f64 + 0.5) / PLACES as f64;
                let x = f64::from(column) + within(place % PLACES) - center_x;
                let y = f64::from(row) + within(place / PLACES) - center_y;
                let (x, y) = (
                    (x - moved.dx) / moved.scale + center_x,
                    (y - moved.dy) / moved.scale + center_y,
                );
                let color = self.color(x / longest, y / longest);
                sums = [0, 1, 2].map(|channel| sums[channel] + color[channel]);
            }
            *pixel = Rgb(sums.map(|sum| (sum / (PLACES * PLACES) as f64).round().clamp(0.0, 255.0) as u8));
        });
        image
    }
}

/// Returns a value in [0, 1).
pub(crate) fn hash(x: u32, y: u32, seed: u32) -> f64 {
    let mut bits = x.wrapping_mul(0x9E37_79B1) ^ y.wrapping_mul(0x85EB_CA77) ^ seed.wrapping_mul(0xC2B2_AE3D);
    for _ in 0..2 {
        bits = (bits ^ (bits >> 15)).wrapping_mul(0x2C1B_3C6D);
        bits = (bits ^ (bits >> 12)).wrapping_mul(0x297A_2D39);
    }
    f64::from(bits ^ (bits >> 15)) / 4_294_967_296.0
}

fn smooth_noise(x: f64, y: f64, seed: u32) -> f64 {
    let (column, row) = (x.floor(), y.floor());
    let smooth = |t: f64| t * t * (3.0 - 2.0 * t);
    let (right, down) = (smooth(x - column), smooth(y - row));
    let at = |dx: i64, dy: i64| hash((column as i64 + dx) as u32, (row as i64 + dy) as u32, seed);
    let mix = |a: f64, b: f64, t: f64| a + (b - a) * t;
    mix(mix(at(0, 0), at(1, 0), right), mix(at(0, 1), at(1, 1), right), down)
}

/// Interpolates by Catmull and Rom's cubics.
fn bicubic(photo: &RgbImage, x: f64, y: f64) -> [f64; 3] {
    let weights = |t: f64| {
        [
            ((2.0 - t) * t - 1.0) * t / 2.0,
            ((3.0 * t - 5.0) * t * t + 2.0) / 2.0,
            ((4.0 - 3.0 * t) * t + 1.0) * t / 2.0,
            (t - 1.0) * t * t / 2.0,
        ]
    };
    let (across, down) = (weights(x - x.floor()), weights(y - y.floor()));
    let clamped = |at: f64, side: u32| at.clamp(0.0, f64::from(side - 1)) as u32;
    let mut color = [0.0; 3];
    for (j, down) in down.into_iter().enumerate() {
        let row = clamped(y.floor() + j as f64 - 1.0, photo.height());
        for (i, across) in across.into_iter().enumerate() {
            let pixel = photo.get_pixel(clamped(x.floor() + i as f64 - 1.0, photo.width()), row);
            color = [0, 1, 2].map(|channel| color[channel] + across * down * f64::from(pixel[channel]));
        }
    }
    color
}

/// Returns the names of the photographs of the shared assets and their scenes; none where the assets are not there.
pub(crate) fn photos(most: usize) -> Vec<(String, Scene)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/assets/photos/kodak");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        println!("no photographs: {} is not there", folder.display());
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let photo = |file: &PathBuf| {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        (name, Scene::Photo(kontext::open_image(file).unwrap()))
    };
    files.iter().take(most).map(photo).collect()
}

/// Returns the image as an edit might return it: each channel by its own curve.
pub(crate) fn recolored(image: &RgbImage) -> RgbImage {
    changed_levels(image, |_, _, levels| {
        let [red, green, blue] = levels.map(f64::from);
        [
            255.0 * (red / 255.0).powf(0.7),
            0.6 * green + 70.0,
            0.8 * blue + 0.1 * red - 10.0,
        ]
    })
}

/// Returns the image blurred by a binomial of three by three pixels, with noise of this many levels at most.
pub(crate) fn decoded(image: &RgbImage, noise: f64, seed: u32) -> RgbImage {
    let at = |x: i64, y: i64, channel: usize| {
        let (x, y) = (
            x.clamp(0, i64::from(image.width()) - 1),
            y.clamp(0, i64::from(image.height()) - 1),
        );
        f64::from(image.get_pixel(x as u32, y as u32)[channel])
    };
    changed_levels(image, |x, y, _| {
        [0, 1, 2].map(|channel| {
            let blurred: f64 = (0..9)
                .map(|place| {
                    let (i, j) = (place % 3, place / 3);
                    f64::from([1, 2, 1][i] * [1, 2, 1][j]) / 16.0
                        * at(i64::from(x) + i as i64 - 1, i64::from(y) + j as i64 - 1, channel)
                })
                .sum();
            blurred + noise * (2.0 * hash(x, y * 3 + channel as u32, seed) - 1.0)
        })
    })
}

/// Returns the image with another one in a rectangle of this share of its area, and the mask of the rectangle.
pub(crate) fn with_other_content(image: &RgbImage, other: &RgbImage, share: f64) -> (RgbImage, GrayImage) {
    let (width, height) = image.dimensions();
    let [wide, high] = [width, height].map(|side| (f64::from(side) * share.sqrt()) as u32);
    let inside =
        |x: u32, y: u32| (width / 10..width / 10 + wide).contains(&x) && (height / 12..height / 12 + high).contains(&y);
    let edited = RgbImage::from_fn(width, height, |x, y| {
        *if inside(x, y) {
            other.get_pixel(x, y)
        } else {
            image.get_pixel(x, y)
        }
    });
    let mask = GrayImage::from_fn(width, height, |x, y| image::Luma([if inside(x, y) { 255 } else { 0 }]));
    (edited, mask)
}

fn changed_levels(image: &RgbImage, change: impl Fn(u32, u32, [u8; 3]) -> [f64; 3]) -> RgbImage {
    RgbImage::from_fn(image.width(), image.height(), |x, y| {
        Rgb(change(x, y, image.get_pixel(x, y).0).map(|level| level.round().clamp(0.0, 255.0) as u8))
    })
}
