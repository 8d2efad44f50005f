//! The choice of libtorch: the repository's own, or one named by the user in the environment.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{env, fs};

use crate::failure::Failure;
use crate::home::{self, Home};
use crate::python;
use crate::wheels::TORCH_VERSION;

/// Origin of libtorch.
#[derive(Debug, PartialEq)]
pub(crate) enum Source {
    /// libtorch installed by xtask.
    Own,
    /// Absolute path from `LIBTORCH`.
    Folder { folder: PathBuf },
    /// Python's torch, by `LIBTORCH_USE_PYTORCH`.
    Pytorch { folder: PathBuf },
}

/// Environment variables read by the build script of torch-sys.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    libtorch: Option<OsString>,
    /// `true` if set to any value, as in torch-sys.
    use_pytorch: bool,
    bypass_version_check: bool,
}

impl Environment {
    pub(crate) fn read() -> Self {
        Self {
            libtorch: env::var_os("LIBTORCH"),
            use_pytorch: env::var_os("LIBTORCH_USE_PYTORCH").is_some(),
            bypass_version_check: env::var_os("LIBTORCH_BYPASS_VERSION_CHECK").is_some(),
        }
    }
}

impl Source {
    pub(crate) fn find(environment: &Environment, home: &Home) -> Result<Self, Failure> {
        // In torch-sys it takes precedence over LIBTORCH.
        if environment.use_pytorch {
            let folder = python::imported_torch()?;
            check_version("LIBTORCH_USE_PYTORCH", &folder, environment)?;
            return Ok(Self::Pytorch { folder });
        }
        // `.cargo/config.toml` sets LIBTORCH to the repository's own folder for all programs that `cargo run`
        // starts, including xtask; that value, or an empty one, is not a choice of the user.
        let Some(folder) = environment.libtorch.as_ref().filter(|folder| !folder.is_empty()) else {
            return Ok(Self::Own);
        };
        // The build script of torch-sys runs in another working directory than the user's.
        let folder = std::path::absolute(folder).map_err(Failure::io(Path::new(folder)))?;
        if real(&folder) == real(&home.torch()) {
            return Ok(Self::Own);
        }
        let names = [
            "libtorch_cpu.so",
            "libtorch_cpu.dylib",
            "libtorch_cpu.a",
            "torch_cpu.lib",
        ];
        if !names.iter().any(|name| folder.join("lib").join(name).is_file()) {
            let found = format!("{} has no lib with libtorch_cpu in it", folder.display());
            return Err(Failure::Unusable {
                variable: "LIBTORCH",
                found,
            });
        }
        check_version("LIBTORCH", &folder, environment)?;
        Ok(Self::Folder { folder })
    }

    /// Returns the folder that contains `lib` and `include`.
    pub(crate) fn folder(&self, home: &Home) -> PathBuf {
        match self {
            Self::Own => home.torch(),
            Self::Folder { folder } | Self::Pytorch { folder } => folder.clone(),
        }
    }

    /// Returns the environment variable that determined the source.
    pub(crate) fn variable(&self) -> &'static str {
        match self {
            Self::Own | Self::Folder { .. } => "LIBTORCH",
            Self::Pytorch { .. } => "LIBTORCH_USE_PYTORCH",
        }
    }
}

/// Returns an error for a version mismatch before minutes of compiling end in C++ errors. A folder of unknown
/// version passes.
fn check_version(variable: &'static str, folder: &Path, environment: &Environment) -> Result<(), Failure> {
    match home::version(folder) {
        Some(version) if version != TORCH_VERSION && !environment.bypass_version_check => {
            let found = format!(
                "{} is libtorch {version}, and kontext takes {TORCH_VERSION} (LIBTORCH_BYPASS_VERSION_CHECK=1 \
                 tries it nevertheless)",
                folder.display()
            );
            Err(Failure::Unusable { variable, found })
        }
        _ => Ok(()),
    }
}

/// Resolves the symbolic links of `path`, as far as it exists.
fn real(path: &Path) -> PathBuf {
    match (fs::canonicalize(path), path.parent(), path.file_name()) {
        (Ok(path), ..) => path,
        (Err(_), Some(parent), Some(name)) => real(parent).join(name),
        (Err(_), ..) => path.to_path_buf(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::tests::imitate;
    use crate::wheels::Variant;

    fn find(libtorch: Option<&Path>, home: &Home) -> Result<Source, Failure> {
        let libtorch = libtorch.map(|path| path.as_os_str().to_owned());
        Source::find(
            &Environment {
                libtorch,
                ..Environment::default()
            },
            home,
        )
    }

    #[test]
    fn the_value_of_the_repositorys_config_is_not_the_users() {
        let folder = tempfile::tempdir().expect("created");
        let home = Home::of_repository(folder.path());
        for libtorch in [None, Some(Path::new("")), Some(&home.torch())] {
            assert_eq!(find(libtorch, &home).expect("found"), Source::Own, "{libtorch:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_the_repository_leads_to_the_same_folder() {
        let folder = tempfile::tempdir().expect("created");
        let (root, link) = (folder.path().join("root"), folder.path().join("link"));
        fs::create_dir(&root).expect("created");
        std::os::unix::fs::symlink(&root, &link).expect("linked");
        let by_link = link.join(".libtorch/torch");
        assert_eq!(
            find(Some(&by_link), &Home::of_repository(&root)).expect("found"),
            Source::Own
        );
    }

    #[test]
    fn a_libtorch_of_the_user_is_taken() {
        let folder = tempfile::tempdir().expect("created");
        imitate(folder.path(), Variant::Cpu);
        let torch = folder.path().join("torch");
        let source = find(Some(&torch), &Home::of_repository(Path::new("/repo"))).expect("found");
        assert_eq!(source, Source::Folder { folder: torch });
    }

    #[test]
    fn a_folder_without_libtorch_is_refused_by_name() {
        let folder = tempfile::tempdir().expect("created");
        let failure = find(Some(folder.path()), &Home::of_repository(Path::new("/repo"))).expect_err("no libtorch");
        assert!(
            failure.to_string().contains(&folder.path().display().to_string()),
            "{failure}"
        );
    }

    #[test]
    fn another_version_is_refused_unless_the_check_is_off() {
        let folder = tempfile::tempdir().expect("created");
        imitate(folder.path(), Variant::Cpu);
        let torch = folder.path().join("torch");
        fs::write(torch.join("version.py"), "__version__ = '2.7.1+cu126'\n").expect("written");
        let home = Home::of_repository(Path::new("/repo"));

        let failure = find(Some(&torch), &home).expect_err("another version");
        assert!(failure.to_string().contains("2.7.1"), "{failure}");
        let bypass = Environment {
            libtorch: Some(torch.clone().into_os_string()),
            bypass_version_check: true,
            ..Environment::default()
        };
        assert_eq!(
            Source::find(&bypass, &home).expect("found"),
            Source::Folder { folder: torch }
        );
    }
}
