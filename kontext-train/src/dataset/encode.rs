//! Encoding of a dataset: images to latents, instructions to the transformer's conditioning.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use kontext_core::{Conditioning, Device, Error, Kind, Result, Tensor, images, threads};
use kontext_sampler::{Conformance, Size, geometry, pack};
use kontext_text::TextEncoder;
use kontext_vae::Autoencoder;
use rayon::prelude::*;

use super::cache::Cache;
use super::items::{Dataset, Skipped};

/// Images decoded at a time and written to one shard of the cache.
const IMAGES_AT_ONCE: usize = 256;
/// Prompts in one shard of the cache.
const PROMPTS_AT_ONCE: usize = 512;
/// Pixels in one batch of the autoencoder: a few small images, or one large one.
const PIXELS_AT_ONCE: u64 = 1 << 20;

/// Options of the encoding.
#[derive(Debug, Clone)]
pub struct Encoding {
    /// Folder of the cache.
    pub cache: PathBuf,
    /// Available sizes; each image is resized to the one nearest to its aspect ratio.
    pub sizes: Vec<Size>,
    /// Dtype of the cached tensors: bf16 halves the files, f32 is exact.
    pub kind: Kind,
    /// Device of the encoders.
    pub device: Device,
}

/// Progress of the encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeProgress {
    /// "images" or "prompts"; "teacher's images" of [`crate::Real::Teacher`]; "levels" of [`crate::probe()`].
    pub what: &'static str,
    /// Number of them that are done.
    pub done: usize,
    /// Number of all.
    pub total: usize,
}

/// Returns the cache key of an image's tokens: path, target size, file length and modification time, and the version
/// of the decoding, so that a changed image, or one that is now read otherwise, is encoded again.
fn image_key(folder: &Path, path: &Path, size: Size) -> Result<String> {
    let file = folder.join(path);
    let facts = std::fs::metadata(&file).map_err(Error::io(&file))?;
    let changed = facts
        .modified()
        .ok()
        .and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    Ok(format!(
        "{}|{size}|{}|{}|{}",
        path.display(),
        facts.len(),
        changed.map_or(0, |t| t.as_secs()),
        images::DECODING
    ))
}

/// Returns the cache key and the size of an image: of those available, the one nearest to the upright image.
fn place(folder: &Path, path: &Path, sizes: &[Size]) -> Result<(String, Size)> {
    let (width, height) = images::dimensions(folder.join(path))?;
    let size = geometry::preferred_size(Size::new(width, height), sizes, Conformance::Native);
    Ok((image_key(folder, path, size)?, size))
}

/// Cached image tokens, with the key and size of each image.
pub(crate) struct Images {
    pub(crate) cache: Cache,
    pub(crate) places: BTreeMap<PathBuf, (String, Size)>,
}

