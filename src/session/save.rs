//! Saving a session into a folder: `session.json`, which names its images and latents.
//!
//! File names contain a digest of the content, so an existing file is never overwritten with another content,
//! and `session.json` is written last: a folder holds a whole session even if writing is interrupted.

use std::path::Path;
use std::sync::Arc;

use image::{ImageBuffer, PixelWithColorType, RgbImage};
use kontext_core::images::OpenOptions;
use kontext_core::{Error, Kind, Result, Tensor, array, create_folder, range, write_file};
use ndarray::ArrayD;

use super::files::Files;
use super::index::{EditEntry, FORMAT, INDEX, Index, KeepEntry, MaskEntry, RequestEntry, TurnEntry, check_replaceable};
use super::{KeepUnchanged, Session, Turn};
use crate::io::encode_png;
use crate::plan::{check_numbers, check_values};
use crate::{Mask, Request};

/// Name of the only tensor in a file.
pub(super) const TENSOR: &str = "latents";

pub(super) fn save(session: &Session, folder: &Path) -> Result<()> {
    let path = folder.join(INDEX);
    check_settings(session)?;
    check_replaceable(&path, session)?;
    create_folder(folder)?;
    let to = Writer {
        files: Files { folder },
        dtype: session.pipe.dtype(),
    };
    let turn = |(turn, next): (&Turn, &Option<usize>)| to.turn(turn, *next);
    let index = Index {
        format: FORMAT,
        id: Some(session.id.clone()),
        kontext: env!("CARGO_PKG_VERSION").to_owned(),
        current: session.current().id,
        reencode: session.reencode,
        keep_unchanged: session.keep_unchanged.as_ref().map(|keep| to.keep(keep)).transpose()?,
        defaults: to.request("defaults", &session.defaults)?,
        turns: session
            .history
            .turns()
            .iter()
            .zip(session.history.next())
            .map(turn)
            .collect::<Result<_>>()?,
    };
    write_file(&path, index.to_text(&path)?.as_bytes())
}

/// Checks what the caller has set since the last turn, so that a session that cannot be restored is refused
/// before anything is written.
fn check_settings(session: &Session) -> Result<()> {
    if let Some(KeepUnchanged::Difference(map)) = &session.keep_unchanged {
        map.check()?;
    }
    if session.defaults.image_latents.is_some() {
        let expected = "none in a session, which hands its own over";
        return Err(Error::invalid("image_latents", expected, "some"));
    }
    let turns = session.turns();
    let requests = turns.iter().filter_map(Turn::request).chain([&session.defaults]);
    let references = requests.flat_map(|request| {
        let masks = request.mask.iter().map(|mask| mask.pixels.dimensions());
        request.images.iter().map(|image| image.dimensions()).chain(masks)
    });
    let mask = match &session.keep_unchanged {
        Some(KeepUnchanged::Mask(mask)) => Some(mask.dimensions()),
        _ => None,
    };
    for (width, height) in turns
        .iter()
        .map(|turn| turn.image.dimensions())
        .chain(references)
        .chain(mask)
    {
        range::within(
            "pixels of an image",
            u64::from(width) * u64::from(height),
            1..=OpenOptions::MAX_PIXELS,
        )?;
    }
    check_request(&session.defaults)
}

/// Checks all numbers of a request, apart from those that depend on its run.
pub(super) fn check_request(request: &Request) -> Result<()> {
    check_numbers(request)?;
    request
        .noise
        .as_ref()
        .map_or(Ok(()), |noise| check_values("noise", noise))
}

/// Writes the files of a folder.
struct Writer<'a> {
    files: Files<'a>,
    dtype: Kind,
}

impl Writer<'_> {
    fn keep(&self, keep: &KeepUnchanged) -> Result<KeepEntry> {
        Ok(match keep {
            KeepUnchanged::Difference(map) => KeepEntry::Difference(*map),
            KeepUnchanged::Mask(mask) => KeepEntry::Mask(self.image("mask", mask)?),
        })
    }

    fn turn(&self, turn: &Turn, next: Option<usize>) -> Result<TurnEntry> {
        let name = format!("turn-{}", turn.id);
        let (mut edit, mut latents) = (None, None);
        if let Some((request, made)) = &turn.edit {
            edit = Some(EditEntry {
                asked: self.request(&name, request)?,
                made: made.clone(),
            });
            // Stored in the run's dtype: lossless.
            let kind = request.conformance.latents_kind(self.dtype);
            let to_tensor =
                |latents: &ArrayD<f32>| Ok::<_, Error>(array::from_array(&latents.view())?.f_to_kind(kind)?);
            let tensor = turn.latents.as_ref().map(to_tensor).transpose()?;
            latents = tensor
                .map(|tensor| self.tensor(&format!("{name}-latents"), tensor))
                .transpose()?;
        }
        Ok(TurnEntry {
            parent: turn.parent,
            next,
            image: self.image(&name, &turn.image)?,
            changed: turn
                .changed
                .as_ref()
                .map(|map| self.image(&format!("{name}-changed"), map))
                .transpose()?,
            latents,
            edit,
        })
    }

    fn request(&self, name: &str, request: &Request) -> Result<RequestEntry> {
        let reference =
            |(index, image): (usize, &Arc<RgbImage>)| self.image(&format!("{name}-reference-{index}"), image);
        let noise = |noise: &ArrayD<f32>| self.tensor(&format!("{name}-noise"), array::from_array(&noise.view())?);
        let mask = |mask: &Mask| {
            Ok::<_, Error>(MaskEntry {
                pixels: self.image(&format!("{name}-mask"), &*mask.pixels)?,
                settings: mask.settings,
            })
        };
        Ok(RequestEntry {
            request: request.clone(),
            references: request
                .images
                .iter()
                .enumerate()
                .map(reference)
                .collect::<Result<_>>()?,
            noise: request.noise.as_ref().map(noise).transpose()?,
            mask: request.mask.as_ref().map(mask).transpose()?,
        })
    }

    fn image<P>(&self, name: &str, image: &ImageBuffer<P, Vec<u8>>) -> Result<String>
    where
        P: PixelWithColorType<Subpixel = u8>,
    {
        let bytes = encode_png(image, &self.files.folder.join(name))?;
        self.files.write(name, "png", &bytes)
    }

    fn tensor(&self, name: &str, tensor: Tensor) -> Result<String> {
        let path = self.files.folder.join(name);
        let bytes = kontext_formats::to_bytes(&path, &[(TENSOR.to_owned(), tensor)], None)?;
        self.files.write(name, "safetensors", &bytes)
    }
}
