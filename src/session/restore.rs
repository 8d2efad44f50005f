//! Restoring a session from a folder, whose content anyone may have changed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use image::{GrayImage, RgbImage};
use kontext_core::images::OpenOptions;
use kontext_core::{Device, Error, Result, array, images, range};
use kontext_device::memory;
use kontext_nn::Weights;
use ndarray::ArrayD;

use super::files::{Files, read_bounded};
use super::history::History;
use super::index::{EditEntry, INDEX, Index, KeepEntry, MaskEntry, RequestEntry, TurnEntry};
use super::save::{TENSOR, check_request};
use super::{KeepUnchanged, Session, Turn};
use crate::defaults::{LARGEST_GUIDANCE, STEPS};
use crate::output::Made;
use crate::plan::check_values;
use crate::{Mask, Pipeline, Request};

pub(super) fn restore(pipe: &Arc<Pipeline>, folder: &Path) -> Result<Session> {
    let path = folder.join(INDEX);
    let files = Files { folder };
    let index = Index::parse(&path, &read_bounded(&files.own(INDEX)?)?)?;
    let from = Reader { files, index: &path };
    check_room(files, &index)?;
    let next = index.turns.iter().map(|turn| turn.next).collect();
    let turns = index
        .turns
        .into_iter()
        .enumerate()
        .map(|(id, turn)| from.turn(pipe, id, turn))
        .collect::<Result<Vec<_>>>()?;
    let no_history = || Error::config(&path, "its turns are no tree; restore it from a copy");
    let mut session = Session::new(
        Arc::clone(pipe),
        History::of(turns, next, index.current).ok_or_else(no_history)?,
    );
    session.id = index.id.unwrap_or(session.id);
    session.reencode = index.reencode;
    session.defaults = from.request(index.defaults)?;
    session.keep_unchanged = index.keep_unchanged.map(|keep| from.keep(keep)).transpose()?;
    Ok(session)
}

/// Checks that the images fit into the free memory: a small file may hold a large one, and any number of
/// turns may name it.
fn check_room(files: Files<'_>, index: &Index) -> Result<()> {
    let mut sizes: HashMap<&str, u64> = HashMap::new();
    // What is no image of the folder is reported when it is read.
    let mut pixels = |name| {
        *sizes.entry(name).or_insert_with(|| {
            let sides = files.own(name).ok().and_then(|path| images::dimensions(path).ok());
            sides.map_or(0, |(width, height)| u64::from(width) * u64::from(height))
        })
    };
    let asked = index.turns.iter().filter_map(|turn| Some(&turn.edit.as_ref()?.asked));
    let asked: Vec<&RequestEntry> = asked.chain([&index.defaults]).collect();
    let references = asked.iter().flat_map(|request| &request.references);
    let masks = asked.iter().filter_map(|request| request.mask.as_ref());
    let images = index.turns.iter().map(|turn| &turn.image).chain(references);
    let maps = index.turns.iter().filter_map(|turn| turn.changed.as_ref());
    let maps = maps.chain(masks.map(|mask| &mask.pixels));
    let files = images.map(|name| (name, 3)).chain(maps.map(|name| (name, 1)));
    let bytes = files.fold(0_u64, |sum, (name, channels)| {
        sum.saturating_add(pixels(name).saturating_mul(channels))
    });
    if bytes <= memory::free(Device::Cpu).unwrap_or(u64::MAX) {
        return Ok(());
    }
    Err(Error::Allocation {
        purpose: "the images of the session",
        mb: u128::from(bytes.div_ceil(1_000_000)),
    })
}

/// Reads the files of a folder.
struct Reader<'a> {
    files: Files<'a>,
    index: &'a Path,
}

