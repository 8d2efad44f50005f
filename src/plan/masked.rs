//! The part of an image that a run with a mask works on.

use kontext_core::{Error, Result};
use kontext_sampler::geometry::preferred_size;
use kontext_sampler::{Conformance, References, Size};

use super::ModelFacts;
use crate::mask::{self, MaskContext, Region};
use crate::{Request, Warning};

/// The part of an image that a run with a [`Mask`](crate::Mask) or an [`Outpaint`](crate::Outpaint) works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MaskPlan {
    /// Size of the source with its padding.
    pub canvas: Size,
    /// The part of it that the model sees.
    pub region: Region,
    /// Images that the model sees next to the noise.
    pub context: MaskContext,
}

impl MaskPlan {
    /// Plans the mask of a request, if it has one; fails if it cannot be used.
    pub(super) fn new(request: &Request, facts: &ModelFacts) -> Result<Option<Self>> {
        if request.mask.is_none() && request.outpaint.is_none() {
            return Ok(None);
        }
        let name = if request.mask.is_some() { "mask" } else { "outpaint" };
        let Some(source) = request.images.first() else {
            return Err(Error::invalid(
                name,
                "an image next to it, which is repainted",
                "a generation",
            ));
        };
        if request.references == References::Stitch {
            let expected =
                "references that are not joined with the repainted image; leave the placement, or set `Index`";
            return Err(Error::invalid(name, expected, "Stitch"));
        }
        let source = Size::new(source.width(), source.height());
        if let Some(mask) = &request.mask {
            mask::check_size(&mask.pixels, source.width, source.height)?;
        }
        let context = context(request)?;
        match request.conformance {
            Conformance::Native => {}
            Conformance::Diffusers => check_diffusers(request)?,
            Conformance::Bfl => {
                let expected = "none in the conventions of Bfl, whose program has no masks for Kontext; take those of \
                                Native or Diffusers";
                return Err(Error::invalid(name, expected, "one"));
            }
        }
        let (canvas, region) = {
            let preferred = |part| preferred_size(part, &facts.sizes, request.conformance);
            mask::region(request.mask.as_ref(), request.outpaint.as_ref(), source, preferred)?
        };
        Ok(Some(Self {
            canvas,
            region,
            context,
        }))
    }

    /// Returns `true` if the model sees the whole source.
    pub(crate) fn is_whole(&self) -> bool {
        self.region == Region::all(self.canvas)
    }

    /// Returns `true` if the result is mixed into the source: not as diffusers does.
    pub(crate) fn mixes(conformance: Conformance) -> bool {
        conformance == Conformance::Native
    }
}

/// Checks the settings of a mask, whatever the images are.
pub(super) fn check_settings(request: &Request) -> Result<()> {
    if let Some(mask) = &request.mask {
        mask.settings.check()?;
    }
    request.outpaint.map_or(Ok(()), |outpaint| outpaint.check())
}

/// Returns the settings that have no effect on a run with a mask.
pub(super) fn ignored(request: &Request) -> Vec<Warning> {
    let Some(mask) = request
        .mask
        .as_ref()
        .filter(|_| request.conformance == Conformance::Diffusers)
    else {
        return Vec::new();
    };
    let settings = [
        ("grow", mask.settings.grow > 0.0),
        ("feather", mask.settings.feather.is_some()),
    ];
    let set = settings.into_iter().filter(|(_, set)| *set);
    set.map(|(setting, _)| Warning::MaskSettingIgnored { setting })
        .collect()
}

/// Returns the images in the context of a run with a mask.
fn context(request: &Request) -> Result<MaskContext> {
    let others = request.images.len() > 1;
    let asked = request.mask.as_ref().and_then(|mask| mask.settings.context);
    let context = asked.unwrap_or(match (request.conformance, others) {
        (Conformance::Native | Conformance::Bfl, _) => MaskContext::Both,
        (Conformance::Diffusers, false) => MaskContext::Source,
        (Conformance::Diffusers, true) => MaskContext::References,
    });
    if context == MaskContext::References && !others {
        let expected = "`Source` or `Both`, or another image in the request";
        return Err(Error::invalid(
            "context of a mask",
            expected,
            "`References` without one",
        ));
    }
    if context == MaskContext::References && request.image_latents.is_some() {
        let expected = "none where the model does not see the image that they are of; set another context of the mask";
        return Err(Error::invalid("image_latents", expected, "some"));
    }
    Ok(context)
}

/// Refuses what `FluxKontextInpaintPipeline` does not have, or only broken.
fn check_diffusers(request: &Request) -> Result<()> {
    let refuse = |name, expected: &str, got: &str| Err(Error::invalid(name, expected, got));
    if request.outpaint.is_some() {
        return refuse(
            "outpaint",
            "none in the conventions of Diffusers, which pads nothing",
            "one",
        );
    }
    if request.mask.as_ref().is_some_and(|mask| mask.settings.crop.is_some()) {
        let expected = "none in the conventions of Diffusers: its `padding_mask_crop` takes the mask's box in other pixels \
                        than the image's, and returns the crop; take those of Native";
        return refuse("crop of a mask", expected, "one");
    }
    if request.images.len() > 2 {
        let expected = "at most one image next to the repainted one with a mask in the conventions of Diffusers";
        return refuse("reference images", expected, &(request.images.len() - 1).to_string());
    }
    let both = request
        .mask
        .as_ref()
        .is_some_and(|mask| mask.settings.context == Some(MaskContext::Both));
    if both && request.images.len() > 1 {
        return refuse(
            "context of a mask",
            "`Source` or `References` in the conventions of Diffusers",
            "`Both`",
        );
    }
    Ok(())
}
