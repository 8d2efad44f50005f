//! Encoding a dataset: pictures to latents, instructions to what the transformer is conditioned on.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use kontext_core::{Conditioning, Device, Error, Kind, Result, Tensor, picture};
use kontext_sampler::{Conformance, Size, geometry, pack};
use kontext_text::TextEncoder;
use kontext_vae::Autoencoder;
use rayon::prelude::*;

use super::cache::Cache;
use super::items::{Dataset, Skipped};

/// Pictures that are decoded at once and written to one file of the cache.
const PICTURES_AT_ONCE: usize = 256;
/// Prompts in one file of the cache.
const PROMPTS_AT_ONCE: usize = 512;
/// Pixels that the autoencoder gets at once: a few small pictures, or one large one.
const PIXELS_AT_ONCE: u64 = 1 << 20;

/// How pictures and prompts are encoded.
#[derive(Debug, Clone)]
pub struct Encoding {
    /// Where the encoded form is kept.
    pub cache: PathBuf,
    /// The sizes that pictures are brought to, each to the one nearest to its ratio.
    pub sizes: Vec<Size>,
    /// The kind in which it is kept: bf16 halves the files, f32 is exact.
    pub kind: Kind,
    /// Where the encoders are.
    pub device: Device,
}

/// How far filling the cache has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// "pictures" or "prompts".
    pub what: &'static str,
    /// How many are done.
    pub done: usize,
    /// How many there are to do.
    pub total: usize,
}

/// The name under which a picture's tokens are kept: its path, the size that it is brought to, and
/// its length in bytes and time of change, so that a changed picture is encoded anew.
fn picture_key(folder: &Path, path: &Path, size: Size) -> Result<String> {
    let file = folder.join(path);
    let facts = std::fs::metadata(&file).map_err(Error::io(&file))?;
    let changed = facts
        .modified()
        .ok()
        .and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    Ok(format!(
        "{}|{size}|{}|{}",
        path.display(),
        facts.len(),
        changed.map_or(0, |t| t.as_secs())
    ))
}

/// The pictures of a dataset, encoded: where each one's tokens are kept, and its size.
pub(crate) struct Pictures {
    pub(crate) cache: Cache,
    pub(crate) places: BTreeMap<PathBuf, (String, Size)>,
}

/// Encodes the pictures that the cache lacks. Those that cannot be used are named in the dataset's
/// `skipped`, and the items that need them are dropped.
pub(crate) fn pictures(
    dataset: &mut Dataset,
    vae: &Autoencoder,
    encoding: &Encoding,
    observe: &mut dyn FnMut(Fill) -> ControlFlow<()>,
) -> Result<Pictures> {
    let folder = encoding.cache.join(format!(
        "latents-{:08x}-{:?}",
        vae_fingerprint(vae, encoding.device)?,
        encoding.kind
    ));
    let mut cache = Cache::open(&folder)?;
    let (mut places, mut lost) = (BTreeMap::new(), BTreeSet::new());
    let locate = |path: &PathBuf| -> Result<(String, Size)> {
        let file = dataset.folder.join(path);
        let facts = std::fs::metadata(&file).map_err(Error::io(&file))?;
        if facts.len() == 0 {
            return Err(Error::Image {
                path: file,
                reason: "the file is empty".to_owned(),
            });
        }
        let (width, height) = image::image_dimensions(&file).map_err(Error::image(&file))?;
        let size = geometry::preferred_size(Size::new(width, height), &encoding.sizes, Conformance::Kontext);
        Ok((picture_key(&dataset.folder, path, size)?, size))
    };
    let all: Vec<PathBuf> = dataset.pictures().into_iter().collect();
    let located: Vec<_> = all.par_iter().map(|path| (path, locate(path))).collect();
    for (path, located) in located {
        match located {
            Ok(place) => drop(places.insert(path.clone(), place)),
            Err(error) => lose(&mut dataset.skipped, &mut lost, path, &error),
        }
    }
    let mut missing: Vec<(PathBuf, Size)> = Vec::new();
    missing.extend(
        places
            .iter()
            .filter(|(_, (key, _))| !cache.contains(key))
            .map(|(p, (_, size))| (p.clone(), *size)),
    );
    missing.sort_by_key(|(path, size)| (*size, path.clone()));
    let total = missing.len();
    for (index, chunk) in missing.chunks(PICTURES_AT_ONCE).enumerate() {
        let open = |(path, size): &(PathBuf, Size)| {
            let decoded = picture::open(dataset.folder.join(path));
            (
                path.clone(),
                *size,
                decoded.and_then(|p| picture::resize(&p, size.width, size.height)),
            )
        };
        let decoded: Vec<_> = chunk.par_iter().map(open).collect();
        let mut good = Vec::new();
        for (path, size, decoded) in decoded {
            match decoded {
                Ok(picture) => good.push((path, size, picture::to_tensor(&picture, Kind::Float, encoding.device)?)),
                Err(error) => lose(&mut dataset.skipped, &mut lost, &path, &error),
            }
        }
        let mut encoded = Vec::new();
        for group in good.chunk_by(|a, b| a.1 == b.1) {
            let at_once = group
                .first()
                .map_or(1, |(_, size, _)| (PIXELS_AT_ONCE / size.area()).max(1)) as usize;
            for part in group.chunks(at_once) {
                let pixels = Tensor::f_cat(&part.iter().map(|(_, _, pixels)| pixels).collect::<Vec<_>>(), 0)?;
                let tokens = pack(&tch::no_grad(|| vae.encode_latents(&pixels))?)?; // [N, L, 4 C]
                for (row, (path, ..)) in part.iter().enumerate() {
                    let (key, _) = &places[path];
                    let tokens = tokens
                        .f_get(row as i64)?
                        .f_to_kind(encoding.kind)?
                        .f_to_device(Device::Cpu)?;
                    encoded.push((key.clone(), tokens));
                }
            }
        }
        cache.append(&encoded)?;
        tell(
            observe,
            Fill {
                what: "pictures",
                done: (index * PICTURES_AT_ONCE + chunk.len()).min(total),
                total,
            },
        )?;
    }
    dataset.without(&lost);
    places.retain(|path, _| !lost.contains(path));
    Ok(Pictures { cache, places })
}

