//! One turn: a picture, and how it was made.

use std::path::Path;

use image::{GrayImage, RgbImage};
use kontext_core::Result;
use kontext_sampler::Size;
use ndarray::ArrayD;

use crate::Request;
use crate::output::{Made, save_picture};

/// A picture of a session, and how it was made.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Turn {
    /// Its number, in the order of making; the picture that the session began with is 0.
    pub id: usize,
    /// The turn that was edited; none for the first.
    pub parent: Option<usize>,
    /// The picture.
    pub picture: RgbImage,
    /// Under [`Session::keep_unchanged`](super::Session::keep_unchanged), how much of each pixel is the edit's: at 0 it
    /// is the byte of the turn that was edited, at 255 the run's.
    pub changed: Option<GrayImage>,
    /// The context of the next turn in packed form [1, tokens, 64]; none for a picture that was given.
    pub latents: Option<ArrayD<f32>>,
    /// The request and what was decided where it said nothing; none for a picture that was given.
    pub(crate) edit: Option<(Request, Made)>,
}

impl Turn {
    /// A picture that no run made.
    pub(crate) fn given(id: usize, picture: RgbImage) -> Self {
        Self {
            id,
            parent: None,
            picture,
            changed: None,
            latents: None,
            edit: None,
        }
    }

    /// The prompt; empty for a picture that was given.
    #[must_use]
    pub fn prompt(&self) -> &str {
        self.request().map_or("", |request| &request.prompt)
    }

    /// The seed; none for a picture that was given.
    #[must_use]
    pub fn seed(&self) -> Option<u64> {
        self.edit.as_ref().map(|(_, made)| made.seed)
    }

    /// Sampling steps that were taken; none for a picture that was given.
    #[must_use]
    pub fn steps(&self) -> Option<usize> {
        self.edit.as_ref().map(|(_, made)| made.steps)
    }

    /// What was asked for, with the seed that was used. Its pictures are the further references; the picture that was
    /// edited is the parent's. None for a picture that was given.
    #[must_use]
    pub fn request(&self) -> Option<&Request> {
        self.edit.as_ref().map(|(request, _)| request)
    }

    /// Writes the picture as PNG, JPEG or WebP; see [`Output::save_image`](crate::Output::save_image).
    ///
    /// # Errors
    /// Those of [`Output::save_image`](crate::Output::save_image).
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        match &self.edit {
            Some((request, made)) => made.save(&self.picture, &request.prompt, path.as_ref()),
            None => save_picture(&self.picture, path, &[]),
        }
    }

    /// Whether its latents are those of a picture of this size.
    pub(crate) fn is_of(&self, size: Size) -> bool {
        self.edit.as_ref().is_some_and(|(_, made)| made.model_size == size)
    }
}
