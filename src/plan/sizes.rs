//! Sizes of input and output images.

use kontext_core::images::OpenOptions;
use kontext_core::{Error, Result};
use kontext_sampler::geometry::{TOKEN_PIXELS, bfl_target, diffusers_target, preferred_size};
use kontext_sampler::{Conformance, References, Size};

use super::{MaskPlan, ModelFacts};
use crate::Request;

/// Most pixels of the joined reference images, the same as for a single one.
const LARGEST_JOINED: u64 = OpenOptions::MAX_PIXELS;
/// Largest ratio of the aspect ratios at which a target of the user's size and a reference share a grid;
/// beyond it the stretch would be visible.
pub(super) const MOST_STRETCH: f64 = 1.1;

/// Returns the sizes of the images, or of the joined one; of a masked one that of its region.
pub(super) fn input_sizes(request: &Request, mask: Option<&MaskPlan>) -> Result<Vec<Size>> {
    let mut sizes: Vec<Size> = request
        .images
        .iter()
        .map(|i| Size::new(i.width(), i.height()))
        .collect();
    if let (Some(first), Some(mask)) = (sizes.first_mut(), mask) {
        *first = mask.region.size;
    }
    let Some(first) = sizes.first().filter(|_| request.references == References::Stitch) else {
        return Ok(sizes);
    };
    let joined = stitched_size(&sizes, first.height);
    if joined.area() > LARGEST_JOINED {
        let expected = format!("at most {LARGEST_JOINED} pixels; put the smallest image first");
        return Err(Error::invalid("joined reference images", expected, joined));
    }
    Ok(vec![joined])
}

/// Returns the size of images side by side, each scaled to `height`.
fn stitched_size(sizes: &[Size], height: u32) -> Size {
    Size::new(
        sizes
            .iter()
            .map(|s| stitched_width(*s, height))
            .fold(0, u32::saturating_add),
        height,
    )
}

/// Returns the width of an image scaled to `height`.
pub(crate) fn stitched_width(size: Size, height: u32) -> u32 {
    ((f64::from(height) * size.ratio()).round() as u32).max(1)
}

/// Returns the size of the target before rounding to a grid; `input` is the first reference's size.
pub(super) fn target_size(request: &Request, input: Option<Size>, facts: &ModelFacts) -> Size {
    let square = Size::new(1024, 1024);
    let preferred = |input: Size| preferred_size(input, &facts.sizes, request.conformance);
    let asked = |missing: Size| {
        Size::new(
            request.width.unwrap_or(missing.width),
            request.height.unwrap_or(missing.height),
        )
    };
    match request.conformance {
        Conformance::Diffusers if request.mask.is_some() => preferred(input.unwrap_or(square)).floored(),
        Conformance::Diffusers => diffusers_target(asked(square), request.max_area.unwrap_or(square.area())),
        Conformance::Bfl => bfl_target(asked(input.map_or(square, preferred))),
        Conformance::Native => {
            // A generation takes the model's square, or the preferred size nearest to it.
            let native = preferred(input.unwrap_or(square));
            let follow = |side: u32, ratio: f64| {
                ((f64::from(side) * ratio / f64::from(TOKEN_PIXELS)).round() as u32).max(1) * TOKEN_PIXELS
            };
            match (request.width, request.height) {
                (Some(width), Some(height)) => Size::new(width, height),
                (Some(width), None) => Size::new(width, follow(width, 1.0 / native.ratio())),
                (None, Some(height)) => Size::new(follow(height, native.ratio()), height),
                (None, None) => request.max_area.map_or(native, |area| native.scaled_to(area)),
            }
        }
    }
}

/// Returns the size that a reference is stretched to for a target.
pub(super) fn reference_size(request: &Request, input: Size, target: Size, facts: &ModelFacts) -> Size {
    let native = preferred_size(input, &facts.sizes, request.conformance);
    if request.conformance != Conformance::Native {
        return native.floored();
    }
    if request.width.is_none() && request.height.is_none() {
        return request.max_area.map_or(native, |area| native.scaled_to(area));
    }
    let stretch = target.ratio() / input.ratio();
    if (1.0 / MOST_STRETCH..=MOST_STRETCH).contains(&stretch) {
        target
    } else {
        native.scaled_to(target.area())
    }
}
