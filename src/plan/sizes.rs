//! The sizes that pictures come in and go out with.

use kontext_core::{Error, Result};
use kontext_sampler::geometry::{TOKEN_PIXELS, bfl_target, diffusers_target, preferred_size};
use kontext_sampler::{Conformance, References, Size};

use super::ModelFacts;
use crate::Request;

/// Most pixels of joined reference pictures, as of a single one.
const LARGEST_JOINED: u64 = 1 << 28;
/// Beyond this ratio of ratios, a target of the user's size and a reference do not share a grid:
/// the stretch would show.
pub(super) const MOST_STRETCH: f64 = 1.1;

/// Sizes of the pictures, or of the joined one.
pub(super) fn input_sizes(request: &Request) -> Result<Vec<Size>> {
    let sizes: Vec<Size> = request
        .images
        .iter()
        .map(|i| Size::new(i.width(), i.height()))
        .collect();
    let Some(first) = sizes.first().filter(|_| request.references == References::Stitch) else {
        return Ok(sizes);
    };
    let joined = stitched_size(&sizes, first.height);
    if joined.area() > LARGEST_JOINED {
        let expected = format!("at most {LARGEST_JOINED} pixels; put the smallest picture first");
        return Err(Error::invalid("joined reference pictures", expected, joined));
    }
    Ok(vec![joined])
}

/// Width of pictures side by side, each brought to `height`.
fn stitched_size(sizes: &[Size], height: u32) -> Size {
    Size::new(
        sizes
            .iter()
            .map(|s| stitched_width(*s, height))
            .fold(0, u32::saturating_add),
        height,
    )
}

/// Width of a picture brought to `height`.
pub(crate) fn stitched_width(size: Size, height: u32) -> u32 {
    ((f64::from(height) * size.ratio()).round() as u32).max(1)
}

/// Size of the target before it becomes a grid; `input` is the first reference's size.
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
        Conformance::Diffusers => diffusers_target(asked(square), request.max_area.unwrap_or(square.area())),
        Conformance::Bfl => bfl_target(asked(input.map_or(square, preferred))),
        Conformance::Kontext => {
            // A generation takes the model's square, or whatever it prefers in its place.
            let native = preferred(input.unwrap_or(square));
            let scaled = request.max_area.map_or(native, |area| native.scaled_to(area));
            let follow = |side: u32, ratio: f64| {
                ((f64::from(side) * ratio / f64::from(TOKEN_PIXELS)).round() as u32).max(1) * TOKEN_PIXELS
            };
            match (request.width, request.height) {
                (Some(width), Some(height)) => Size::new(width, height),
                (Some(width), None) => Size::new(width, follow(width, 1.0 / scaled.ratio())),
                (None, Some(height)) => Size::new(follow(height, scaled.ratio()), height),
                (None, None) => scaled,
            }
        }
    }
}

/// Size that a reference of this size is brought to beside a target.
pub(super) fn reference_size(request: &Request, input: Size, target: Size, facts: &ModelFacts) -> Size {
    let native = preferred_size(input, &facts.sizes, request.conformance);
    if request.conformance != Conformance::Kontext {
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
