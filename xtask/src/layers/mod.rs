//! `cargo xtask layers`: the crates depend downwards only, and the top-level modules of a crate form no cycle.
//!
//! The layers are data: `layers` of `[workspace.metadata]` in the root Cargo.toml, bottom first. A name there without a
//! crate is allowed.

mod cycles;
mod modules;
mod order;
mod paths;
mod tests_only;

use std::path::Path;

use crate::failure::Failure;
use crate::workspace::Workspace;

/// Checks the workspace in `root`; all findings come in one failure.
pub(crate) fn check(root: &Path) -> Result<(), Failure> {
    let workspace = Workspace::read(root)?;
    let mut findings = order::findings(&workspace);
    for package in &workspace.packages {
        for root_file in &package.roots {
            let edges = modules::edges(root, root_file)?;
            findings.extend(cycles::findings(&package.name, &edges));
        }
    }
    Failure::unless_empty("layers", findings)
}
