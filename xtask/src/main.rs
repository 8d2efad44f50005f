//! `cargo xtask COMMAND...`: ensures that libtorch is installed, then runs `cargo COMMAND...` with it.
//!
//! libtorch comes from the wheels that PyTorch and NVIDIA publish on PyPI ([`wheels`]), is unpacked by pip
//! ([`python`]) into the ignored folder `.libtorch` of the repository ([`home`], [`install`]), and is not
//! touched again: `.cargo/config.toml` points plain cargo there. A libtorch named by the user is used instead
//! ([`source`]).
//!
//! `cargo xtask gpu-kit` builds the kit for a machine with a GPU ([`kit`]), `cargo xtask nvrtc` fetches the
//! compiler of the CUDA kernels for their tests ([`nvrtc`]). `cargo xtask layers`, `prose` and `api` check
//! the repository and need no libtorch ([`layers`], [`prose`], [`api`]).

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program speaks through its standard streams"
)]

mod api;
mod args;
mod cargo;
mod commit;
mod disk;
mod failure;
mod git;
mod goods;
mod home;
mod host;
mod install;
mod kit;
mod kit_entry;
mod kit_size;
mod kit_wheels;
mod layers;
mod lock;
mod nvrtc;
mod prose;
mod python;
mod source;
mod wheels;
mod workspace;

use std::env;
use std::env::consts::OS;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use args::{Action, Args};
use failure::Failure;
use home::Home;
use source::{Environment, Source};
use wheels::Variant;

fn main() -> ExitCode {
    match api::as_rustdoc().unwrap_or_else(run) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            failure.exit_code()
        }
    }
}

fn run() -> Result<ExitCode, Failure> {
    let args = Args::parse(env::args_os().skip(1))?;
    let root = repository();
    match args.action {
        Action::Help => print!("{}", args::help()),
        Action::Api { write } => api::check(&root, write)?,
        Action::Layers => layers::check(&root)?,
        Action::Prose { lines, paths } => prose::check(&root, lines, &paths)?,
        Action::Libtorch => {
            let (source, home) = libtorch(&root, args.variant)?;
            println!("{}", source.folder(&home).display());
        }
        Action::Nvrtc => println!("{}", nvrtc::ensure(&Home::of_repository(&root))?.display()),
        Action::GpuKit => {
            kit::check(OS)?;
            let (source, home) = libtorch(&root, args.variant)?;
            kit::make(&root, &source, &home)?;
        }
        Action::Cargo(command) => {
            let (source, home) = libtorch(&root, args.variant)?;
            return cargo::run(&command, &source, &home);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Finds the libtorch to use, and installs it if it is the repository's own.
fn libtorch(root: &Path, variant: Option<Variant>) -> Result<(Source, Home), Failure> {
    let home = Home::of_repository(root);
    let source = Source::find(&Environment::read(), &home)?;
    match &source {
        Source::Own => install::ensure(&home, variant)?,
        Source::Folder { .. } | Source::Pytorch { .. } if variant.is_some() => {
            eprintln!(
                "xtask: --cpu and --cuda do nothing here, as {} is set",
                source.variable()
            );
        }
        Source::Folder { .. } | Source::Pytorch { .. } => {}
    }
    Ok((source, home))
}

/// Returns the root of the repository. Cargo passes this package's folder when it runs xtask; a program
/// started directly uses its path at compile time.
fn repository() -> PathBuf {
    let package =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map_or_else(|| package.clone(), Path::to_path_buf)
}
