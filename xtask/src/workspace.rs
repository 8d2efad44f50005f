//! The crates of the workspace, as `cargo metadata` lists them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::cargo;
use crate::failure::Failure;

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Workspace {
    /// `layers` of `[workspace.metadata]`, bottom first.
    pub(crate) layers: Vec<Vec<String>>,
    /// The folder that cargo builds in.
    pub(crate) target: PathBuf,
    /// The members, by name.
    pub(crate) packages: Vec<Package>,
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Package {
    pub(crate) name: String,
    /// The path of `Cargo.toml` from the root of the workspace.
    pub(crate) manifest: PathBuf,
    /// Each kind of each dependency on a member.
    pub(crate) dependencies: Vec<Dependency>,
    /// The root files of the library and the programs, from the root of the workspace.
    pub(crate) roots: Vec<PathBuf>,
    /// The name of the library in code.
    pub(crate) library: Option<String>,
    pub(crate) is_published: bool,
}

#[derive(Debug, PartialEq)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Normal,
    Build,
    Dev,
}

impl Workspace {
    /// Asks cargo; it reads manifests only and needs no network.
    pub(crate) fn read(root: &Path) -> Result<Self, Failure> {
        let cargo = cargo::program();
        let output = Command::new(&cargo)
            .args(["metadata", "--format-version", "1", "--no-deps"])
            .current_dir(root)
            .stdin(Stdio::null())
            .output()
            .map_err(Failure::start(&cargo))?;
        if !output.status.success() {
            return Err(Failure::Metadata {
                said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
        Self::parse(&output.stdout)
    }

    fn parse(json: &[u8]) -> Result<Self, Failure> {
        let metadata: Value = serde_json::from_slice(json).map_err(|error| Failure::Metadata {
            said: error.to_string(),
        })?;
        let root = Path::new(text(&metadata["workspace_root"]));
        let layers = items(&metadata["metadata"]["layers"])
            .map(|layer| items(layer).map(|name| text(name).to_owned()).collect())
            .collect();
        let members: Vec<&str> = items(&metadata["packages"])
            .map(|package| text(&package["name"]))
            .collect();
        let mut packages: Vec<_> = items(&metadata["packages"])
            .map(|package| Package {
                name: text(&package["name"]).to_owned(),
                manifest: from(root, &package["manifest_path"]),
                dependencies: items(&package["dependencies"])
                    .filter(|dependency| members.contains(&text(&dependency["name"])))
                    .map(|dependency| Dependency {
                        name: text(&dependency["name"]).to_owned(),
                        kind: match text(&dependency["kind"]) {
                            "dev" => Kind::Dev,
                            "build" => Kind::Build,
                            _ => Kind::Normal,
                        },
                    })
                    .collect(),
                roots: items(&package["targets"])
                    .filter(|target| {
                        items(&target["kind"]).any(|kind| ["lib", "proc-macro", "bin"].contains(&text(kind)))
                    })
                    .map(|target| from(root, &target["src_path"]))
                    .collect(),
                library: items(&package["targets"])
                    .find(|target| items(&target["kind"]).any(|kind| text(kind) == "lib"))
                    .map(|target| text(&target["name"]).replace('-', "_")),
                // `publish = false` is an empty list of registries.
                is_published: package["publish"]
                    .as_array()
                    .is_none_or(|registries| !registries.is_empty()),
            })
            .collect();
        packages.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self {
            layers,
            target: PathBuf::from(text(&metadata["target_directory"])),
            packages,
        })
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn from(root: &Path, path: &Value) -> PathBuf {
    let path = Path::new(text(path));
    path.strip_prefix(root).unwrap_or(path).to_path_buf()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_with_their_dependencies_on_members() {
        let json = r#"{
            "workspace_root": "/w",
            "target_directory": "/t",
            "metadata": { "layers": [["low"], ["high", "absent"]] },
            "packages": [
                { "name": "low", "manifest_path": "/w/low/Cargo.toml", "publish": null, "dependencies": [
                    { "name": "high", "kind": "dev" }, { "name": "serde", "kind": null }
                ], "targets": [
                    { "kind": ["lib"], "name": "low-er", "src_path": "/w/low/src/lib.rs" },
                    { "kind": ["test"], "name": "all", "src_path": "/w/low/tests/all.rs" }
                ] },
                { "name": "high", "manifest_path": "/w/Cargo.toml", "publish": [], "dependencies": [
                    { "name": "low", "kind": null }, { "name": "low", "kind": "build" }
                ], "targets": [{ "kind": ["bin"], "name": "high", "src_path": "/w/src/main.rs" }] }
            ]
        }"#;
        let dependency = |name: &str, kind| Dependency {
            name: name.to_owned(),
            kind,
        };
        assert_eq!(
            Workspace::parse(json.as_bytes()).expect("valid"),
            Workspace {
                layers: vec![vec!["low".to_owned()], vec!["high".to_owned(), "absent".to_owned()]],
                target: PathBuf::from("/t"),
                packages: vec![
                    Package {
                        name: "high".to_owned(),
                        manifest: PathBuf::from("Cargo.toml"),
                        dependencies: vec![dependency("low", Kind::Normal), dependency("low", Kind::Build)],
                        roots: vec![PathBuf::from("src/main.rs")],
                        library: None,
                        is_published: false,
                    },
                    Package {
                        name: "low".to_owned(),
                        manifest: PathBuf::from("low/Cargo.toml"),
                        dependencies: vec![dependency("high", Kind::Dev)],
                        roots: vec![PathBuf::from("low/src/lib.rs")],
                        library: Some("low_er".to_owned()),
                        is_published: true,
                    },
                ],
            }
        );
    }

    #[test]
    fn this_workspace_is_read_with_its_layers() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("in the repository");
        let workspace = Workspace::read(root).expect("read");
        let own = workspace
            .packages
            .iter()
            .find(|package| package.name == "xtask")
            .expect("a member");
        assert_eq!(own.manifest, Path::new("xtask/Cargo.toml"));
        assert_eq!(own.roots, [Path::new("xtask/src/main.rs")]);
        assert!(workspace.layers.len() > 2);
    }
}
