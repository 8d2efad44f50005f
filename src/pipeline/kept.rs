//! Caches of encoded prompts and images, shared by the runs of a session.

use std::sync::Arc;

use image::RgbImage;
use kontext_core::{Conditioning, Kind, Tensor};
use kontext_sampler::{Conformance, Size};
use kontext_text::{Prompt, Unseen};

use crate::lora::LoraKey;

/// Capacity for prompts. One takes 4 MB in bf16 with the published model.
const PROMPTS: usize = 16;
/// Capacity for images. One of a megapixel takes 3 MB, its latents 1 MB.
const IMAGES: usize = 8;

/// Encoded prompts and images, on the device of their pipeline.
#[derive(Debug)]
pub(crate) struct Kept {
    /// With the text that an encoder did not see.
    pub(crate) texts: Recent<EncodedPrompt, (Conditioning, Unseen)>,
    /// Latents [1, C, H, W].
    pub(crate) images: Recent<EncodedImage, Tensor>,
}

/// Cache key of a prompt's conditioning: the text of each encoder, the LoRAs of both, and T5's arithmetic.
#[derive(Debug)]
pub(crate) struct EncodedPrompt {
    clip: String,
    t5: String,
    loras: LoraKey,
    compute: Kind,
}

/// Cache key of an image's latents.
#[derive(Debug)]
pub(crate) struct EncodedImage {
    pub(crate) image: Arc<RgbImage>,
    pub(crate) fitted: Size,
    pub(crate) conformance: Conformance,
}

impl Kept {
    /// Creates empty caches of capacity 0: runs of a pipeline share nothing.
    pub(crate) fn nothing() -> Self {
        Self {
            texts: Recent::new(0),
            images: Recent::new(0),
        }
    }

    /// Creates LRU caches with the default capacities.
    pub(crate) fn latest() -> Self {
        Self {
            texts: Recent::new(PROMPTS),
            images: Recent::new(IMAGES),
        }
    }
}

impl EncodedPrompt {
    pub(crate) fn of(prompt: Prompt<'_>, loras: LoraKey, compute: Kind) -> Self {
        Self {
            clip: prompt.clip.to_owned(),
            t5: prompt.t5.to_owned(),
            loras,
            compute,
        }
    }

    pub(crate) fn is(&self, prompt: Prompt<'_>, loras: &LoraKey, compute: Kind) -> bool {
        self.clip == prompt.clip && self.t5 == prompt.t5 && self.loras == *loras && self.compute == compute
    }
}

impl EncodedImage {
    pub(crate) fn is(&self, image: &Arc<RgbImage>, fitted: Size, conformance: Conformance) -> bool {
        let same_image = || Arc::ptr_eq(&self.image, image) || self.image == *image;
        self.fitted == fitted && self.conformance == conformance && same_image()
    }
}

/// A small least-recently-used cache.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    most: usize,
    /// Ordered by use, the most recent last.
    entries: Vec<(K, V)>,
}

impl<K, V> Recent<K, V> {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            entries: Vec::new(),
        }
    }

    pub(crate) fn get(&mut self, is: impl Fn(&K) -> bool) -> Option<&V> {
        let index = self.entries.iter().position(|(key, _)| is(key))?;
        self.entries[index..].rotate_left(1);
        self.entries.last().map(|(_, value)| value)
    }

    /// Adds a value under a key not in the cache; evaluates neither if the capacity is 0.
    pub(crate) fn add(&mut self, key: impl FnOnce() -> K, value: impl FnOnce() -> V) {
        if self.most == 0 {
            return;
        }
        if self.entries.len() == self.most {
            self.entries.remove(0);
        }
        self.entries.push((key(), value()));
    }

    /// Takes all values, and leaves the cache empty.
    pub(crate) fn take(&mut self) -> Vec<(K, V)> {
        std::mem::take(&mut self.entries)
    }

    /// Drops the values whose keys do not fulfil the condition.
    pub(crate) fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.entries.retain(|(key, _)| keep(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_wanted_for_longest_makes_room() {
        let mut recent = Recent::new(2);
        recent.add(|| 1, || "one");
        recent.add(|| 2, || "two");
        assert_eq!(recent.get(|key| *key == 1), Some(&"one"));
        recent.add(|| 3, || "three");
        assert_eq!(recent.get(|key| *key == 2), None);
        assert_eq!(recent.get(|key| *key == 1), Some(&"one"));
        assert_eq!(recent.get(|key| *key == 3), Some(&"three"));
    }

    #[test]
    fn nothing_is_kept_where_there_is_no_room() {
        let mut recent = Recent::<u8, u8>::new(0);
        recent.add(|| unreachable!(), || unreachable!());
        assert_eq!(recent.get(|_| true), None);
    }
}
