//! Discovery of a model's parts in a folder, by the files' content.

use std::path::{Path, PathBuf};

use kontext_core::{CheckpointError, Error, Result};
use kontext_dit::{DitConfig, names};
use kontext_nn::Weights;
use kontext_sampler::Shift;
use kontext_text::{ClipEncoder, T5Encoder};

/// Layout of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Folders `transformer`, `vae`, `text_encoder`, `text_encoder_2`, `tokenizer`, `tokenizer_2` and
    /// `scheduler`, each with its configuration.
    Diffusers,
    /// One file per part (`flux1-*.safetensors` or `.gguf`, `ae.safetensors`, `clip_l`, `t5xxl`), or one file
    /// with several parts. Sizes are inferred from the tensors.
    SingleFiles,
}

/// The files of a model's parts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checkpoint {
    /// Layout of the folder.
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
#[derive(Debug, Clone, Default)]
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
    /// [`Error::Io`] if the folder or a file cannot be read, [`Error::Checkpoint`] if a part is missing or
    /// found twice.
    pub fn find(folder: impl AsRef<Path>) -> Result<Self> {
        Self::find_with(folder.as_ref(), &Overrides::default())
    }

    pub(crate) fn find_with(folder: &Path, overrides: &Overrides) -> Result<Self> {
        check_folder(folder)?;
        let diffusers = folder.join("model_index.json").is_file() || folder.join("transformer").is_dir();
        if diffusers {
            Self::find_diffusers(folder, overrides)
        } else {
            Self::find_single_files(folder, overrides)
        }
    }

    fn find_diffusers(folder: &Path, overrides: &Overrides) -> Result<Self> {
        let part = |given: &Option<PathBuf>, part: &'static str, name: &str| match given {
            Some(path) => Ok(path.clone()),
            None => {
                let path = folder.join(name);
                if path.is_dir() {
                    Ok(path)
                } else {
                    Err(missing(folder, part, format!("the folder `{name}` in it")))
                }
            }
        };
        let scheduler = folder.join("scheduler").join("scheduler_config.json");
        Ok(Self {
            layout: Layout::Diffusers,
            transformer: part(&overrides.transformer, "transformer", "transformer")?,
            vae: part(&overrides.vae, "VAE", "vae")?,
            clip: part(&overrides.clip, "CLIP text encoder", "text_encoder")?,
            t5: part(&overrides.t5, "T5 text encoder", "text_encoder_2")?,
            clip_tokenizer: part(&overrides.clip_tokenizer, "CLIP tokenizer", "tokenizer")?,
            t5_tokenizer: part(&overrides.t5_tokenizer, "T5 tokenizer", "tokenizer_2")?,
            scheduler: scheduler.is_file().then_some(scheduler),
        })
    }

    fn find_single_files(folder: &Path, overrides: &Overrides) -> Result<Self> {
        let files = classify(folder)?;
        let part = |given: &Option<PathBuf>, kind: FileKind| match given {
            Some(path) => Ok(path.clone()),
            None => one_of(folder, &files, kind),
        };
        let tokenizer = |given: &Option<PathBuf>, part: &'static str, places: &[&str]| {
            let found = places.iter().map(|p| folder.join(p)).find(|p| p.exists());
            let looked = || format!("{} in it", places.join(" and "));
            given.clone().or(found).ok_or_else(|| missing(folder, part, looked()))
        };
        Ok(Self {
            layout: Layout::SingleFiles,
            transformer: part(&overrides.transformer, FileKind::Transformer)?,
            vae: part(&overrides.vae, FileKind::Vae)?,
            clip: part(&overrides.clip, FileKind::Clip)?,
            t5: part(&overrides.t5, FileKind::T5)?,
            clip_tokenizer: tokenizer(
                &overrides.clip_tokenizer,
                "CLIP tokenizer",
                &["tokenizer", "vocab.json"],
            )?,
            t5_tokenizer: tokenizer(
                &overrides.t5_tokenizer,
                "T5 tokenizer",
                &["tokenizer_2", "tokenizer.json"],
            )?,
            scheduler: None,
        })
    }

    /// Opens the transformer's weights under this library's names (BFL's) and reads its sizes.
    ///
    /// # Errors
    /// Those of opening the weights, and [`Error::Checkpoint`] if neither a `config.json` nor the tensors
    /// give the sizes.
    pub fn open_transformer(&self) -> Result<(Weights, DitConfig)> {
        let weights = Weights::open(&self.transformer)?.part(&TRANSFORMER_SIGNS);
        if weights.shape_of(TRANSFORMER_SIGNS[0]).is_some() {
            let config = DitConfig::infer(&weights)?;
            return Ok((weights, config));
        }
        let folder = if self.transformer.is_dir() {
            Some(self.transformer.as_path())
        } else {
            self.transformer.parent()
        };
        let folder = folder.unwrap_or(Path::new("."));
        let config = folder.join("config.json");
        if !config.is_file() {
            return Err(missing(
                folder,
                "configuration of the transformer",
                "`config.json` in it".to_owned(),
            ));
        }
        let config = DitConfig::from_json(config)?;
        Ok((weights.named(names::diffusers), config))
    }

    /// Returns the shift of the sigmas: that of the scheduler's configuration, else the one for a model with
    /// or without guidance.
    ///
    /// # Errors
    /// Those of [`Shift::from_json`].
    pub fn shift(&self, config: &DitConfig) -> Result<Shift> {
        match &self.scheduler {
            Some(path) => Shift::from_json(path),
            None if config.guidance_embed => Ok(Shift::dev()),
            None => Ok(Shift::schnell()),
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

/// Content of a single file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileKind {
    Transformer,
    Vae,
    Clip,
    T5,
}

impl FileKind {
    fn name(self) -> &'static str {
        match self {
            Self::Transformer => "transformer",
            Self::Vae => "VAE",
            Self::Clip => "CLIP text encoder",
            Self::T5 => "T5 text encoder",
        }
    }

    /// Tensor names unique to this part, under any prefix.
    fn signs(self) -> Vec<&'static str> {
        match self {
            Self::Transformer => TRANSFORMER_SIGNS.to_vec(),
            Self::Vae => vec!["decoder.conv_in.weight", "decoder.layers.0.weight"],
            Self::Clip => vec![ClipEncoder::SIGNS[0]],
            Self::T5 => vec![T5Encoder::SIGN, T5Encoder::GGUF_SIGN],
        }
    }

    /// Returns the parts in a file: one, or all of a whole model.
    fn of(weights: &Weights) -> Vec<Self> {
        let names = weights.names();
        let holds = |sign: &str| {
            let before = |name: &String| {
                name.strip_suffix(sign)
                    .map(|prefix| prefix.is_empty() || prefix.ends_with('.'))
            };
            names.iter().filter_map(before).any(|whole| whole)
        };
        let all = [Self::Transformer, Self::Vae, Self::Clip, Self::T5];
        all.into_iter()
            .filter(|part| part.signs().into_iter().any(holds))
            .collect()
    }
}

