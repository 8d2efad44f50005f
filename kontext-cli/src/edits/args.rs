//! Command-line options of many edits in one run.

use std::path::PathBuf;

use clap::Args;
use kontext_bench::kontextbench::Shard;

/// Options of many edits in one run.
#[derive(Debug, Clone, Args)]
pub struct EditsArgs {
    /// Requests to run, one a line, as JSON Lines (.jsonl) or CSV (.csv); --out is then a folder
    #[arg(long, value_name = "FILE", conflicts_with = "image")]
    pub manifest: Option<PathBuf>,
    /// A further reference image, of each edit of a folder or a manifest; may be given several times
    #[arg(long, value_name = "FILE")]
    pub reference: Vec<PathBuf>,
    /// Of a folder or a manifest, make every edit whose index is i modulo n; the shards may write into one folder at
    /// the same time
    #[arg(long, value_name = "I/N", default_value_t)]
    pub shard: Shard,
}
