//! Discovery of a model's parts in a folder, by the files' content.

mod contents;
mod files;
mod folder;
mod identity;
mod other_model;
mod search;

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use kontext_core::{CheckpointError, Error, ModelPart, Result, read_json};
use kontext_dit::{DitConfig, names};
use kontext_formats::hub_snapshot;
use kontext_nn::Weights;
use kontext_sampler::{SchedulerConfig, Shift};
use serde_json::{Map, Value};

use contents::{Place, TRANSFORMER_SIGNS};
use folder::{check_folder, check_pipeline};
use search::{Search, fits};

pub use identity::file_digest;

/// Layout of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Folders `transformer`, `vae`, `text_encoder`, `text_encoder_2`, `tokenizer`, `tokenizer_2` and
    /// `scheduler`, each with its configuration.
    Diffusers,
    /// One file per part (`flux1-*.safetensors` or `.gguf`, `ae.safetensors`, `clip_l`, `t5xxl`), or one
    /// file with several parts, in one folder or in those of ComfyUI's `models`. Sizes are inferred from the
    /// tensors.
    SingleFiles,
}

/// The files of a model's parts.
///
/// Each part is looked for in its folder of diffusers' layout (`vae`), then among the files of the folder
/// itself, then in ComfyUI's folders (`diffusion_models` or `unet`, `vae`, `text_encoders` or `clip`, and
/// `checkpoints`); so a diffusers checkpoint may lack a part that is a single file next to its folders. A part's
/// folder with a `config.json` is taken as it is. Of other files, the first place counts that has one whose sizes
/// fit the transformer; two of them in one place are an error, and a file of other sizes is taken only if no
/// place has a fitting one.
///
/// A folder of the Hugging Face hub's cache (`models--OWNER--NAME`) is replaced by its snapshot
/// ([`hub_snapshot`]). Hidden files are left out, links are followed, and a file that cannot be read is named
/// only if a part is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checkpoint {
    /// The folder that was searched: the given one, or the snapshot in it.
    pub folder: PathBuf,
    /// Layout of the folder. Single parts may be of the other one.
    pub layout: Layout,
    /// The transformer.
    pub transformer: PathBuf,
    /// The autoencoder.
    pub vae: PathBuf,
    /// CLIP's text model.
    pub clip: PathBuf,
    /// T5's encoder.
    pub t5: PathBuf,
    /// CLIP's tokenizer.
    pub clip_tokenizer: PathBuf,
    /// T5's tokenizer.
    pub t5_tokenizer: PathBuf,
    /// The scheduler's configuration, if there is one.
    pub scheduler: Option<PathBuf>,
}

/// Paths of parts given by the caller, which take precedence over discovery.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Overrides {
    pub(crate) transformer: Option<PathBuf>,
    pub(crate) vae: Option<PathBuf>,
    pub(crate) clip: Option<PathBuf>,
    pub(crate) t5: Option<PathBuf>,
    pub(crate) clip_tokenizer: Option<PathBuf>,
    pub(crate) t5_tokenizer: Option<PathBuf>,
}

impl Checkpoint {
    /// Finds the parts in a folder. Reads only names and headers.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder or that of a part cannot be read, [`Error::Checkpoint`] if a part is
    /// missing, with the files found instead of it, if two files fit it, or if `model_index.json` is of
    /// another pipeline.
    pub fn find(folder: impl AsRef<Path>) -> Result<Self> {
        Self::find_with(folder.as_ref(), &Overrides::default())
    }

    pub(crate) fn find_with(folder: &Path, overrides: &Overrides) -> Result<Self> {
        check_folder(folder)?;
        let folder = &hub_snapshot(folder)?;
        let index = folder.join("model_index.json");
        if index.is_file() {
            check_pipeline(&index)?;
        }
        let search = Search::new(folder);
        let given = |path: &Option<PathBuf>, find: &dyn Fn() -> Result<PathBuf>| path.clone().map_or_else(find, Ok);
        let transformer = given(&overrides.transformer, &|| {
            // Only other parts have sizes to fit.
            search.find(&contents::TRANSFORMER, |_| true)
        })?;
        let config = OnceCell::new();
        let fitting = |place: &Place, path: &Path| {
            let config = config.get_or_init(|| open_transformer(&transformer).ok());
            config
                .as_ref()
                .is_some_and(|(_, config)| fits(place.part, path, config))
        };
        let find =
            |path: &Option<PathBuf>, place: &Place| given(path, &|| search.find(place, |path| fitting(place, path)));
        let (vae, clip, t5) = (
            find(&overrides.vae, &contents::VAE)?,
            find(&overrides.clip, &contents::CLIP)?,
            find(&overrides.t5, &contents::T5)?,
        );
        let clip_tokenizer = || search.tokenizer("CLIP tokenizer", ["tokenizer", "vocab.json"]);
        let t5_tokenizer = || search.tokenizer("T5 tokenizer", ["tokenizer_2", "tokenizer.json"]);
        let diffusers = index.is_file() || folder.join("transformer").is_dir();
        let scheduler = folder.join("scheduler").join("scheduler_config.json");
        Ok(Self {
            layout: if diffusers {
                Layout::Diffusers
            } else {
                Layout::SingleFiles
            },
            clip_tokenizer: given(&overrides.clip_tokenizer, &clip_tokenizer)?,
            t5_tokenizer: given(&overrides.t5_tokenizer, &t5_tokenizer)?,
            scheduler: scheduler.is_file().then_some(scheduler),
            folder: folder.clone(),
            transformer,
            vae,
            clip,
            t5,
        })
    }

