//! The command line of `cargo xtask`: a few options and commands, then a cargo command, passed on unparsed.

use std::ffi::{OsStr, OsString};

use crate::failure::Failure;
use crate::prose;
use crate::wheels::{TORCH_VERSION, Variant};

/// Parsed command line.
#[derive(Debug, PartialEq)]
pub(crate) struct Args {
    /// `--cpu` or `--cuda`; with `None` (the default), xtask chooses.
    pub(crate) variant: Option<Variant>,
    pub(crate) action: Action,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Action {
    Help,
    /// Install libtorch and print its folder.
    Libtorch,
    /// Install libtorch, then build the kit for a machine with a GPU.
    GpuKit,
    /// Fetch the compiler of the CUDA kernels and print its file.
    Nvrtc,
    /// Check the order of crates and modules.
    Layers,
    /// Measure the prose of these paths, all of the repository by default, and print its worst lines.
    Prose {
        lines: usize,
        paths: Vec<OsString>,
    },
    /// Compare the public API with its listings, or write these.
    Api {
        write: bool,
    },
    /// Install libtorch, then run cargo with these arguments.
    Cargo(Vec<OsString>),
}

impl Args {
    /// Splits the arguments of `cargo xtask` into xtask's own and, from the cargo command on, cargo's.
    ///
    /// Cargo takes options before its commands too (`--offline`, `--config`), so the first argument unknown
    /// to xtask starts the cargo command.
    pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self, Failure> {
        let mut words = words.into_iter();
        let mut variant = None;
        let action = loop {
            let Some(word) = words.next() else {
                break Action::Help;
            };
            if let Some(named) = variant_named(&word) {
                set(&mut variant, named)?;
            } else if word == "--help" || word == "-h" {
                break Action::Help;
            } else if let Some((name, action)) = own_command(&word) {
                for word in words {
                    let named = variant_named(&word).ok_or_else(|| {
                        Failure::Usage(format!(
                            "`cargo xtask {name}` takes --cpu or --cuda and nothing else, got {}",
                            word.display()
                        ))
                    })?;
                    set(&mut variant, named)?;
                }
                break action;
            } else if let Some((name, action)) = bare_command(&word) {
                refuse_variant(variant, name)?;
                if let Some(word) = words.next() {
                    return Err(Failure::Usage(format!(
                        "`cargo xtask {name}` takes no words, got {}",
                        word.display()
                    )));
                }
                break action;
            } else if word == "api" {
                refuse_variant(variant, "api")?;
                let words: Vec<_> = words.collect();
                let write = words == ["--write"];
                if !write && !words.is_empty() {
                    return Err(Failure::Usage(
                        "`cargo xtask api` takes --write and nothing else".to_owned(),
                    ));
                }
                break Action::Api { write };
            } else if word == "prose" {
                refuse_variant(variant, "prose")?;
                break prose_action(words)?;
            } else {
                break Action::Cargo(std::iter::once(word).chain(words).collect());
            }
        };
        Ok(Self { variant, action })
    }
}

/// Returns the name and action of one of xtask's own commands, `None` for a cargo command.
fn own_command(word: &OsStr) -> Option<(&'static str, Action)> {
    [("libtorch", Action::Libtorch), ("gpu-kit", Action::GpuKit)]
        .into_iter()
        .find(|(name, _)| word == *name)
}

/// Returns the name and action of a command that takes no words.
fn bare_command(word: &OsStr) -> Option<(&'static str, Action)> {
    [("layers", Action::Layers), ("nvrtc", Action::Nvrtc)]
        .into_iter()
        .find(|(name, _)| word == *name)
}

/// The checks of the repository do without libtorch, and so does NVRTC.
fn refuse_variant(variant: Option<Variant>, name: &str) -> Result<(), Failure> {
    variant.map_or(Ok(()), |_| {
        Err(Failure::Usage(format!(
            "`cargo xtask {name}` needs no libtorch and takes neither --cpu nor --cuda"
        )))
    })
}

fn prose_action(mut words: impl Iterator<Item = OsString>) -> Result<Action, Failure> {
    let mut lines = prose::LINES;
    let mut paths = Vec::new();
    while let Some(word) = words.next() {
        if word == "--lines" {
            lines = words
                .next()
                .and_then(|number| number.to_str()?.parse().ok())
                .ok_or_else(|| Failure::Usage("`cargo xtask prose --lines` takes a number".to_owned()))?;
        } else if word.to_string_lossy().starts_with('-') {
            return Err(Failure::Usage(format!(
                "`cargo xtask prose` takes --lines and paths, got {}",
                word.display()
            )));
        } else {
            paths.push(word);
        }
    }
    Ok(Action::Prose { lines, paths })
}

fn variant_named(word: &OsStr) -> Option<Variant> {
    if word == "--cpu" {
        Some(Variant::Cpu)
    } else if word == "--cuda" {
        Some(Variant::Cuda)
    } else {
        None
    }
}

fn set(variant: &mut Option<Variant>, named: Variant) -> Result<(), Failure> {
    match variant.replace(named) {
        Some(other) if other != named => Err(Failure::Usage("--cpu and --cuda exclude each other".to_owned())),
        _ => Ok(()),
    }
}

/// Returns the text of `cargo xtask --help`.
pub(crate) fn help() -> String {
    let (cpu, cuda) = (Variant::Cpu.sizes(), Variant::Cuda.sizes());
    format!(
        "\
Makes sure that libtorch {TORCH_VERSION} is there, then runs a cargo command with it.

Usage: cargo xtask [--cpu | --cuda] COMMAND...
       cargo xtask [--cpu | --cuda] libtorch
       cargo xtask [--cpu | --cuda] gpu-kit
       cargo xtask nvrtc
       cargo xtask layers
       cargo xtask prose [--lines N] [PATH...]
       cargo xtask api [--write]

  COMMAND...  any cargo command with its options: `cargo xtask test --workspace`
  libtorch    only fetches libtorch and prints its folder
  gpu-kit     makes the folder target/gpu-kit: all that a machine with a GPU needs for the checks and timings there
  nvrtc       fetches the compiler of the CUDA kernels for their tests, where libtorch is the one for CPUs, and prints
              its file: 90 MB to download, 114 MB on disk
  layers      checks that crates depend on lower layers only (`layers` in Cargo.toml) and that the top-level modules
              of a crate form no cycle; needs no libtorch
  prose       measures the prose of the files that git tracks, or of PATHs, and prints its N worst lines
              ({lines} by default); needs no libtorch
  api         compares the public API of the libraries with the listings in docs/api, or writes these; needs no
              libtorch, but the Rust that xtask/api/Cargo.toml names
  --cpu       fetches what a CPU needs: {} to download, {} on disk
  --cuda      fetches NVIDIA's libraries too: {} to download, {} on disk;
              the default where an NVIDIA driver is found and no libtorch is there yet

libtorch comes from PyPI, with python3 and pip, into the folder .libtorch of the repository.
Plain `cargo run`, `cargo test` and the programs under target/ find it there from then on.
To use another one, set LIBTORCH to its folder, or LIBTORCH_USE_PYTORCH=1 for that of python3.
",
        cpu.download,
        cpu.installed,
        cuda.download,
        cuda.installed,
        lines = prose::LINES,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, Failure> {
        Args::parse(line.split_whitespace().map(OsString::from))
    }

    fn cargo(line: &str) -> Action {
        Action::Cargo(line.split_whitespace().map(OsString::from).collect())
    }

    #[test]
    fn a_cargo_command_keeps_all_its_words() {
        let args = parse("run --release --example edit -- --cuda --help").expect("valid");
        assert_eq!(args.variant, None);
        assert_eq!(args.action, cargo("run --release --example edit -- --cuda --help"));
    }

    #[test]
    fn a_variant_is_taken_only_before_the_cargo_command() {
        let args = parse("--cpu test --cuda").expect("valid");
        assert_eq!(args.variant, Some(Variant::Cpu));
        assert_eq!(args.action, cargo("test --cuda"));
    }

    #[test]
    fn cargos_own_options_may_lead() {
        let args = parse("--cuda --offline build").expect("valid");
        assert_eq!(args.variant, Some(Variant::Cuda));
        assert_eq!(args.action, cargo("--offline build"));
    }

    #[test]
    fn no_word_and_help_ask_for_help() {
        for line in ["", "--help", "-h", "--cpu", "--cuda -h"] {
            assert_eq!(parse(line).expect("valid").action, Action::Help, "{line}");
        }
    }

    #[test]
    fn libtorch_takes_a_variant_on_either_side() {
        for line in ["--cuda libtorch", "libtorch --cuda"] {
            let args = parse(line).expect("valid");
            assert_eq!(args.variant, Some(Variant::Cuda), "{line}");
            assert_eq!(args.action, Action::Libtorch, "{line}");
        }
    }

    #[test]
    fn libtorch_refuses_other_words() {
        let failure = parse("libtorch --gpu").expect_err("not an option");
        assert!(failure.to_string().contains("--gpu"), "{failure}");
    }

    #[test]
    fn gpu_kit_is_no_cargo_command() {
        for (line, variant) in [
            ("gpu-kit", None),
            ("--cpu gpu-kit", Some(Variant::Cpu)),
            ("--cuda gpu-kit", Some(Variant::Cuda)),
            ("gpu-kit --cuda", Some(Variant::Cuda)),
        ] {
            assert_eq!(
                parse(line).expect("valid"),
                Args {
                    variant,
                    action: Action::GpuKit
                },
                "{line}"
            );
        }
        assert_eq!(parse("build gpu-kit").expect("valid").action, cargo("build gpu-kit"));
        assert!(help().contains("gpu-kit"));
    }

    #[test]
    fn gpu_kit_refuses_other_words() {
        for line in ["gpu-kit --release", "gpu-kit build", "--cpu gpu-kit --cuda"] {
            assert!(matches!(parse(line), Err(Failure::Usage(_))), "{line}");
        }
        let failure = parse("gpu-kit --release").expect_err("not an option").to_string();
        assert!(
            failure.contains("gpu-kit") && failure.contains("--release"),
            "{failure}"
        );
    }

    #[test]
    fn the_checks_of_the_repository_take_no_variant() {
        assert_eq!(parse("layers").expect("valid").action, Action::Layers);
        assert_eq!(parse("nvrtc").expect("valid").action, Action::Nvrtc);
        for line in [
            "--cpu layers",
            "--cuda nvrtc",
            "nvrtc x",
            "layers --cpu",
            "layers x",
            "--cuda prose",
            "prose --cuda",
        ] {
            assert!(matches!(parse(line), Err(Failure::Usage(_))), "{line}");
        }
    }

    #[test]
    fn api_takes_write() {
        for (line, write) in [("api", false), ("api --write", true)] {
            assert_eq!(parse(line).expect("valid").action, Action::Api { write }, "{line}");
        }
        for line in ["api write", "api --write --write", "--cpu api"] {
            assert!(matches!(parse(line), Err(Failure::Usage(_))), "{line}");
        }
    }

    #[test]
    fn prose_takes_a_number_of_lines_and_paths() {
        for (line, lines, paths) in [
            ("prose", prose::LINES, vec![]),
            ("prose --lines 0 src README.md", 0, vec!["src", "README.md"]),
            ("prose src --lines 7", 7, vec!["src"]),
        ] {
            let paths = paths.into_iter().map(OsString::from).collect();
            assert_eq!(
                parse(line).expect("valid").action,
                Action::Prose { lines, paths },
                "{line}"
            );
        }
        for line in ["prose --lines", "prose --lines x", "prose -v"] {
            assert!(matches!(parse(line), Err(Failure::Usage(_))), "{line}");
        }
    }

    #[test]
    fn both_variants_at_once_are_refused() {
        assert!(parse("--cpu --cuda build").is_err());
        assert!(parse("--cpu --cpu build").is_ok());
    }
}
