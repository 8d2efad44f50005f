//! A pipeline's cache of encoded prompts and reference images.

use std::sync::{Arc, Mutex};

use image::RgbImage;
use kontext_core::{Conditioning, Kind, Tensor, lock};
use kontext_sampler::{Conformance, Size};
use kontext_text::Unseen;

use super::recent::Recent;
use crate::lora::LoraKey;

/// Encoded prompts and reference images of earlier runs, on the pipeline's device.
///
/// An encoding depends on nothing but its key and the pipeline, so a run has the same bytes with and without the
/// cache.
#[derive(Debug)]
pub(crate) struct Encodings {
    texts: Mutex<Cache<PromptKey, EncodedPrompt>>,
    images: Mutex<Cache<ImageKey, Tensor>>,
}

/// A prompt's conditioning, and the text that an encoder did not see.
pub(super) type EncodedPrompt = (Conditioning, Unseen);

/// A cache, and the number of times that it was emptied.
#[derive(Debug)]
struct Cache<K, V> {
    recent: Recent<K, V>,
    emptied: u64,
}

/// Cache key of a prompt's conditioning: the text of each encoder and its reading, the LoRAs of both, and T5's arithmetic.
#[derive(Debug, PartialEq)]
pub(super) struct PromptKey {
    pub(super) clip: String,
    pub(super) t5: String,
    /// Set if parentheses weigh words.
    pub(super) weighted: bool,
    pub(super) loras: LoraKey,
    pub(super) compute: Kind,
    /// The last bits depend on it.
    pub(super) threads: Option<usize>,
}

/// Cache key of an image's latents: the pixels, the size that they are stretched to, and the arithmetic and
/// conventions of the encoding.
#[derive(Debug, Clone)]
pub(super) struct ImageKey {
    pub(super) image: Arc<RgbImage>,
    pub(super) fitted: Size,
    pub(super) conformance: Conformance,
    /// The last bits depend on it.
    pub(super) threads: Option<usize>,
}

/// The answer of the cache.
#[derive(Debug)]
pub(super) enum Lookup<'a, K, V> {
    Cached(V),
    Missing(Missing<'a, K, V>),
}

/// The place of an encoding that is not in the cache.
#[derive(Debug)]
pub(super) struct Missing<'a, K, V> {
    cache: &'a Mutex<Cache<K, V>>,
    key: K,
    /// A cache emptied since then stays empty: the encoding belongs to parts that were unloaded.
    emptied: u64,
}

impl Encodings {
    /// Default capacity in bytes: about 30 prompts of the published model in bf16, and 30 images of a megapixel.
    pub(crate) const DEFAULT_BYTES: u64 = 256 << 20;

    /// Creates an empty cache of a capacity in bytes, half of it for prompts and half for images.
    pub(crate) fn new(bytes: u64) -> Self {
        Self {
            texts: Mutex::new(Cache::new(bytes / 2)),
            images: Mutex::new(Cache::new(bytes / 2)),
        }
    }

    /// Returns the bytes in the cache, those of its keys included.
    pub(super) fn held(&self) -> u64 {
        lock(&self.texts).recent.cost() + lock(&self.images).recent.cost()
    }

    pub(super) fn text(&self, key: PromptKey) -> Lookup<'_, PromptKey, EncodedPrompt> {
        Lookup::of(&self.texts, key, |value| {
            let (conditioning, unseen) = value;
            (conditioning.clone(), unseen.clone())
        })
    }

    pub(super) fn image(&self, key: ImageKey) -> Lookup<'_, ImageKey, Tensor> {
        Lookup::of(&self.images, key, Tensor::shallow_clone)
    }

    /// Drops all encodings.
    pub(super) fn clear(&self) {
        let dropped = (lock(&self.texts).empty(), lock(&self.images).empty());
        drop(dropped);
    }
}

impl<K, V> Cache<K, V> {
    fn new(capacity: u64) -> Self {
        Self {
            recent: Recent::new(capacity),
            emptied: 0,
        }
    }

    fn empty(&mut self) -> Vec<V> {
        self.emptied += 1;
        self.recent.take()
    }
}

impl<'a, K: PartialEq, V> Lookup<'a, K, V> {
    fn of(cache: &'a Mutex<Cache<K, V>>, key: K, copy: impl FnOnce(&V) -> V) -> Self {
        let mut locked = lock(cache);
        if let Some(value) = locked.recent.get(|other| *other == key) {
            return Self::Cached(copy(value));
        }
        let emptied = locked.emptied;
        Self::Missing(Missing { cache, key, emptied })
    }
}