    /// Returns the parts of FLUX.1 that a file or folder of weights holds, by the names of its tensors: one,
    /// several for a file with a whole model, or none, as for a LoRA.
    ///
    /// # Errors
    /// Those of [`Weights::open`], and [`Error::Checkpoint`] for a file of another model.
    ///
    /// # Example
    /// ```
    /// use kontext::{Checkpoint, Layout, ModelPart};
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let folder = folder.path();
    /// kontext::random_model(folder, 7, Layout::SingleFiles)?;
    /// assert_eq!(Checkpoint::parts_in(folder.join("ae.safetensors"))?, [ModelPart::Autoencoder]);
    /// # Ok::<(), kontext::Error>(())
    /// ```
    pub fn parts_in(path: impl AsRef<Path>) -> Result<Vec<ModelPart>> {
        let path = path.as_ref();
        let names = Weights::open(path)?.names();
        let parts = contents::parts(&names);
        if parts.is_empty() {
            other_model::check_model(path, &names)?;
        }
        Ok(parts)
    }

    /// Opens the transformer's weights under this library's names (BFL's) and reads its sizes: from the
    /// `config.json` of diffusers' folder, else from the tensors' shapes.
    ///
    /// # Errors
    /// Those of opening the weights, and [`Error::Checkpoint`] if a folder of diffusers has no
    /// `config.json`, the tensors do not give the sizes, or the transformer is of a model that does not run
    /// here (FLUX.1-Fill, Chroma).
    pub fn open_transformer(&self) -> Result<(Weights, DitConfig)> {
        Self::transformer_in(&self.transformer)
    }

    /// Opens the transformer in a file, or in a folder of diffusers, as [`Checkpoint::open_transformer`]
    /// does.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open_transformer`].
    pub fn transformer_in(path: impl AsRef<Path>) -> Result<(Weights, DitConfig)> {
        open_transformer(path.as_ref())
    }

    /// Returns the shift of the sigmas: that of the scheduler's configuration, else the one for a model with
    /// or without guidance.
    ///
    /// # Errors
    /// Those of [`Shift::from_json`].
    pub fn shift(&self, config: &DitConfig) -> Result<Shift> {
        Ok(self.sampling(config)?.shift)
    }

    /// Returns the shift and the sampler: those of the scheduler's configuration, else Euler's method with the shift for
    /// a model with or without guidance.
    ///
    /// # Errors
    /// Those of [`SchedulerConfig::from_json`].
    pub fn sampling(&self, config: &DitConfig) -> Result<SchedulerConfig> {
        match &self.scheduler {
            Some(path) => SchedulerConfig::from_json(path),
            None if config.guidance_embed => Ok(Shift::dev().into()),
            None => Ok(Shift::schnell().into()),
        }
    }
}

impl std::fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let layout = match self.layout {
            Layout::Diffusers => "diffusers folders",
            Layout::SingleFiles => "single files",
        };
        writeln!(f, "layout:         {layout}")?;
        writeln!(f, "transformer:    {}", self.transformer.display())?;
        writeln!(f, "VAE:            {}", self.vae.display())?;
        writeln!(f, "CLIP:           {}", self.clip.display())?;
        writeln!(f, "T5:             {}", self.t5.display())?;
        writeln!(f, "CLIP tokenizer: {}", self.clip_tokenizer.display())?;
        write!(f, "T5 tokenizer:   {}", self.t5_tokenizer.display())
    }
}

/// Opens a transformer's weights under their own names, and finds the configuration that counts, if one does.
fn opened_transformer(path: &Path) -> Result<(Weights, Option<PathBuf>)> {
    let weights = Weights::open(path)?;
    other_model::check_model(path, &weights.names())?;
    let weights = weights.part(&TRANSFORMER_SIGNS);
    let config = if is_bfl(&weights) { None } else { config_of(path)? };
    Ok((weights, config))
}

/// Returns `true` for a transformer under BFL's names.
fn is_bfl(weights: &Weights) -> bool {
    weights.shape_of(TRANSFORMER_SIGNS[0]).is_some()
}

/// Opens a transformer; see [`Checkpoint::open_transformer`].
fn open_transformer(path: &Path) -> Result<(Weights, DitConfig)> {
    let (weights, config) = opened_transformer(path)?;
    let bfl = is_bfl(&weights);
    let config = config.map_or_else(|| DitConfig::infer(&weights), DitConfig::from_json)?;
    other_model::check_channels(path, &config)?;
    let weights = if bfl { weights } else { weights.named(names::diffusers) };
    Ok((weights, config))
}

/// Returns the configuration of a transformer in diffusers' naming. A folder must have one; next to a single
/// file it may be that of anything, unless it names its class.
fn config_of(transformer: &Path) -> Result<Option<PathBuf>> {
    if transformer.is_dir() {
        let config = transformer.join("config.json");
        if config.is_file() {
            return Ok(Some(config));
        }
        return Err(Error::checkpoint(transformer)(CheckpointError::MissingPart {
            part: "configuration of the transformer",
            looked: "`config.json` in it".to_owned(),
            found: Vec::new(),
        }));
    }
    let config = transformer.with_file_name("config.json");
    let class = config
        .is_file()
        .then(|| read_json::<Map<String, Value>>(&config).ok())
        .flatten();
    let own = class.is_some_and(|json| {
        json.get("_class_name")
            .is_some_and(|class| class == "FluxTransformer2DModel")
    });
    Ok(own.then_some(config))
}