/// Encodes the images missing from the cache. Unusable images are listed in the dataset's `skipped`, and the
/// items that need them are dropped.
pub(crate) fn images(
    dataset: &mut Dataset,
    vae: &Autoencoder,
    encoding: &Encoding,
    observe: &mut dyn FnMut(EncodeProgress) -> ControlFlow<()>,
) -> Result<Images> {
    let folder = encoding.cache.join(format!(
        "latents-{:08x}-{:?}",
        vae_fingerprint(vae, encoding.device)?,
        encoding.kind
    ));
    let mut cache = Cache::open(&folder)?;
    let (mut places, mut lost) = (BTreeMap::new(), BTreeSet::new());
    let locate = |path: &PathBuf| place(&dataset.folder, path, &encoding.sizes);
    let all: Vec<PathBuf> = dataset.images().into_iter().collect();
    threads::start()?;
    let located: Vec<_> = all.par_iter().map(|path| (path, locate(path))).collect();
    for (path, located) in located {
        match located {
            Ok(place) => drop(places.insert(path.clone(), place)),
            Err(error) => skip(&mut dataset.skipped, &mut lost, path, &error),
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
    for (index, chunk) in missing.chunks(IMAGES_AT_ONCE).enumerate() {
        let open = |(path, size): &(PathBuf, Size)| {
            let decoded = images::open(dataset.folder.join(path));
            (
                path.clone(),
                *size,
                decoded.and_then(|p| images::resize(&p, size.width, size.height)),
            )
        };
        let decoded: Vec<_> = chunk.par_iter().map(open).collect();
        let mut good = Vec::new();
        for (path, size, decoded) in decoded {
            match decoded {
                Ok(image) => good.push((path, size, images::to_tensor(&image, Kind::Float, encoding.device)?)),
                Err(error) => skip(&mut dataset.skipped, &mut lost, &path, &error),
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
        report(
            observe,
            EncodeProgress {
                what: "images",
                done: (index * IMAGES_AT_ONCE + chunk.len()).min(total),
                total,
            },
        )?;
    }
    dataset.without(&lost);
    places.retain(|path, _| !lost.contains(path));
    Ok(Images { cache, places })
}

fn skip(skipped: &mut Vec<Skipped>, lost: &mut BTreeSet<PathBuf>, path: &Path, error: &Error) {
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

/// Encodes the prompts missing from the cache, including the empty one.
pub(crate) fn prompts(
    prompts: &BTreeSet<&str>,
    text: &TextEncoder,
    encoding: &Encoding,
    observe: &mut dyn FnMut(EncodeProgress) -> ControlFlow<()>,
) -> Result<Cache> {
    let folder = encoding
        .cache
        .join(format!("text-{:08x}-{:?}", text_fingerprint(text)?, encoding.kind));
    let mut cache = Cache::open(&folder)?;
    let others = prompts.iter().copied().filter(|prompt| !prompt.is_empty());
    let missing: Vec<&str> = others
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
        report(
            observe,
            EncodeProgress {
                what: "prompts",
                done,
                total: missing.len(),
            },
        )?;
    }
    Ok(cache)
}

/// Returns the cache key of one part of an encoded prompt.
pub(crate) fn prompt_key(prompt: &str, part: &str) -> String {
    format!("{part}|{prompt}")
}

fn report(observe: &mut dyn FnMut(EncodeProgress) -> ControlFlow<()>, progress: EncodeProgress) -> Result<()> {
    if observe(progress).is_break() {
        Err(Error::Cancelled {
            done: progress.done,
            total: progress.total,
        })
    } else {
        Ok(())
    }
}

/// Returns a fingerprint of the encoder's behaviour: the checksum of a fixed image's latents.
fn vae_fingerprint(vae: &Autoencoder, device: Device) -> Result<u32> {
    let image = kontext_core::noise::randn(&[1, 3, 32, 32], 0, Kind::Float, device)?.f_clamp(-1.0, 1.0)?;
    fingerprint(&tch::no_grad(|| vae.encode_latents(&image))?)
}

/// As [`vae_fingerprint`], of a fixed prompt and the sequence length.
fn text_fingerprint(text: &TextEncoder) -> Result<u32> {
    let (Conditioning { prompt_embeds, pooled }, _) = tch::no_grad(|| text.encode("a red cat"))?;
    Ok(fingerprint(&prompt_embeds)? ^ fingerprint(&pooled)?.rotate_left(1) ^ text.sequence_length() as u32)
}

/// Returns a checksum of the values, rounded so that another order of summation gives the same.
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
    // The checksum is over 1/256 steps: a value at a rounding boundary can differ by one step, but only under
    // another machine's arithmetic; the cost is one more encoding, never a wrong result.
    Ok(crc32fast::hash(
        &numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_the_size_of_their_upright_content_and_keys_of_this_decoding() {
        let folder = tempfile::tempdir().unwrap();
        let turned = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kontext-core/tests/pictures/turned6.jpg");
        let upright = images::open(&turned).unwrap();
        assert!(upright.height() > upright.width());
        std::fs::copy(turned, folder.path().join("photo.jpg")).unwrap();
        // A PNG by another name.
        let png = image::RgbImage::new(60, 30);
        png.save_with_format(folder.path().join("a.jpg"), image::ImageFormat::Png)
            .unwrap();
        let (wide, tall) = (Size::new(96, 64), Size::new(64, 96));
        let found = |name: &str| place(folder.path(), Path::new(name), &[wide, tall]).unwrap();
        assert_eq!((found("photo.jpg").1, found("a.jpg").1), (tall, wide));
        let decoding = format!("|{}", images::DECODING);
        assert!(found("a.jpg").0.ends_with(&decoding), "{}", found("a.jpg").0);
    }
}
