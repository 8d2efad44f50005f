//! The order of the crates: a crate depends on crates of lower layers only.
//!
//! A dev-dependency may point upwards, as tests and examples of a crate may use the crates built on it: Cargo compiles
//! them after both. Members of one layer never depend on each other, not even so.

use crate::workspace::{Kind, Package, Workspace};

/// Lists the dependencies against the order and the members without a layer.
pub(super) fn findings(workspace: &Workspace) -> Vec<String> {
    workspace
        .packages
        .iter()
        .flat_map(|package| findings_of(package, &workspace.layers))
        .collect()
}

fn findings_of(package: &Package, layers: &[Vec<String>]) -> Vec<String> {
    let (name, manifest) = (&package.name, package.manifest.display());
    let own = match layers_of(name, layers)[..] {
        [own] => own,
        [] => {
            return vec![format!(
                "{manifest}: {name} is in no layer; add it to `layers` of [workspace.metadata] in Cargo.toml"
            )];
        }
        [..] => {
            return vec![format!(
                "{manifest}: {name} is in more than one layer; keep one in `layers` of [workspace.metadata] in \
                 Cargo.toml"
            )];
        }
    };
    package
        .dependencies
        .iter()
        .filter(|dependency| dependency.name != *name)
        .filter_map(|dependency| {
            let used = &dependency.name;
            // A crate without a single layer is a finding of its own.
            let [other] = layers_of(used, layers)[..] else {
                return None;
            };
            let kind = match dependency.kind {
                Kind::Normal => "depends",
                Kind::Build => "build-depends",
                Kind::Dev => "dev-depends",
            };
            let wrong = if own == other {
                "a sibling in its layer"
            } else if own < other && dependency.kind != Kind::Dev {
                "a crate of a higher layer"
            } else {
                return None;
            };
            Some(format!(
                "{manifest}: {name} {kind} on {used}, {wrong}; move the shared part to a lower layer, or correct \
                 `layers` of [workspace.metadata] in Cargo.toml"
            ))
        })
        .collect()
}

/// The indices of the layers that name the crate.
fn layers_of(name: &str, layers: &[Vec<String>]) -> Vec<usize> {
    layers
        .iter()
        .enumerate()
        .filter(|(_, layer)| layer.iter().any(|member| member == name))
        .map(|(index, _)| index)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::workspace::Dependency;

    fn workspace(dependencies: &[(&str, Kind, &str)]) -> Workspace {
        let layers: [&[&str]; 4] = [&["low"], &["left", "right"], &["absent"], &["high"]];
        Workspace {
            layers: layers
                .iter()
                .map(|layer| layer.iter().map(|name| (*name).to_owned()).collect())
                .collect(),
            packages: ["high", "left", "low", "right"]
                .map(|name| Package {
                    name: name.to_owned(),
                    manifest: Path::new(name).join("Cargo.toml"),
                    dependencies: dependencies
                        .iter()
                        .filter(|(from, ..)| *from == name)
                        .map(|(_, kind, to)| Dependency {
                            name: (*to).to_owned(),
                            kind: *kind,
                        })
                        .collect(),
                    ..Package::default()
                })
                .into(),
            ..Workspace::default()
        }
    }

    #[test]
    fn dependencies_point_downwards() {
        for kind in [Kind::Normal, Kind::Build, Kind::Dev] {
            let down = workspace(&[("high", kind, "low"), ("high", kind, "left"), ("left", kind, "low")]);
            assert_eq!(findings(&down), [""; 0]);
        }
    }

    #[test]
    fn an_upward_dependency_is_found_unless_it_is_for_tests() {
        for kind in [Kind::Normal, Kind::Build] {
            let found = findings(&workspace(&[("left", kind, "high"), ("high", kind, "low")]));
            assert_eq!(found.len(), 1);
            assert!(found[0].starts_with("left/Cargo.toml: left "), "{}", found[0]);
            assert!(
                found[0].contains("on high, a crate of a higher layer; "),
                "{}",
                found[0]
            );
        }
        assert_eq!(findings(&workspace(&[("left", Kind::Dev, "high")])), [""; 0]);
    }

    #[test]
    fn siblings_do_not_depend_on_each_other_even_for_tests() {
        for kind in [Kind::Normal, Kind::Build, Kind::Dev] {
            let found = findings(&workspace(&[("left", kind, "right"), ("left", kind, "left")]));
            assert_eq!(found.len(), 1);
            assert!(found[0].contains("on right, a sibling"), "{}", found[0]);
        }
    }

    #[test]
    fn a_member_is_in_one_layer() {
        let mut twice = workspace(&[]);
        twice.layers[0].push("high".to_owned());
        assert!(matches!(&findings(&twice)[..], [found] if found.contains("high is in more than one layer")));
        let mut none = workspace(&[("high", Kind::Normal, "low")]);
        none.layers.remove(0);
        assert!(matches!(&findings(&none)[..], [found] if found.contains("low is in no layer")));
    }
}