impl Reader<'_> {
    fn keep(&self, entry: KeepEntry) -> Result<KeepUnchanged> {
        Ok(match entry {
            KeepEntry::Difference(map) => {
                map.check().map_err(Error::in_config(self.index))?;
                KeepUnchanged::Difference(map)
            }
            KeepEntry::Mask(file) => KeepUnchanged::Mask(self.grey(&file)?),
        })
    }

    fn turn(&self, pipe: &Pipeline, id: usize, entry: TurnEntry) -> Result<Turn> {
        let TurnEntry {
            parent,
            image,
            changed,
            latents,
            edit,
            ..
        } = entry;
        let wrong = |what: String| Error::config(self.index, format!("turn {id} {what}; restore it from a copy"));
        let image = self.image(&image)?;
        let changed = changed.map(|file| self.grey(&file)).transpose()?;
        if changed
            .as_ref()
            .is_some_and(|map| map.dimensions() != image.dimensions())
        {
            return Err(wrong("has a map of another size than its image".to_owned()));
        }
        let edit = edit
            .map(|EditEntry { asked, made }| {
                check_made(&made).map_err(Error::in_config(self.index))?;
                Ok::<_, Error>((self.request(asked)?, made))
            })
            .transpose()?;
        let latents = latents.map(|file| self.tensor("latents", &file)).transpose()?;
        if let Some(latents) = &latents {
            let Some((_, made)) = &edit else {
                return Err(wrong("has latents, and no run that made them".to_owned()));
            };
            let expected = [1, made.model_size.grid()?.tokens(), pipe.packed_channels()];
            if !latents.shape().iter().map(|&side| side as i64).eq(expected) {
                let (expected, got) = (format!("{expected:?}"), format!("{:?}", latents.shape()));
                return Err(wrong(format!(
                    "has latents {got}, and this model's are {expected}; restore it with the model that made it"
                )));
            }
        }
        Ok(Turn {
            parent,
            changed,
            latents,
            edit,
            ..Turn::given(id, image)
        })
    }

    fn request(&self, entry: RequestEntry) -> Result<Request> {
        let RequestEntry {
            mut request,
            references,
            noise,
            mask,
        } = entry;
        request.images = references
            .iter()
            .map(|file| Ok(Arc::new(self.image(file)?)))
            .collect::<Result<_>>()?;
        request.noise = noise.map(|file| self.tensor("noise", &file)).transpose()?;
        request.mask = mask
            .map(|MaskEntry { pixels, settings }| {
                let mut mask = Mask::new(self.grey(&pixels)?);
                mask.settings = settings;
                Ok::<_, Error>(mask)
            })
            .transpose()?;
        check_request(&request).map_err(Error::in_config(self.index))?;
        Ok(request)
    }

    fn image(&self, file: &str) -> Result<RgbImage> {
        let bytes = self.files.read(file)?;
        images::from_bytes(&bytes).map_err(|error| self.named(file, error))
    }

    fn grey(&self, file: &str) -> Result<GrayImage> {
        let bytes = self.files.read(file)?;
        let mask = OpenOptions::new().decode_mask(&bytes);
        mask.map_err(|error| self.named(file, error))
    }

    /// Adds the path of an image to the error of its bytes.
    fn named(&self, file: &str, error: Error) -> Error {
        match error {
            Error::Image { reason, .. } => Error::Image {
                path: self.files.folder.join(file),
                reason,
            },
            other => other,
        }
    }

    fn tensor(&self, name: &'static str, file: &str) -> Result<ArrayD<f32>> {
        self.files.read(file)?;
        let path = self.files.own(file)?;
        let values = array::to_array(&Weights::open(&path)?.raw(TENSOR)?)?;
        check_values(name, &values).map_err(Error::in_config(path))?;
        Ok(values)
    }
}

/// Checks the numbers of a run.
fn check_made(made: &Made) -> Result<()> {
    range::within("steps", made.steps, STEPS)?;
    range::within("guidance", made.guidance, -LARGEST_GUIDANCE..=LARGEST_GUIDANCE)?;
    made.model_size.grid().map(drop)
}
