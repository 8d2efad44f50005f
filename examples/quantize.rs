//! Quantises a model's transformer or T5:
//! `cargo xtask run --release --example quantize -- --model DIR --part transformer --to q4_0 --out flux1-Q4_0.gguf`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Parser, ValueEnum};
use kontext::{Checkpoint, Quantize, Weights, quantize};
use kontext_cli::interrupt::cancel_on_ctrl_c;
use kontext_cli::outputs::Outputs;
use kontext_cli::{announce, shipped};

/// Write the transformer or T5 quantised: as GGUF (q8_0 to q4_0), as scaled fp8 in safetensors, or as a folder of int8
/// (bitsandbytes') that diffusers and transformers read.
#[derive(Debug, Parser)]
struct Args {
    /// Folder of the model, in any form
    #[arg(long, value_name = "DIR", default_value_os_t = shipped::model())]
    model: PathBuf,
    /// The part to write
    #[arg(long, value_enum, default_value_t)]
    part: Part,
    /// q8_0, q5_1, q5_0, q4_1 or q4_0 for a .gguf file, fp8 for a .safetensors file, int8 for a folder
    #[arg(long)]
    to: Quantize,
    /// The file to write; for int8 a new or empty folder: its path ends in neither .gguf nor .safetensors
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Part {
    #[default]
    Transformer,
    T5,
}

fn main() -> ExitCode {
    kontext_cli::main(|args: Args| {
        let model = Checkpoint::find(&args.model)?;
        if args.to != Quantize::Int8 {
            let mut outputs = Outputs::default();
            outputs.model("--model", &model);
            outputs.file("--out", &args.out)?;
        }
        let cancel = cancel_on_ctrl_c()?;
        let written = match args.part {
            Part::Transformer => quantize::transformer_with(&model, args.to, &args.out, &cancel),
            Part::T5 => quantize::t5_with(&model, args.to, &args.out, &cancel),
        };
        match written {
            Err(error) if error.is_cancelled() => bail!("stopped; nothing was written"),
            written => written?,
        }
        let account = Weights::open(&args.out)?.store().account();
        let (parameters, bytes) = (account.parameters as f64, account.bytes as f64);
        let bits = 8.0 * bytes / parameters;
        announce(format_args!(
            "wrote {}: {:.2} M parameters in {:.2} MB, {bits:.2} bits each",
            args.out.display(),
            parameters / 1e6,
            bytes / 1e6
        ));
        Ok(())
    })
}
