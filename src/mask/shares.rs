//! The share of the result in each pixel: a mask, grown and feathered.

use image::{GenericImageView, GrayImage};
use kontext_core::{Error, Result, buffer};
use kontext_sampler::Size;

use super::{MaskSettings, Region};
use crate::distance::{falloff, squared_distances};

/// The memory of the shares, in messages.
const SHARES: &str = "the shares of a mask";
/// Bytes a pixel that the distances and the set of their pixels take.
const DISTANCE_BYTES: u64 = 9;
/// Least level of a pixel from which distances are measured.
const REPAINTED: u8 = 128;

/// Computes the share of each pixel, from 0 to 255: 255 up to `grow` pixels around levels of at least 128, from there
/// falling to 0 over `feather` pixels; and at least the mask's own level.
pub(crate) fn shares(mask: &GrayImage, settings: &MaskSettings) -> Result<GrayImage> {
    let size = Size::new(mask.width(), mask.height());
    let mut shares = black(size)?;
    // Beyond the reach all shares are 0.
    let Some(region) = Region::of_pixels(mask).map(|region| region.grown(settings.reach(), size)) else {
        return Ok(shares);
    };
    let Size { width, height } = region.size;
    buffer::can_have(region.size.area() * DISTANCE_BYTES, SHARES)?;
    let part = mask.view(region.left, region.top, width, height);
    let set: Vec<bool> = part.pixels().map(|(_, _, level)| level.0[0] >= REPAINTED).collect();
    let distances = squared_distances(&set, width as usize);
    let (grow, feather) = (f64::from(settings.grow), f64::from(settings.feathered()));
    for ((x, y, level), squared) in part.pixels().zip(distances) {
        let share = falloff(squared.sqrt() - grow, feather);
        let share = level.0[0].max((share * 255.0).round() as u8);
        shares.put_pixel(region.left + x, region.top + y, image::Luma([share]));
    }
    Ok(shares)
}

/// Returns the shares of a padded image: 255 in the padding, and in the old image, `old`, falling as a square over
/// `feather` pixels from the padded sides.
///
/// Source: comfyanonymous/ComfyUI `nodes.py`, `ImagePadForOutpaint`.
pub(crate) fn of_padding(canvas: Size, old: Region, feather: u32) -> Result<GrayImage> {
    let mut shares = black(canvas)?;
    let (right, bottom) = (old.left + old.size.width, old.top + old.size.height);
    let row_of = |from: u32, to: u32, end: u32, at: u32| {
        // Pixels to the padding before and after; without padding there is none to come near.
        let before = (from > 0).then(|| at.checked_sub(from));
        let after = (to < end).then(|| to.checked_sub(at + 1));
        [before, after]
    };
    for (x, y, share) in shares.enumerate_pixels_mut() {
        let inside = (old.left..right).contains(&x) && (old.top..bottom).contains(&y);
        let sides = row_of(old.left, right, canvas.width, x).into_iter();
        let sides = sides.chain(row_of(old.top, bottom, canvas.height, y));
        let nearest = sides.flatten().flatten().min().unwrap_or(u32::MAX);
        share.0[0] = if !inside {
            255
        } else if nearest < feather {
            let rest = f64::from(feather - nearest) / f64::from(feather);
            (rest * rest * 255.0).round() as u8
        } else {
            0
        };
    }
    Ok(shares)
}

/// Raises shares to those of a smaller image, which is at a place in this one.
pub(crate) fn raise(shares: &mut GrayImage, others: &GrayImage, left: u32, top: u32) {
    for (x, y, other) in others.enumerate_pixels() {
        let share = shares.get_pixel_mut(left + x, top + y);
        share.0[0] = share.0[0].max(other.0[0]);
    }
}

fn black(size: Size) -> Result<GrayImage> {
    let levels = buffer::filled(0_u8, size.area() as usize, SHARES)?;
    let missing = || Error::bug("shares of a mask with missing pixels");
    GrayImage::from_raw(size.width, size.height, levels).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use image::Luma;

    use super::*;

    fn settings(grow: f32, feather: f32) -> MaskSettings {
        MaskSettings {
            grow,
            feather: Some(feather),
            ..MaskSettings::default()
        }
    }

    #[test]
    fn shares_are_full_up_to_grow_and_end_after_feather() {
        let mask = GrayImage::from_fn(12, 3, |x, _| Luma([if x < 2 { 255 } else { 0 }]));
        let row = |grow, feather| shares(&mask, &settings(grow, feather)).unwrap().into_raw()[..12].to_vec();
        assert_eq!(row(0.0, 0.0), [255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(row(2.0, 0.0), [255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(row(1.0, 4.0), [255, 255, 255, 191, 128, 64, 0, 0, 0, 0, 0, 0]);
        assert_eq!(row(0.0, 99.0).last(), Some(&229));
    }

    #[test]
    fn soft_levels_stay_soft_and_are_the_least_of_a_share() {
        let mask = GrayImage::from_fn(6, 1, |x, _| Luma([[0, 60, 127, 128, 0, 9][x as usize]]));
        let row = |grow, feather| shares(&mask, &settings(grow, feather)).unwrap().into_raw();
        assert_eq!(row(0.0, 0.0), [0, 60, 127, 255, 0, 9]);
        assert_eq!(row(0.0, 2.0), [0, 60, 128, 255, 128, 9]);
        let faint = GrayImage::from_pixel(3, 1, Luma([1]));
        assert_eq!(shares(&faint, &settings(5.0, 5.0)).unwrap(), faint);
    }

    #[test]
    fn the_shares_far_from_a_mask_are_as_without_a_box_around_it() {
        let size = Size::new(70, 50);
        let mask = GrayImage::from_fn(size.width, size.height, |x, y| {
            Luma([if (x, y) == (30, 20) { 255 } else { 0 }])
        });
        let made = shares(&mask, &settings(2.5, 6.0)).unwrap();
        for (x, y, share) in made.enumerate_pixels() {
            let distance = (f64::from(x) - 30.0).hypot(f64::from(y) - 20.0);
            let expected = (255.0 * (1.0 - (distance - 2.5).max(0.0) / 6.0).max(0.0)).round();
            assert_eq!(f64::from(share.0[0]), expected, "({x}, {y})");
        }
    }

    #[test]
    fn a_padding_is_repainted_and_falls_as_a_square_into_its_sides_of_the_old_image() {
        let old = Region {
            left: 2,
            top: 0,
            size: Size::new(6, 3),
        };
        let shares = of_padding(Size::new(8, 3), old, 4).unwrap();
        // 1, (3/4)^2, (2/4)^2, (1/4)^2 from the left; the other sides are not padded.
        assert_eq!(shares.as_raw()[..8], [255, 255, 255, 143, 64, 16, 0, 0]);
        assert_eq!(shares.as_raw()[..8], shares.as_raw()[16..]);
        assert!(
            of_padding(Size::new(8, 3), old, 0).unwrap().as_raw()[2..8]
                .iter()
                .all(|&share| share == 0)
        );
    }
}
