//! A model folder assembled from a trained transformer and the other parts of its base model.

use std::path::Path;

use kontext::{Checkpoint, ModelDefaults, save_part};
use kontext_core::{Error, Kind, OutputFile, Result, Tensor, create_folder};
use kontext_nn::Weights;

use crate::base::Base;

/// Folders of a model without weights: copied as they are.
const FOLDERS: [&str; 2] = ["tokenizer", "tokenizer_2"];
/// Parts whose weights are rewritten in the requested dtype.
const PARTS: [&str; 3] = ["vae", "text_encoder", "text_encoder_2"];

/// Writes a complete model into `out`: the `transformer` of the folder `trained`, and all other parts of
/// `base`. Weights are stored in `kind`. The defaults (`kontext.json`) are those of `trained` if it has any, as a
/// few-step student does, else those of `base`.
///
/// `base` is a folder in diffusers' layout, or one of the hub's cache with such a snapshot: its folders are copied with
/// their configurations, so a base of single files (BFL's, ComfyUI's) is refused for its missing folders.
///
/// The transformer's configuration is written last, and removed first if there is one: without it, a folder that
/// was not written to its end is no model.
///
/// # Errors
/// Those of reading the parts, [`Error::InvalidArgument`] if `out` is `base`, and [`Error::Io`] if `out` cannot
/// be written.
pub fn assemble(base: &Path, trained: &Path, out: &Path, kind: Kind) -> Result<()> {
    create_folder(out)?;
    let whole = |path: &Path| path.canonicalize().map_err(Error::io(path));
    if whole(base)? == whole(out)? {
        return Err(Error::invalid(
            "out",
            "another folder than the base model",
            out.display(),
        ));
    }
    let found = Checkpoint::find(base)?;
    let (_, config_of_base) = found.open_transformer()?;
    // Training may have added a guidance embedding.
    let (_, config) = Checkpoint::transformer_in(trained.join("transformer"))?;
    let transformer = Base::transformer_of(trained, &config)?;
    let last = out.join("transformer").join("config.json");
    if last.is_file() {
        std::fs::remove_file(&last).map_err(Error::io(&last))?;
    }
    save_part::index(out, found.sampling(&config_of_base)?)?;
    let base = found.folder.as_path();
    let own = ModelDefaults::of(trained)?;
    let defaults = if own == ModelDefaults::default() {
        ModelDefaults::of(base)?
    } else {
        own
    };
    defaults.save(out)?;
    for name in FOLDERS {
        copy(&base.join(name), &out.join(name))?;
    }
    for name in PARTS {
        let (from, to) = (base.join(name), out.join(name));
        copy(&from, &to)?;
        let weights = Weights::open(&from)?;
        let read = |name: String| -> Result<(String, Tensor)> {
            let value = weights.raw(&name)?.f_to_kind(kind)?;
            Ok((name, value))
        };
        let tensors = weights.names().into_iter().map(read).collect::<Result<Vec<_>>>()?;
        let file = weights.path().file_name().unwrap_or_default();
        kontext_formats::save(to.join(file), &tensors, None)?;
    }
    let narrow = |(name, value): (String, Tensor)| -> Result<(String, Tensor)> { Ok((name, value.f_to_kind(kind)?)) };
    save_part::transformer(
        out,
        transformer.into_iter().map(narrow).collect::<Result<_>>()?,
        &config,
    )
}

/// Copies a folder recursively.
fn copy(from: &Path, to: &Path) -> Result<()> {
    create_folder(to)?;
    for entry in std::fs::read_dir(from).map_err(Error::io(from))? {
        let entry = entry.map_err(Error::io(from))?;
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            copy_file(&entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Copies a file, which appears whole or not at all.
fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let mut source = std::fs::File::open(from).map_err(Error::io(from))?;
    let mut copy = OutputFile::create(to)?;
    std::io::copy(&mut source, copy.writer()).map_err(Error::io(to))?;
    copy.publish()
}