impl<K: PartialEq, V> Missing<'_, K, V> {
    fn add_of(self, cost: u64, value: impl FnOnce() -> V) {
        let Self { cache, key, emptied } = self;
        let mut locked = lock(cache);
        // Another run may have encoded the same meanwhile.
        if locked.emptied == emptied && locked.recent.get(|other| *other == key).is_none() {
            locked.recent.add(cost, || key, value);
        }
    }
}

impl Missing<'_, PromptKey, EncodedPrompt> {
    pub(super) fn add(self, encoded: &EncodedPrompt) {
        let (Conditioning { prompt_embeds, pooled }, _) = encoded;
        let cost = bytes(prompt_embeds) + bytes(pooled) + (self.key.clip.len() + self.key.t5.len()) as u64;
        self.add_of(cost, || encoded.clone());
    }
}

impl Missing<'_, ImageKey, Tensor> {
    pub(super) fn add(self, latents: &Tensor) {
        let cost = bytes(latents) + self.key.image.as_raw().len() as u64;
        self.add_of(cost, || latents.shallow_clone());
    }
}

impl PartialEq for ImageKey {
    fn eq(&self, other: &Self) -> bool {
        let same_image = || Arc::ptr_eq(&self.image, &other.image) || self.image == other.image;
        (self.fitted, self.conformance, self.threads) == (other.fitted, other.conformance, other.threads)
            && same_image()
    }
}

/// Returns the bytes of a tensor's elements.
fn bytes(tensor: &Tensor) -> u64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64
}

#[cfg(test)]
mod tests {
    use kontext_core::Device;

    use super::*;

    fn key(level: u8) -> ImageKey {
        ImageKey {
            image: Arc::new(RgbImage::from_pixel(4, 4, image::Rgb([level; 3]))),
            fitted: Size::new(16, 16),
            conformance: Conformance::Native,
            threads: Some(1),
        }
    }

    fn latents() -> Tensor {
        Tensor::zeros([1, 16, 2, 2], (Kind::Float, Device::Cpu))
    }

    fn missing(cache: &Encodings, key: ImageKey) -> Missing<'_, ImageKey, Tensor> {
        match cache.image(key) {
            Lookup::Missing(missing) => missing,
            Lookup::Cached(_) => panic!("it is in the cache"),
        }
    }

    fn holds(cache: &Encodings, key: ImageKey) -> bool {
        matches!(cache.image(key), Lookup::Cached(_))
    }

    #[test]
    fn an_image_is_found_by_its_pixels_and_the_capacity_is_in_bytes() {
        // Twice the 48 bytes of the pixels and the 256 of the latents; prompts have the other half.
        let cache = Encodings::new(2 * 2 * (48 + 256));
        for level in [1, 2] {
            missing(&cache, key(level)).add(&latents());
        }
        assert!([1, 2].into_iter().all(|level| holds(&cache, key(level))));
        let other_mode = ImageKey {
            conformance: Conformance::Bfl,
            ..key(2)
        };
        let other_threads = ImageKey {
            threads: Some(2),
            ..key(2)
        };
        assert!(!holds(&cache, other_mode) && !holds(&cache, other_threads));
        missing(&cache, key(3)).add(&latents());
        assert!(!holds(&cache, key(1)) && holds(&cache, key(3)));
        assert_eq!(cache.held(), 2 * (48 + 256));
        cache.clear();
        assert!(!holds(&cache, key(3)) && cache.held() == 0);
    }

    #[test]
    fn what_two_runs_encode_at_once_is_kept_once() {
        let cache = Encodings::new(2 * 2 * (48 + 256));
        missing(&cache, key(1)).add(&latents());
        let both = [missing(&cache, key(2)), missing(&cache, key(2))];
        both.into_iter().for_each(|missing| missing.add(&latents()));
        assert!([1, 2].into_iter().all(|level| holds(&cache, key(level))));
        assert_eq!(cache.held(), 2 * (48 + 256));
    }

    #[test]
    fn an_emptied_cache_is_not_filled_by_what_began_before() {
        let cache = Encodings::new(Encodings::DEFAULT_BYTES);
        let begun = missing(&cache, key(1));
        cache.clear();
        begun.add(&latents());
        assert!(!holds(&cache, key(1)));
        missing(&cache, key(1)).add(&latents());
        assert!(holds(&cache, key(1)));
    }
}
