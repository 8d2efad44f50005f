//! Storage of a session in a folder: `session.json`, which names its images and latents.
//!
//! File names contain a checksum of the content, so an existing file is never overwritten with another
//! content, and `session.json` is written last: a folder holds a whole session even if writing is
//! interrupted.

use std::hash::{DefaultHasher, Hasher};
use std::io::{Cursor, Write};
use std::path::{Component, Path};
use std::sync::Arc;

use image::{GrayImage, ImageBuffer, ImageFormat, PixelWithColorType, RgbImage, imageops};
use kontext_core::{Error, Kind, OutputFile, Result, Tensor, array, images, read_json};
use kontext_nn::Weights;
use ndarray::ArrayD;
use serde::{Deserialize, Serialize};

use super::history::History;
use super::{DifferenceMap, KeepUnchanged, Session, Turn};
use crate::output::Made;
use crate::{Pipeline, Request};

/// Format version of written sessions. Any other version is refused with an explanation.
const FORMAT: u32 = 1;
const INDEX: &str = "session.json";

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    format: u32,
    /// Version of the crate that wrote the session.
    kontext: String,
    current: usize,
    reencode: bool,
    keep_unchanged: Option<KeepEntry>,
    defaults: RequestEntry,
    turns: Vec<TurnEntry>,
}

