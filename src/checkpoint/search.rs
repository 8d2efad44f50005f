//! The search for a model's parts in a folder.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use kontext_core::{CheckpointError, Error, ModelPart, Result};
use kontext_dit::DitConfig;
use kontext_formats::{FolderListing, Store};
use kontext_nn::Weights;
use kontext_text::{ClipConfig, ClipEncoder, T5Config, T5Encoder};
use kontext_vae::{TinyConfig, VaeConfig};

use super::contents::{Place, TRANSFORMER, parts};
use super::hub;
use super::other_model::other_model;

/// ComfyUI's folder for files with all parts.
const CHECKPOINTS: &str = "checkpoints";
/// Levels of folders searched in each of ComfyUI's, which users sort by model.
const LEVELS: usize = 3;

/// A search in one folder. Files are opened when they are first asked for, and once.
pub(super) struct Search<'a> {
    folder: &'a Path,
    /// The files in the folder itself.
    root: OnceCell<Contents>,
    /// The files in its folder `checkpoints`.
    checkpoints: OnceCell<Contents>,
}

/// Places of files, in the order of the search. The later ones are opened only if the earlier hold no such part.
#[derive(Clone, Copy)]
enum Group {
    Root,
    Comfy,
    Checkpoints,
}

/// Files of weights with the parts that they hold.
#[derive(Default)]
struct Contents {
    files: Vec<(PathBuf, Vec<ModelPart>)>,
    /// Files and folders that were found and hold no part, each with the reason.
    others: Vec<String>,
}

impl<'a> Search<'a> {
    pub(super) fn new(folder: &'a Path) -> Self {
        Self {
            folder,
            root: OnceCell::new(),
            checkpoints: OnceCell::new(),
        }
    }

    /// Finds a part: in its folder of diffusers' layout, in a file of the folder, or in ComfyUI's folders. Of several
    /// files in one place, the only one that fits the transformer.
    pub(super) fn find(&self, place: &Place, fits: impl Fn(&Path) -> bool) -> Result<PathBuf> {
        let own = self.folder.join(place.folder);
        if is_part(&own) {
            return Ok(own);
        }
        let comfy = OnceCell::new();
        let mut others = Vec::new();
        for group in [Group::Root, Group::Comfy, Group::Checkpoints] {
            let contents = match group {
                Group::Root => self.root(),
                Group::Comfy => comfy.get_or_init(|| self.comfy(place)),
                Group::Checkpoints => self.checkpoints(),
            };
            let found: Vec<&PathBuf> = contents.holding(place.part).collect();
            match found.as_slice() {
                [] => others.extend(contents.others.iter().cloned()),
                [path] => return Ok((*path).clone()),
                several => {
                    let fitting: Vec<&PathBuf> = several.iter().copied().filter(|path| fits(path)).collect();
                    return match fitting.as_slice() {
                        [path] => Ok((*path).clone()),
                        [] => Err(self.several(place, several)),
                        fitting => Err(self.several(place, fitting)),
                    };
                }
            }
        }
        // The folder's own error says more: a shard that is missing, no permission.
        let error = own.is_dir().then(|| Store::open(&own).err()).flatten();
        Err(error.unwrap_or_else(|| self.missing(place, others)))
    }

    /// Finds a tokenizer under one of these names.
    pub(super) fn tokenizer(&self, part: &'static str, places: [&str; 2]) -> Result<PathBuf> {
        let found = places
            .iter()
            .map(|place| self.folder.join(place))
            .find(|path| path.exists());
        found.ok_or_else(|| {
            Error::checkpoint(self.folder)(CheckpointError::MissingPart {
                part,
                looked: format!("{} in it", places.join(" and ")),
                found: Vec::new(),
            })
        })
    }

    fn root(&self) -> &Contents {
        self.root.get_or_init(|| Contents::of(self.folder, self.folder, 1))
    }

    fn checkpoints(&self) -> &Contents {
        self.checkpoints.get_or_init(|| {
            let mut contents = Contents::of(self.folder, &self.folder.join(CHECKPOINTS), LEVELS);
            // Checkpoints of other models hold an autoencoder and a CLIP, too.
            let whole = |(_, parts): &(PathBuf, Vec<ModelPart>)| parts.contains(&ModelPart::Transformer);
            contents.files.retain(whole);
            contents
        })
    }

    fn comfy(&self, place: &Place) -> Contents {
        let names = std::iter::once(&place.folder).chain(place.comfy);
        let names: BTreeSet<&str> = names.copied().collect();
        let mut all = Contents::default();
        for name in names {
            let contents = Contents::of(self.folder, &self.folder.join(name), LEVELS);
            all.files.extend(contents.files);
            all.others.extend(contents.others);
        }
        all
    }

    fn several(&self, place: &Place, paths: &[&PathBuf]) -> Error {
        let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        let count = match paths.len() {
            2 => "two".to_owned(),
            count => count.to_string(),
        };
        let reason = format!(
            "{count} files for the {}: {}; move one away, or name one (`{}` of the builder, --{} of the programs)",
            place.name,
            names.join(" and "),
            place.option,
            place.option.replace('_', "-")
        );
        Error::config(self.folder, reason)
    }

