//! Command-line options that name single parts of a model.

use std::path::PathBuf;

use clap::Args;
use kontext::PipelineBuilder;

/// The function of a builder that takes a part's path.
type Set = fn(PipelineBuilder, PathBuf) -> PipelineBuilder;

/// Paths of single parts, each taken instead of the one in the model's folder.
#[derive(Debug, Clone, Default, Args)]
pub struct PartArgs {
    /// The transformer: a file, or a folder of diffusers. By default the one in the model's folder; the same
    /// for all parts
    #[arg(long, value_name = "PATH")]
    pub transformer: Option<PathBuf>,
    /// The autoencoder
    #[arg(long, value_name = "PATH")]
    pub vae: Option<PathBuf>,
    /// The text encoder CLIP
    #[arg(long, value_name = "PATH")]
    pub clip: Option<PathBuf>,
    /// The text encoder T5
    #[arg(long, value_name = "PATH")]
    pub t5: Option<PathBuf>,
    /// CLIP's tokenizer: a folder, or its vocab.json
    #[arg(long, value_name = "PATH")]
    pub clip_tokenizer: Option<PathBuf>,
    /// T5's tokenizer: a folder, or its tokenizer.json
    #[arg(long, value_name = "PATH")]
    pub t5_tokenizer: Option<PathBuf>,
}

impl PartArgs {
    /// Sets these options in a pipeline's builder.
    pub fn apply(&self, builder: PipelineBuilder) -> PipelineBuilder {
        let given = self
            .options()
            .into_iter()
            .filter_map(|(_, path, set)| Some((path.clone()?, set)));
        given.fold(builder, |builder, (path, set)| set(builder, path))
    }

    /// Returns the first of these flags that is given.
    #[must_use]
    pub fn first(&self) -> Option<&'static str> {
        self.options()
            .into_iter()
            .find_map(|(flag, path, _)| path.as_ref().map(|_| flag))
    }

    fn options(&self) -> [(&'static str, &Option<PathBuf>, Set); 6] {
        [
            ("--transformer", &self.transformer, PipelineBuilder::transformer),
            ("--vae", &self.vae, PipelineBuilder::vae),
            ("--clip", &self.clip, PipelineBuilder::clip),
            ("--t5", &self.t5, PipelineBuilder::t5),
            (
                "--clip-tokenizer",
                &self.clip_tokenizer,
                PipelineBuilder::clip_tokenizer,
            ),
            ("--t5-tokenizer", &self.t5_tokenizer, PipelineBuilder::t5_tokenizer),
        ]
    }
}