/// Tensor names that mark a transformer: BFL's and diffusers'.
const TRANSFORMER_SIGNS: [&str; 2] = ["img_in.weight", "x_embedder.weight"];
/// File extensions of weights.
const EXTENSIONS: [&str; 2] = ["safetensors", "gguf"];

/// Refuses a path that is not a readable folder, with a hint for a mistyped folder or a file.
fn check_folder(folder: &Path) -> Result<()> {
    use std::io::{Error as IoError, ErrorKind};
    let expected = "expected the folder of a model, with diffusers' folders or BFL's single files";
    let refused = |kind, got: &str| {
        let source = IoError::new(kind, format!("{got}, {expected}; check the path"));
        Err(Error::Io {
            path: folder.to_owned(),
            source,
        })
    };
    if folder.is_file() {
        return refused(ErrorKind::NotADirectory, "it is a file");
    }
    match std::fs::read_dir(folder) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => refused(error.kind(), "there is no such folder"),
        Err(error) => Err(Error::io(folder)(error)),
    }
}

fn classify(folder: &Path) -> Result<Vec<(FileKind, PathBuf)>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path
            .extension()
            .is_some_and(|e| EXTENSIONS.iter().any(|known| e == *known))
            && path.is_file()
        {
            paths.push(path);
        }
    }
    paths.sort();
    let mut files = Vec::new();
    for path in paths {
        let kinds = FileKind::of(&Weights::open(&path)?);
        files.extend(kinds.into_iter().map(|kind| (kind, path.clone())));
    }
    Ok(files)
}

fn one_of(folder: &Path, files: &[(FileKind, PathBuf)], kind: FileKind) -> Result<PathBuf> {
    let found: Vec<&PathBuf> = files.iter().filter(|(k, _)| *k == kind).map(|(_, path)| path).collect();
    match found.as_slice() {
        [path] => Ok((*path).clone()),
        [] => Err(missing(
            folder,
            kind.name(),
            "a *.safetensors or *.gguf file with its tensors, and for the folders of a diffusers checkpoint".to_owned(),
        )),
        [first, second, ..] => {
            let reason = format!(
                "two files for the {}: {} and {}; move one away or name one to the builder",
                kind.name(),
                first.display(),
                second.display()
            );
            Err(Error::config(folder, reason))
        }
    }
}

fn missing(folder: &Path, part: &'static str, looked: String) -> Error {
    Error::checkpoint(folder)(CheckpointError::MissingPart { part, looked })
}