fn lose(skipped: &mut Vec<Skipped>, lost: &mut BTreeSet<PathBuf>, path: &Path, error: &Error) {
    let reason = match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => error.to_string(),
    };
    skipped.push(Skipped {
        what: path.display().to_string(),
        reason,
    });
    lost.insert(path.to_owned());
}

/// Encodes the prompts that the cache lacks, the empty one among them.
pub(crate) fn prompts(
    prompts: &BTreeSet<&str>,
    text: &TextEncoder,
    encoding: &Encoding,
    observe: &mut dyn FnMut(Fill) -> ControlFlow<()>,
) -> Result<Cache> {
    let folder = encoding
        .cache
        .join(format!("text-{:08x}-{:?}", text_fingerprint(text)?, encoding.kind));
    let mut cache = Cache::open(&folder)?;
    let missing: Vec<&str> = prompts
        .iter()
        .copied()
        .chain([""])
        .filter(|prompt| !cache.contains(&prompt_key(prompt, "embeds")))
        .collect();
    let mut done = 0;
    for chunk in missing.chunks(PROMPTS_AT_ONCE) {
        let mut encoded = Vec::new();
        for prompt in chunk {
            let (Conditioning { prompt_embeds, pooled }, _) = tch::no_grad(|| text.encode(prompt))?;
            let keep = |t: &Tensor| -> Result<Tensor> {
                Ok(t.f_squeeze_dim(0)?.f_to_kind(encoding.kind)?.f_to_device(Device::Cpu)?)
            };
            encoded.push((prompt_key(prompt, "embeds"), keep(&prompt_embeds)?));
            encoded.push((prompt_key(prompt, "pooled"), keep(&pooled)?));
        }
        cache.append(&encoded)?;
        done += chunk.len();
        tell(
            observe,
            Fill {
                what: "prompts",
                done,
                total: missing.len(),
            },
        )?;
    }
    Ok(cache)
}

/// The name under which one part of an encoded prompt is kept.
pub(crate) fn prompt_key(prompt: &str, part: &str) -> String {
    format!("{part}|{prompt}")
}

fn tell(observe: &mut dyn FnMut(Fill) -> ControlFlow<()>, fill: Fill) -> Result<()> {
    if observe(fill).is_break() {
        Err(Error::Cancelled {
            done: fill.done,
            total: fill.total,
        })
    } else {
        Ok(())
    }
}

/// Tells encoders apart by what they do: the check sum of a fixed picture's latents.
fn vae_fingerprint(vae: &Autoencoder, device: Device) -> Result<u32> {
    let picture = kontext_core::noise::randn(&[1, 3, 32, 32], 0, Kind::Float, device)?.f_clamp(-1.0, 1.0)?;
    fingerprint(&tch::no_grad(|| vae.encode_latents(&picture))?)
}

/// As [`vae_fingerprint`], of a fixed prompt and the number of tokens.
fn text_fingerprint(text: &TextEncoder) -> Result<u32> {
    let (Conditioning { prompt_embeds, pooled }, _) = tch::no_grad(|| text.encode("a red cat"))?;
    Ok(fingerprint(&prompt_embeds)? ^ fingerprint(&pooled)?.rotate_left(1) ^ text.sequence_length() as u32)
}

/// Check sum of values, rounded so that another order of summation gives the same.
fn fingerprint(values: &Tensor) -> Result<u32> {
    let rounded = values
        .f_to_kind(Kind::Float)?
        .f_mul_scalar(256.0)?
        .f_round()?
        .f_to_kind(Kind::Int)?;
    let numbers: Vec<i32> =
        Vec::try_from(rounded.f_flatten(0, -1)?.f_to_device(Device::Cpu)?).map_err(|_| Error::Shape {
            tensor: "fingerprint",
            expected: "[N]",
            got: values.size(),
        })?;
    // Sums of quarters: a value on the edge between two roundings moves the sum by one at most, and
    // that only where another machine's arithmetic differs, which costs an encoding and no harm.
    Ok(crc32fast::hash(
        &numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>(),
    ))
}