    fn missing(&self, place: &Place, mut found: Vec<String>) -> Error {
        let comfy = place.comfy.iter().filter(|name| **name != place.folder);
        let folders: Vec<String> = std::iter::once(&place.folder)
            .chain(comfy)
            .chain(&[CHECKPOINTS])
            .map(|name| format!("`{name}`"))
            .collect();
        let looked = format!(
            "a *.safetensors, *.sft or *.gguf file with its tensors in it and in its folders {}",
            folders.join(", ")
        );
        // A folder that only leads to the model explains all the rest.
        found.splice(0..0, self.near());
        let mut seen = BTreeSet::new();
        found.retain(|text| seen.insert(text.clone()));
        Error::checkpoint(self.folder)(CheckpointError::MissingPart {
            part: place.name,
            looked,
            found,
        })
    }

    /// Names the folders of models in this folder, and the model whose part it is.
    fn near(&self) -> Vec<String> {
        let is_model = |path: &&PathBuf| {
            let holds = |name: &str| path.join(name).exists();
            hub::is_model(path)
                || ["model_index.json", TRANSFORMER.folder].into_iter().any(holds)
                || TRANSFORMER.comfy.iter().any(|name| holds(name))
        };
        let below = FolderListing::of(self.folder).unwrap_or_default().folders;
        let below = below.iter().filter(is_model);
        let below = below.map(|path| format!("the folder `{}` of a model (name that)", name_in(self.folder, path)));
        let part = self.folder.join("config.json").is_file();
        let above = std::path::absolute(self.folder).unwrap_or_default();
        let above = above
            .parent()
            .filter(|above| part && above.join("model_index.json").is_file());
        let above = above.map(|above| format!("a part of the model in {} (name that folder)", above.display()));
        above.into_iter().chain(below).collect()
    }
}

impl Contents {
    /// Opens the headers of all files of weights in a folder and `levels - 1` levels below it. A folder that is not
    /// there is empty.
    fn of(root: &Path, folder: &Path, levels: usize) -> Self {
        let mut contents = Self::default();
        if !folder.is_dir() {
            return contents;
        }
        let listing = match FolderListing::of(folder) {
            Ok(listing) => listing,
            Err(error) => {
                contents.others.push(unreadable(root, folder, &error));
                return contents;
            }
        };
        for path in &listing.weights {
            match Weights::open(path) {
                Err(error) => contents.others.push(unreadable(root, path, &error)),
                Ok(weights) => {
                    let names = weights.names();
                    if let Some(other) = other_model(&names) {
                        let text = format!("`{}`, which is of {}", name_in(root, path), other.name);
                        contents.others.push(text);
                    }
                    contents.files.push((path.clone(), parts(&names)));
                }
            }
        }
        contents.others.extend(listing.unread());
        if levels > 1 {
            for path in &listing.folders {
                let below = Self::of(root, path, levels - 1);
                contents.files.extend(below.files);
                contents.others.extend(below.others);
            }
        }
        contents
    }

    /// Returns the files that hold a part, each once: a link and its file are one.
    fn holding(&self, part: ModelPart) -> impl Iterator<Item = &PathBuf> {
        let holding = self.files.iter().filter(move |(_, parts)| parts.contains(&part));
        let by_file: BTreeMap<PathBuf, &PathBuf> = holding
            .rev()
            .map(|(path, _)| (path.canonicalize().unwrap_or_else(|_| path.clone()), path))
            .collect();
        let paths: BTreeSet<&PathBuf> = by_file.into_values().collect();
        paths.into_iter()
    }
}

/// Returns `true` for the folder of a part as diffusers and transformers save it.
fn is_part(folder: &Path) -> bool {
    let named = || FolderListing::of(folder).is_ok_and(|listing| !listing.of_a_part().is_empty());
    folder.is_dir() && Store::found_in(folder) && (folder.join("config.json").is_file() || named())
}

/// Returns `true` if a file holds a part of the sizes that the transformer takes.
pub(super) fn fits(part: ModelPart, path: &Path, config: &DitConfig) -> bool {
    let fits = || -> Result<bool> {
        Ok(match part {
            ModelPart::Autoencoder => {
                let weights = Weights::open(path)?;
                let channels = VaeConfig::infer(&weights).map(|vae| vae.latent_channels);
                4 * channels.or_else(|_| TinyConfig::infer(&weights).map(|vae| vae.latent_channels))?
                    == config.in_channels
            }
            ModelPart::Clip => ClipConfig::infer(&ClipEncoder::weights(path)?)?.hidden_size == config.pooled_dim,
            ModelPart::T5 => T5Config::infer(&T5Encoder::weights(path)?)?.d_model == config.context_dim,
            _ => false,
        })
    };
    fits().unwrap_or(false)
}

/// Names a file or folder that cannot be read, with the reason.
fn unreadable(root: &Path, path: &Path, error: &Error) -> String {
    let mut reason = String::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let joint = if reason.is_empty() { "" } else { ": " };
        reason = format!("{reason}{joint}{error}");
        cause = error.source();
    }
    if reason.is_empty() {
        reason = error.to_string();
    }
    format!("`{}`, which cannot be used ({reason})", name_in(root, path))
}

/// Returns a path as seen from the searched folder.
fn name_in(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}
