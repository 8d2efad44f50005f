//! `api-listing FILE`: prints the public API in a JSON file of rustdoc, an item a line.
//!
//! The format of these files changes with Rust, and `public-api` reads another format without complaint: the version
//! is compared first.

use std::collections::HashSet;
use std::env;
use std::error::Error;
use std::fs;
use std::process::ExitCode;

use public_api::Builder;
use rustdoc_types::FORMAT_VERSION;
use serde::Deserialize;

/// Traits that every type has or lacks by its fields, and whose set grows with Rust. `Send` and `Sync` are listed.
const UNLISTED: [&str; 6] = [
    "Freeze",
    "RefUnwindSafe",
    "StructuralPartialEq",
    "Unpin",
    "UnsafeUnpin",
    "UnwindSafe",
];

fn main() -> ExitCode {
    let Some(file) = env::args().nth(1) else {
        eprintln!("usage: api-listing FILE");
        return ExitCode::from(2);
    };
    match listing(&file) {
        Ok(listing) => {
            print!("{listing}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("api-listing: {file}: {error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Deserialize)]
struct Versioned {
    format_version: u32,
}

fn listing(file: &str) -> Result<String, Box<dyn Error>> {
    let Versioned { format_version } = serde_json::from_slice(&fs::read(file)?)?;
    if format_version != FORMAT_VERSION {
        return Err(format!(
            "this rustdoc writes format {format_version} of its JSON, and {FORMAT_VERSION} is expected.\n\
             Run it with the Rust of that format, which xtask/api/Cargo.toml names (`cargo +VERSION xtask api`), or \
             update public-api and rustdoc-types there and accept the new listings."
        )
        .into());
    }
    let written: HashSet<_> = items(file, false)?.into_iter().collect();
    let mut listing = String::new();
    for item in items(file, true)? {
        if written.contains(&item) || is_listed_impl(&item) {
            listing.push_str(&item);
            listing.push('\n');
        }
    }
    Ok(listing)
}

/// The items, with those of derived and automatic implementations or without.
fn items(file: &str, derived: bool) -> public_api::Result<Vec<String>> {
    let api = Builder::from_rustdoc_json(file)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(!derived)
        .omit_auto_derived_impls(!derived)
        .build()?;
    Ok(api.items().map(ToString::to_string).collect())
}

/// Returns true if `item` is the head of an implementation that is listed; what is in a derived one says nothing more.
fn is_listed_impl(item: &str) -> bool {
    item.starts_with("impl") && !UNLISTED.iter().any(|name| item.contains(&format!("::{name} for ")))
}
