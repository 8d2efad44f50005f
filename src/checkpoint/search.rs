//! The search for a model's parts in a folder.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use kontext_core::{CheckpointError, Error, ModelPart, Result};
use kontext_dit::DitConfig;
use kontext_formats::{FolderListing, Store, is_hub_cache};
use kontext_nn::Weights;
use kontext_text::{ClipConfig, ClipEncoder, T5Config, T5Encoder};
use kontext_vae::{TinyConfig, VaeConfig};

use super::contents::{Place, TRANSFORMER, parts};
use super::other_model::other_model;

/// ComfyUI's folder for files with all parts.
const CHECKPOINTS: &str = "checkpoints";
/// Levels of folders searched in each of ComfyUI's, which users sort by model.
const LEVELS: usize = 3;

/// A search in one folder. A folder is listed, and the names in its files are read, when they are first asked
/// for, and once.
pub(super) struct Search<'a> {
    folder: &'a Path,
    /// The contents of the folders that were searched so far.
    listed: RefCell<BTreeMap<PathBuf, Contents>>,
}

/// Places of files, in the order of the search.
#[derive(Clone, Copy)]
enum Group {
    /// The part's folder in diffusers' layout, as a whole.
    Own,
    Root,
    Comfy,
    Checkpoints,
}

/// Files of weights with the parts that they hold.
#[derive(Clone, Default)]
struct Contents {
    files: Vec<(PathBuf, Vec<ModelPart>)>,
    /// Files and folders that were found and hold no part, each with the reason.
    others: Vec<String>,
}

impl<'a> Search<'a> {
    pub(super) fn new(folder: &'a Path) -> Self {
        Self {
            folder,
            listed: RefCell::default(),
        }
    }

    /// Finds a part: in its folder of diffusers' layout, in a file of the folder, or in ComfyUI's folders. A
    /// part without a configuration is taken if it fits the transformer, or if nothing does.
    pub(super) fn find(&self, place: &Place, fits: impl Fn(&Path) -> bool) -> Result<PathBuf> {
        let own = self.folder.join(place.folder);
        if own.join("config.json").is_file() && Store::found_in(&own) {
            return Ok(own);
        }
        let (mut others, mut unfit) = (Vec::new(), Vec::new());
        for group in [Group::Own, Group::Root, Group::Comfy, Group::Checkpoints] {
            let contents = match group {
                Group::Own if is_part(&own, place) => Contents::part(&own, place.part),
                Group::Own => Contents::default(),
                Group::Root => self.listed(self.folder, 1),
                Group::Comfy => self.comfy(place),
                Group::Checkpoints => self.checkpoints(),
            };
            let found: Vec<&PathBuf> = contents.holding(place.part).collect();
            if found.is_empty() {
                others.extend(contents.others);
                continue;
            }
            let fitting: Vec<&PathBuf> = found.iter().copied().filter(|path| fits(path)).collect();
            match fitting.as_slice() {
                [path] => return Ok((*path).clone()),
                [] if unfit.is_empty() => unfit.extend(found.into_iter().cloned()),
                [] => {}
                several => return Err(self.several(place, several)),
            }
        }
        match unfit.as_slice() {
            [path] => Ok(path.clone()),
            [] => {
                // The folder's own error says more: a shard that is missing, no permission.
                let error = own.is_dir().then(|| Store::open(&own).err()).flatten();
                Err(error.unwrap_or_else(|| self.missing(place, others)))
            }
            several => Err(self.several(place, &several.iter().collect::<Vec<_>>())),
        }
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

    /// Returns the contents of a folder and `levels - 1` levels below it.
    fn listed(&self, folder: &Path, levels: usize) -> Contents {
        let mut listed = self.listed.borrow_mut();
        let contents = || Contents::of(self.folder, folder, levels);
        listed.entry(folder.to_owned()).or_insert_with(contents).clone()
    }

    /// Returns the files in the folder `checkpoints` that hold a whole model: checkpoints of other models hold
    /// an autoencoder and a CLIP, too.
    fn checkpoints(&self) -> Contents {
        let mut contents = self.listed(&self.folder.join(CHECKPOINTS), LEVELS);
        let whole = |(_, parts): &(PathBuf, Vec<ModelPart>)| parts.contains(&ModelPart::Transformer);
        contents.files.retain(whole);
        contents
    }

    fn comfy(&self, place: &Place) -> Contents {
        let names = std::iter::once(&place.folder).chain(place.comfy);
        let names: BTreeSet<&str> = names.copied().collect();
        let mut all = Contents::default();
        for name in names {
            let contents = self.listed(&self.folder.join(name), LEVELS);
            all.files.extend(contents.files);
            all.others.extend(contents.others);
        }
        all
    }

    fn several(&self, place: &Place, paths: &[&PathBuf]) -> Error {
        let (option, flag) = (place.option, place.option.replace('_', "-"));
        Error::checkpoint(self.folder)(CheckpointError::Ambiguous {
            part: format!("the {}", place.name),
            found: paths.iter().map(|path| path.display().to_string()).collect(),
            remedy: format!("move one away, or name one (`{option}` of the builder, --{flag} of the programs)"),
        })
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
            is_hub_cache(path)
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
    /// Returns a folder with one part.
    fn part(folder: &Path, part: ModelPart) -> Self {
        Self {
            files: vec![(folder.to_owned(), vec![part])],
            others: Vec::new(),
        }
    }

    /// Opens the headers of all files of weights in a folder and `levels - 1` levels below it. A folder that
    /// is not there is empty.
    fn of(root: &Path, folder: &Path, levels: usize) -> Self {
        let mut contents = Self::default();
        if !folder.is_dir() {
            return contents;
        }
        let mut listing = FolderListing::of(folder).unwrap_or_else(|error| {
            let mut listing = FolderListing::default();
            listing.unusable.push((folder.to_owned(), error.causes()));
            listing
        });
        for path in std::mem::take(&mut listing.weights) {
            match Weights::open(&path) {
                Err(error) => listing.unusable.push((path, error.causes())),
                Ok(weights) => {
                    let names = weights.names();
                    if let Some(other) = other_model(&names) {
                        let text = format!("`{}`, which is of {}", name_in(root, &path), other.name);
                        contents.others.push(text);
                    }
                    contents.files.push((path, parts(&names)));
                }
            }
        }
        contents.others.extend(listing.unread(root));
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

/// Returns `true` for a folder with a part under the names that diffusers and transformers give it. In a folder
/// that ComfyUI has, too, nothing else may be: there it holds files of several models, of which one may have such
/// a name.
fn is_part(folder: &Path, place: &Place) -> bool {
    let shared = place.comfy.contains(&place.folder);
    let holds = |listing: FolderListing| match listing.of_a_part().len() {
        0 => false,
        named => !shared || named == listing.weights.len(),
    };
    folder.is_dir() && Store::found_in(folder) && FolderListing::of(folder).is_ok_and(holds)
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

/// Returns a path as seen from the searched folder.
fn name_in(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}
