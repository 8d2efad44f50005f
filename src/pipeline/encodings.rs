//! A pipeline's cache of encoded prompts and reference images.

use std::sync::{Arc, Mutex};

use image::RgbImage;
use kontext_core::{Conditioning, Kind, Tensor, lock};
use kontext_sampler::{Conformance, Size};
use kontext_text::{Prompt, Unseen};

use super::recent::Recent;
use crate::lora::LoraKey;

/// Encoded prompts and reference images of earlier runs, on the pipeline's device.
///
/// An encoding depends on nothing but its key and the pipeline, so a run has the same bytes with and without the
/// cache.
#[derive(Debug)]
pub(crate) struct Encodings {
    /// With the text that an encoder did not see.
    texts: Mutex<Recent<PromptKey, (Conditioning, Unseen)>>,
    /// Latents [1, C, H, W].
    images: Mutex<Recent<ImageKey, Tensor>>,
}

/// Cache key of a prompt's conditioning: the text of each encoder, the LoRAs of both, and T5's arithmetic.
#[derive(Debug)]
struct PromptKey {
    clip: String,
    t5: String,
    loras: LoraKey,
    compute: Kind,
}

/// Cache key of an image's latents: the pixels, the size that they are stretched to, and the conventions of the
/// encoding.
#[derive(Debug, Clone)]
pub(super) struct ImageKey {
    pub(super) image: Arc<RgbImage>,
    pub(super) fitted: Size,
    pub(super) conformance: Conformance,
}

impl Encodings {
    /// Default capacity in bytes: about 30 prompts of the published model in bf16, and 30 images of a megapixel.
    pub(crate) const DEFAULT_BYTES: u64 = 256 << 20;

    /// Creates an empty cache of a capacity in bytes, half of it for prompts and half for images.
    pub(crate) fn new(bytes: u64) -> Self {
        Self {
            texts: Mutex::new(Recent::new(bytes / 2)),
            images: Mutex::new(Recent::new(bytes / 2)),
        }
    }

    pub(super) fn text(&self, prompt: Prompt<'_>, loras: &LoraKey, compute: Kind) -> Option<(Conditioning, Unseen)> {
        let is = |key: &PromptKey| {
            key.clip == prompt.clip && key.t5 == prompt.t5 && key.loras == *loras && key.compute == compute
        };
        lock(&self.texts).get(is).cloned()
    }

    /// Adds a prompt that [`Encodings::text`] does not have.
    pub(super) fn add_text(
        &self,
        prompt: Prompt<'_>,
        loras: &LoraKey,
        compute: Kind,
        encoded: &(Conditioning, Unseen),
    ) {
        let (Conditioning { prompt_embeds, pooled }, _) = encoded;
        let cost = bytes(prompt_embeds) + bytes(pooled) + (prompt.clip.len() + prompt.t5.len()) as u64;
        let key = || PromptKey {
            clip: prompt.clip.to_owned(),
            t5: prompt.t5.to_owned(),
            loras: loras.clone(),
            compute,
        };
        lock(&self.texts).add(cost, key, || encoded.clone());
    }

    pub(super) fn image(&self, wanted: &ImageKey) -> Option<Tensor> {
        lock(&self.images).get(|key| key.is(wanted)).map(Tensor::shallow_clone)
    }

    /// Adds an image that [`Encodings::image`] does not have.
    pub(super) fn add_image(&self, key: &ImageKey, latents: &Tensor) {
        let cost = bytes(latents) + key.image.as_raw().len() as u64;
        lock(&self.images).add(cost, || key.clone(), || latents.shallow_clone());
    }

    /// Drops all encodings.
    pub(super) fn clear(&self) {
        let dropped = (lock(&self.texts).take(), lock(&self.images).take());
        drop(dropped);
    }
}

impl ImageKey {
    fn is(&self, other: &Self) -> bool {
        let same_image = || Arc::ptr_eq(&self.image, &other.image) || self.image == other.image;
        self.fitted == other.fitted && self.conformance == other.conformance && same_image()
    }
}

/// Returns the bytes of a tensor's elements.
fn bytes(tensor: &Tensor) -> u64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64
}

#[cfg(test)]
mod tests {
    use kontext_core::{Device, Kind};

    use super::*;

    fn key(level: u8) -> ImageKey {
        ImageKey {
            image: Arc::new(RgbImage::from_pixel(4, 4, image::Rgb([level; 3]))),
            fitted: Size::new(16, 16),
            conformance: Conformance::Native,
        }
    }

    #[test]
    fn an_image_is_found_by_its_pixels_and_the_capacity_is_in_bytes() {
        let latents = Tensor::zeros([1, 16, 2, 2], (Kind::Float, Device::Cpu));
        // Twice the 48 bytes of the pixels and the 256 of the latents; prompts have the other half.
        let cache = Encodings::new(2 * 2 * (48 + 256));
        for level in [1, 2] {
            cache.add_image(&key(level), &latents);
        }
        assert!([1, 2].iter().all(|level| cache.image(&key(*level)).is_some()));
        let other = ImageKey {
            conformance: Conformance::Bfl,
            ..key(2)
        };
        assert!(cache.image(&other).is_none());
        cache.add_image(&key(3), &latents);
        assert!(cache.image(&key(1)).is_none() && cache.image(&key(3)).is_some());
        cache.clear();
        assert!(cache.image(&key(3)).is_none());
    }
}
