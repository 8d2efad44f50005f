//! The user's cache folder.

use std::ffi::OsString;
use std::path::PathBuf;

/// Returns the folder of the programs' cached files; `None` if the system names none for this user.
pub(crate) fn folder() -> Option<PathBuf> {
    of(&|name| std::env::var_os(name))
}

/// Source: XDG Base Directory Specification 0.8; on Windows the folder of local application data.
fn of(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = if cfg!(windows) {
        absolute("LOCALAPPDATA")
    } else {
        absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))
    };
    Some(base?.join("kontext"))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn folder_of(variables: &[(&str, &str)]) -> Option<PathBuf> {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
        of(&|name| find(name).map(|(_, value)| value.into()))
    }

    #[test]
    fn the_cache_is_in_the_folder_that_the_system_names() {
        let home = ("HOME", "/home/ada");
        assert_eq!(folder_of(&[home]), Some("/home/ada/.cache/kontext".into()));
        assert_eq!(
            folder_of(&[home, ("XDG_CACHE_HOME", "/var/ada")]),
            Some("/var/ada/kontext".into())
        );
        // A relative path is no folder of the user, but one of the place where the program was started.
        assert_eq!(folder_of(&[("XDG_CACHE_HOME", "cache")]), None);
    }
}
