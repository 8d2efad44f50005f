//! Latents and noise given by the caller.

use kontext_core::{Error, Result};
use kontext_sampler::{Grid, References};
use ndarray::ArrayD;

use super::{ModelFacts, ReferencePlan};
use crate::Request;

/// Largest value of latents and noise, that of f16. Those of images and of noise are below 20, and in f32 the
/// model can still square it.
const LARGEST_VALUE: f32 = 65_504.0;

/// Checks that latents given for the first reference have its grid, and their values.
pub(super) fn check_image_latents(request: &Request, references: &[ReferencePlan], facts: &ModelFacts) -> Result<()> {
    let Some(latents) = &request.image_latents else {
        return Ok(());
    };
    let joined = request.references == References::Stitch && request.images.len() > 1;
    let Some(first) = references.first().filter(|_| !joined) else {
        return Err(Error::invalid(
            "image_latents",
            "a reference image of its own that they are of",
            "none",
        ));
    };
    let sizes = [1, first.grid.tokens(), facts.packed_channels()];
    let of = || format!("one image, tokens of {}, 4 * latent channels", first.fitted);
    check_shape("shape of image_latents", latents, sizes, of)?;
    check_values("image_latents", latents)
}

/// Checks that the given noise has the target's grid, and its values.
pub(super) fn check_noise(request: &Request, target: Grid, facts: &ModelFacts) -> Result<()> {
    let Some(noise) = &request.noise else {
        return Ok(());
    };
    let sizes = [request.batch as i64, target.tokens(), facts.packed_channels()];
    let of = || "batch, target tokens, 4 * latent channels".to_owned();
    check_shape("shape of the noise", noise, sizes, of)?;
    check_values("noise", noise)
}

/// Checks that values are finite, and none beyond all that a model has seen.
pub(crate) fn check_values(name: &'static str, values: &ArrayD<f32>) -> Result<()> {
    let within = |value: &f32| (-LARGEST_VALUE..=LARGEST_VALUE).contains(value);
    match values.iter().enumerate().find(|(_, value)| !within(value)) {
        None => Ok(()),
        Some((place, value)) => {
            let expected = format!("finite numbers from -{LARGEST_VALUE} to {LARGEST_VALUE}");
            let got = format!("{value:e} at place {place} of {}", values.len());
            Err(Error::invalid(name, expected, got))
        }
    }
}

fn check_shape(name: &'static str, given: &ArrayD<f32>, sizes: [i64; 3], of: impl FnOnce() -> String) -> Result<()> {
    if given.shape().iter().map(|&side| side as i64).eq(sizes) {
        return Ok(());
    }
    let expected = format!("{sizes:?} ({})", of());
    Err(Error::invalid(name, expected, format!("{:?}", given.shape())))
}
