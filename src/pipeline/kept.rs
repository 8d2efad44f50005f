//! What earlier runs have encoded: a prompt or a picture that comes again is not encoded again.

use image::RgbImage;
use kontext_core::{Conditioning, Tensor};
use kontext_sampler::{Conformance, Size};

/// Prompts that are kept. In bf16 one of the published model takes 4 MB.
const PROMPTS: usize = 16;
/// Pictures that are kept. One of a megapixel takes 3 MB, its latents 1 MB.
const PICTURES: usize = 8;

/// Encoded prompts and pictures, on the device of the pipeline that encoded them.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) texts: Recent<String, Conditioning>,
    /// Latents [1, C, H, W].
    pub(crate) pictures: Recent<EncodedPicture, Tensor>,
}

/// What the latents of a picture depend on.
#[derive(Debug)]
pub(crate) struct EncodedPicture {
    pub(crate) picture: RgbImage,
    pub(crate) fitted: Size,
    pub(crate) conformance: Conformance,
}

impl Kept {
    /// Keeps nothing: the runs of a pipeline know nothing of each other.
    pub(crate) fn nothing() -> Self {
        Self {
            texts: Recent::new(0),
            pictures: Recent::new(0),
        }
    }

    /// Keeps the latest.
    pub(crate) fn latest() -> Self {
        Self {
            texts: Recent::new(PROMPTS),
            pictures: Recent::new(PICTURES),
        }
    }
}

impl EncodedPicture {
    pub(crate) fn is(&self, picture: &RgbImage, fitted: Size, conformance: Conformance) -> bool {
        self.fitted == fitted && self.conformance == conformance && self.picture == *picture
    }
}

/// A few values by their keys; the one that was not wanted for longest makes room.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    most: usize,
    /// The latest stands last.
    entries: Vec<(K, V)>,
}

impl<K, V> Recent<K, V> {
    fn new(most: usize) -> Self {
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

    /// Adds a value under a key that is not there; both are made only where they are kept.
    pub(crate) fn add(&mut self, key: impl FnOnce() -> K, value: impl FnOnce() -> V) {
        if self.most == 0 {
            return;
        }
        if self.entries.len() == self.most {
            self.entries.remove(0);
        }
        self.entries.push((key(), value()));
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
