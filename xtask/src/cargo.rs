//! Cargo commands with libtorch in their environment.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, iter};

use crate::failure::Failure;
use crate::home::Home;
use crate::source::Source;

/// Environment variable that the dynamic loader searches first.
const LIBRARY_PATH: &str = if cfg!(windows) {
    "PATH"
} else if cfg!(target_os = "macos") {
    "DYLD_LIBRARY_PATH"
} else {
    "LD_LIBRARY_PATH"
};

/// Runs `cargo` with `args` and passes on its exit code.
pub(crate) fn run(args: &[OsString], source: &Source, home: &Home) -> Result<ExitCode, Failure> {
    let cargo = program();
    let command = prepared(&cargo, args, source, home)?;
    execute(command).map_err(Failure::start(&cargo))
}

/// Runs `cargo` with `args` as a child process and returns `true` if it succeeded. Its stdout is redirected
/// to stderr: stdout is reserved for xtask's own output.
pub(crate) fn run_and_return(args: &[OsString], source: &Source, home: &Home) -> Result<bool, Failure> {
    let cargo = program();
    let mut command = prepared(&cargo, args, source, home)?;
    let status = command.stdout(std::io::stderr()).status();
    Ok(status.map_err(Failure::start(&cargo))?.success())
}

/// Returns the cargo that runs xtask, from `CARGO`, so that the same toolchain is used throughout.
pub(crate) fn program() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"))
}

/// Builds the command with `LIBTORCH` and the library path set.
fn prepared(cargo: &OsStr, args: &[OsString], source: &Source, home: &Home) -> Result<Command, Failure> {
    let configured = env::var_os("LIBTORCH").is_some_and(|value| !value.is_empty());
    let mut command = command(cargo, args, source, home, configured);
    command.env(
        LIBRARY_PATH,
        library_path(&source.folder(home), env::var_os(LIBRARY_PATH).as_deref())?,
    );
    Ok(command)
}

/// Builds the command without its library path. `configured` is `true` if `LIBTORCH` is set for xtask itself.
fn command(cargo: &OsStr, args: &[OsString], source: &Source, home: &Home, configured: bool) -> Command {
    let mut command = Command::new(cargo);
    command.args(args);
    match source {
        // `.cargo/config.toml` has set it, both for xtask and for every cargo in the repository.
        Source::Own if configured => &mut command,
        // Cargo has not read that file (it was started outside the repository), or the user's value is empty.
        Source::Own => command.env("LIBTORCH", home.torch()),
        Source::Folder { folder } => command.env("LIBTORCH", folder),
        Source::Pytorch { .. } => &mut command,
    };
    command
}

/// Prepends `lib` of `torch` to the library path. Programs under `target/` find `.libtorch` by their rpath;
/// this serves other target folders, and a libtorch of the user.
fn library_path(torch: &Path, before: Option<&OsStr>) -> Result<OsString, Failure> {
    let lib = torch.join("lib");
    let before: Vec<PathBuf> = before
        .map(|paths| env::split_paths(paths).collect())
        .unwrap_or_default();
    // An empty path would mean the current folder.
    let paths = iter::once(lib.clone()).chain(before.into_iter().filter(|path| !path.as_os_str().is_empty()));
    env::join_paths(paths).map_err(|error| Failure::Unusable {
        variable: LIBRARY_PATH,
        found: format!("{} cannot be put in front of it: {error}", lib.display()),
    })
}

/// Replaces this process by the command, which then receives signals and sets the exit code directly.
#[cfg(unix)]
pub(crate) fn execute(mut command: Command) -> std::io::Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    Err(command.exec())
}

#[cfg(not(unix))]
pub(crate) fn execute(mut command: Command) -> std::io::Result<ExitCode> {
    let code = command.status()?.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn libtorch_of(source: &Source, configured: bool) -> Option<OsString> {
        let home = Home::of_repository(Path::new("/repo"));
        let args = ["test".into(), "--workspace".into()];
        let command = command(OsStr::new("cargo"), &args, source, &home, configured);
        assert_eq!(command.get_args().collect::<Vec<_>>(), ["test", "--workspace"]);
        command
            .get_envs()
            .find(|(name, _)| *name == "LIBTORCH")
            .and_then(|(_, value)| value.map(OsStr::to_os_string))
    }

    #[test]
    fn the_value_of_cargos_config_is_kept_as_it_is() {
        assert_eq!(libtorch_of(&Source::Own, true), None);
        assert_eq!(libtorch_of(&Source::Own, false), Some("/repo/.libtorch/torch".into()));
    }

    #[test]
    fn the_users_libtorch_is_passed_on() {
        let source = Source::Folder {
            folder: PathBuf::from("/opt/libtorch"),
        };
        assert_eq!(libtorch_of(&source, true), Some("/opt/libtorch".into()));
        let source = Source::Pytorch {
            folder: PathBuf::from("/venv/torch"),
        };
        assert_eq!(libtorch_of(&source, true), None);
    }

    #[cfg(unix)]
    #[test]
    fn libtorch_comes_first_in_the_library_path() {
        let torch = Path::new("/opt/libtorch");
        for (before, after) in [
            (None, "/opt/libtorch/lib"),
            (Some(""), "/opt/libtorch/lib"),
            (Some("/a:/b"), "/opt/libtorch/lib:/a:/b"),
        ] {
            assert_eq!(library_path(torch, before.map(OsStr::new)).expect("joined"), after);
        }
    }
}