/// Read before the rest, which another format version may have changed.
#[derive(Debug, Deserialize)]
struct Format {
    format: u32,
    #[serde(default)]
    kontext: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KeepEntry {
    Difference(DifferenceMap),
    /// A file name.
    Mask(String),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TurnEntry {
    parent: Option<usize>,
    next: Option<usize>,
    /// File name, like the next two fields. The key is older than the field's name.
    #[serde(rename = "picture")]
    image: String,
    changed: Option<String>,
    latents: Option<String>,
    edit: Option<EditEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EditEntry {
    asked: RequestEntry,
    made: Made,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestEntry {
    request: Request,
    /// File names.
    references: Vec<String>,
    noise: Option<String>,
}

pub(super) fn save(session: &Session, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let to = Writer {
        folder,
        dtype: session.pipe.dtype(),
    };
    let turn = |(turn, next): (&Turn, &Option<usize>)| to.turn(turn, *next);
    let index = Index {
        format: FORMAT,
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
    let path = folder.join(INDEX);
    let text = serde_json::to_string_pretty(&index).map_err(|e| Error::config(&path, e.to_string()))?;
    write(&path, text.as_bytes())
}

pub(super) fn restore(pipe: &Arc<Pipeline>, folder: &Path) -> Result<Session> {
    let path = folder.join(INDEX);
    let Format { format, kontext } = read_json(&path)?;
    if format != FORMAT {
        let reason = format!(
            "it is a session of format {format}, written by kontext {kontext}; this version reads {FORMAT}: update \
             kontext"
        );
        return Err(Error::config(&path, reason));
    }
    let Index {
        current,
        reencode,
        keep_unchanged,
        defaults,
        turns,
        ..
    } = read_json(&path)?;
    let from = Reader { folder, index: &path };
    let next = turns.iter().map(|turn| turn.next).collect();
    let turns = turns
        .into_iter()
        .enumerate()
        .map(|(id, turn)| from.turn(pipe, id, turn))
        .collect::<Result<Vec<_>>>()?;
    let no_history = || Error::config(&path, "its turns are no tree; restore it from a copy");
    let mut session = Session::new(
        Arc::clone(pipe),
        History::of(turns, next, current).ok_or_else(no_history)?,
    );
    session.reencode = reencode;
    session.defaults = from.request(defaults)?;
    session.keep_unchanged = match keep_unchanged {
        None => None,
        Some(KeepEntry::Difference(map)) => Some(KeepUnchanged::Difference(map)),
        Some(KeepEntry::Mask(file)) => Some(KeepUnchanged::Mask(from.grey(&file)?)),
    };
    Ok(session)
}

/// Writes the files of a folder.
struct Writer<'a> {
    folder: &'a Path,
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
                made: *made,
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
        Ok(RequestEntry {
            request: request.clone(),
            references: request
                .images
                .iter()
                .enumerate()
                .map(reference)
                .collect::<Result<_>>()?,
            noise: request.noise.as_ref().map(noise).transpose()?,
        })
    }

    fn image<P>(&self, name: &str, image: &ImageBuffer<P, Vec<u8>>) -> Result<String>
    where
        P: PixelWithColorType<Subpixel = u8>,
    {
        let mut bytes = Cursor::new(Vec::new());
        image
            .write_to(&mut bytes, ImageFormat::Png)
            .map_err(Error::image(self.folder.join(name)))?;
        self.file(name, "png", &bytes.into_inner())
    }

    fn tensor(&self, name: &str, tensor: Tensor) -> Result<String> {
        let bytes = kontext_formats::to_bytes(&self.folder.join(name), &[(TENSOR.to_owned(), tensor)], None)?;
        self.file(name, "safetensors", &bytes)
    }

    /// Writes a file unless it exists, and returns its name.
    fn file(&self, name: &str, extension: &str, bytes: &[u8]) -> Result<String> {
        let mut hasher = DefaultHasher::new();
        hasher.write(bytes);
        let name = format!("{name}-{:016x}.{extension}", hasher.finish());
        let path = self.folder.join(&name);
        if !path.is_file() {
            write(&path, bytes)?;
        }
        Ok(name)
    }
}

/// Name of the only tensor in a file.
const TENSOR: &str = "latents";

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = OutputFile::create(path)?;
    file.writer().write_all(bytes).map_err(Error::io(path))?;
    file.publish()
}

/// Reads the files of a folder.
struct Reader<'a> {
    folder: &'a Path,
    index: &'a Path,
}

impl Reader<'_> {
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
        let latents = latents.map(|file| self.tensor(&file)).transpose()?;
        let edit = edit
            .map(|EditEntry { asked, made }| Ok::<_, Error>((self.request(asked)?, made)))
            .transpose()?;
        if let Some(latents) = &latents {
            let Some((_, made)) = &edit else {
                return Err(wrong("has latents, and no run that made them".to_owned()));
            };
            let expected = [1, made.model_size.grid()?.tokens(), pipe.packed_channels()];
            if !latents.shape().iter().map(|&side| side as i64).eq(expected) {
                let (expected, got) = (format!("{expected:?}"), format!("{:?}", latents.shape()));
                return Err(wrong(format!(
                    "has latents {got}, and this model's are {expected}: load the one of then"
                )));
            }
        }
        Ok(Turn {
            id,
            parent,
            image,
            changed,
            latents,
            edit,
        })
    }

    fn request(&self, entry: RequestEntry) -> Result<Request> {
        let RequestEntry {
            mut request,
            references,
            noise,
        } = entry;
        request.images = references
            .iter()
            .map(|file| Ok(Arc::new(self.image(file)?)))
            .collect::<Result<_>>()?;
        request.noise = noise.map(|file| self.tensor(&file)).transpose()?;
        Ok(request)
    }

    fn image(&self, file: &str) -> Result<RgbImage> {
        images::open(self.folder.join(self.own(file)?))
    }

    fn grey(&self, file: &str) -> Result<GrayImage> {
        Ok(imageops::grayscale(&self.image(file)?))
    }

    fn tensor(&self, file: &str) -> Result<ArrayD<f32>> {
        array::to_array(&Weights::open(self.folder.join(self.own(file)?))?.raw(TENSOR)?)
    }

    /// Checks that a name is a file of the folder itself; another path could lead anywhere.
    fn own<'b>(&self, file: &'b str) -> Result<&'b str> {
        let mut parts = Path::new(file).components();
        match (parts.next(), parts.next()) {
            (Some(Component::Normal(_)), None) => Ok(file),
            _ => Err(Error::config(
                self.index,
                format!("`{file}` is no file of this folder; correct it"),
            )),
        }
    }
}
