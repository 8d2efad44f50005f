//! `cargo xtask COMMAND...`: ensures that libtorch is installed, then runs `cargo COMMAND...` with it.
//!
//! libtorch comes from the wheels that PyTorch and NVIDIA publish on PyPI ([`wheels`]), is unpacked by pip
//! ([`python`]) into the ignored folder `.libtorch` of the repository ([`home`], [`install`]), and is not
//! touched again: `.cargo/config.toml` points plain cargo there. A libtorch named by the user is used instead
//! ([`source`]).
//!
//! `cargo xtask gpu-kit` builds the kit for a machine with a GPU ([`kit`]).

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program speaks through its standard streams"
)]

mod args;
mod cargo;
mod commit;
mod disk;
mod failure;
mod goods;
mod home;
mod host;
mod install;
mod kit;
mod kit_size;
mod kit_wheels;
mod lock;
mod python;
mod source;
mod wheels;

use std::env;
use std::env::consts::OS;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use args::{Action, Args};
use failure::Failure;
use home::Home;
use source::{Environment, Source};

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            failure.exit_code()
        }
    }
}

fn run() -> Result<ExitCode, Failure> {
    let args = Args::parse(env::args_os().skip(1))?;
    if args.action == Action::Help {
        print!("{}", args::help());
        return Ok(ExitCode::SUCCESS);
    }

    if args.action == Action::GpuKit {
        kit::check(OS)?;
    }

    let root = repository();
    let home = Home::of_repository(&root);
    let source = Source::find(&Environment::read(), &home)?;
    match &source {
        Source::Own => install::ensure(&home, args.variant)?,
        Source::Folder { .. } | Source::Pytorch { .. } if args.variant.is_some() => {
            eprintln!(
                "xtask: --cpu and --cuda do nothing here, as {} is set",
                source.variable()
            );
        }
        Source::Folder { .. } | Source::Pytorch { .. } => {}
    }

    match args.action {
        Action::Cargo(command) => cargo::run(&command, &source, &home),
        Action::GpuKit => {
            kit::make(&root, &source, &home)?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Help | Action::Libtorch => {
            println!("{}", source.folder(&home).display());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Returns the root of the repository. Cargo passes this package's folder when it runs xtask; a program
/// started directly uses its path at compile time.
fn repository() -> PathBuf {
    let package =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map_or_else(|| package.clone(), Path::to_path_buf)
}
