//! One turn: an image and its parameters.

use std::path::Path;

use image::{GrayImage, ImageFormat, RgbImage};
use kontext_core::Result;
use kontext_sampler::Size;
use kontext_text::Unseen;
use ndarray::ArrayD;

use crate::io::{encode_image, save_image};
use crate::output::{Made, Prompts};
use crate::{Request, Warning};

/// An image of a session and its parameters.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Turn {
    /// Number of the turn, in order of creation; the session's initial image is 0.
    pub id: usize,
    /// The parent, whose image was edited; `None` for the first turn.
    pub parent: Option<usize>,
    /// The image.
    pub image: RgbImage,
    /// Under [`Session::keep_unchanged`](super::Session::keep_unchanged), the edit's share of each pixel: at
    /// 0 it is the byte of the parent's image, at 255 the run's.
    pub changed: Option<GrayImage>,
    /// The context of the next turn in packed form [1, tokens, 64]; `None` for a given image.
    pub latents: Option<ArrayD<f32>>,
    /// Settings without effect, and surprises: those of the run's [`Plan::warnings`](crate::Plan::warnings).
    /// Empty for a given image, and after the session was restored: a folder does not hold them.
    pub warnings: Vec<Warning>,
    /// Text of the prompts that an encoder cut or does not know, as
    /// [`Output::unseen`](crate::Output::unseen); empty where `warnings` is.
    pub unseen: Unseen,
    /// The request and the resolved parameters; `None` for a given image.
    pub(crate) edit: Option<(Request, Made)>,
}

impl Turn {
    /// Creates a turn from an image that no run produced.
    pub(crate) fn given(id: usize, image: RgbImage) -> Self {
        Self {
            id,
            parent: None,
            image,
            changed: None,
            latents: None,
            warnings: Vec::new(),
            unseen: Unseen::default(),
            edit: None,
        }
    }

    /// Returns the prompt; empty for a given image.
    #[must_use]
    pub fn prompt(&self) -> &str {
        self.request().map_or("", |request| &request.prompt)
    }

    /// Returns the seed; `None` for a given image.
    #[must_use]
    pub fn seed(&self) -> Option<u64> {
        self.edit.as_ref().map(|(_, made)| made.seed)
    }

    /// Returns the number of sampling steps; `None` for a given image.
    #[must_use]
    pub fn steps(&self) -> Option<usize> {
        self.edit.as_ref().map(|(_, made)| made.steps)
    }

    /// Returns the request, with the seed used. Its images are the further references; the edited image is
    /// the parent's. `None` for a given image.
    #[must_use]
    pub fn request(&self) -> Option<&Request> {
        self.edit.as_ref().map(|(request, _)| request)
    }

    /// Writes the image as PNG, JPEG or WebP; see [`Output::save_image`](crate::Output::save_image).
    ///
    /// # Errors
    /// Those of [`Output::save_image`](crate::Output::save_image).
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        match &self.edit {
            Some((request, made)) => made.save(&self.image, prompts(request), path.as_ref()),
            None => save_image(&self.image, path, &[]),
        }
    }

    /// Encodes the image as PNG, JPEG or WebP: the bytes of the file that [`Turn::save`] writes.
    ///
    /// # Errors
    /// Those of [`Output::encode`](crate::Output::encode).
    pub fn encode(&self, format: ImageFormat) -> Result<Vec<u8>> {
        match &self.edit {
            Some((request, made)) => made.encode(&self.image, prompts(request), format),
            None => encode_image(&self.image, format, &[]),
        }
    }

    /// Returns `true` if its latents belong to an image of this size.
    pub(crate) fn is_of(&self, size: Size) -> bool {
        self.edit.as_ref().is_some_and(|(_, made)| made.model_size == size)
    }
}

/// Returns the prompts that an image records.
fn prompts(request: &Request) -> Prompts<'_> {
    (&request.prompt, request.prompt_2.as_deref())
}
