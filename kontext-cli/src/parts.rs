//! Command-line options that name single parts of a model.

use std::path::PathBuf;

use clap::Args;
use kontext::PipelineBuilder;

/// Paths of single parts, each taken instead of the one in the model's folder.
#[derive(Debug, Clone, Default, Args)]
pub struct PartArgs {
    /// The transformer: a file, or a folder of diffusers. By default the one in the model's folder; the same for all
    /// parts
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
        type Set = fn(PipelineBuilder, PathBuf) -> PipelineBuilder;
        let options: [(&Option<PathBuf>, Set); 6] = [
            (&self.transformer, PipelineBuilder::transformer),
            (&self.vae, PipelineBuilder::vae),
            (&self.clip, PipelineBuilder::clip),
            (&self.t5, PipelineBuilder::t5),
            (&self.clip_tokenizer, PipelineBuilder::clip_tokenizer),
            (&self.t5_tokenizer, PipelineBuilder::t5_tokenizer),
        ];
        let given = options.into_iter().filter_map(|(path, set)| Some((path.clone()?, set)));
        given.fold(builder, |builder, (path, set)| set(builder, path))
    }
}
