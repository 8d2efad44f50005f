//! Makes the dataset of emoji edits: `cargo xtask run --release --example emoji_dataset`.

mod common;
mod emoji;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Fetch Microsoft's Fluent Emoji (MIT) and make pairs of pictures with instructions of them.
#[derive(Debug, Parser)]
struct Args {
    /// The dataset's folder
    #[arg(long, value_name = "DIR", default_value = "target/emoji")]
    out: PathBuf,
    /// Where the packages are kept
    #[arg(long, value_name = "DIR", default_value = "target/emoji-packages")]
    cache: PathBuf,
    /// Width and height of the pictures
    #[arg(long, default_value_t = 128)]
    size: u32,
}

fn main() -> ExitCode {
    common::main(|args: Args| {
        let options = emoji::Options {
            out: args.out,
            cache: args.cache,
            size: args.size,
        };
        let summary = emoji::write_dataset(&options)?;
        for (category, splits) in &summary {
            let counts: Vec<String> = splits.iter().map(|(split, count)| format!("{split} {count}")).collect();
            common::say(format_args!("{category}: {}", counts.join(", ")))?;
        }
        common::say(format_args!("wrote {}", options.out.display()))
    })
}
