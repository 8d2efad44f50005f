//! Makes the dataset of emoji edits: `cargo xtask run --release --example emoji_dataset`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use kontext_cli::args::positive;

/// Fetch Microsoft's Fluent Emoji (MIT) and make pairs of images with instructions of them.
#[derive(Debug, Parser)]
struct Args {
    /// The dataset's folder
    #[arg(long, value_name = "DIR", default_value = "target/emoji")]
    out: PathBuf,
    /// Folder of the downloaded packages
    #[arg(long, value_name = "DIR", default_value = "target/emoji-packages")]
    cache: PathBuf,
    /// Width and height of the images
    #[arg(long, default_value_t = 128, value_parser = positive::<u32>, allow_negative_numbers = true)]
    size: u32,
}

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| {
        let options = kontext_cli::emoji::Options {
            out: args.out,
            cache: args.cache,
            size: args.size,
        };
        let summary = kontext_cli::emoji::write_dataset(&options)?;
        for (category, splits) in &summary {
            let counts: Vec<String> = splits.iter().map(|(split, count)| format!("{split} {count}")).collect();
            kontext_cli::announce(format_args!("{category}: {}", counts.join(", ")));
        }
        kontext_cli::announce(format_args!("wrote {}", options.out.display()));
        Ok(())
    })
}
