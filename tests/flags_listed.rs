//! Tests that docs/options.md lists each flag of each program and each field of a recipe, and no other.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::desk::Desk;
use common::options_doc::{options, quoted, rows};
use kontext_train::{AutoencoderRecipe, Recipe, TextRecipe};
use serde_json::Value;

/// Returns the names of the example programs: the files in `examples`, and the folders with a `main.rs`.
fn programs() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_source = |path: &Path| path.extension().is_some_and(|extension| extension == "rs");
    let sources = files.filter(|path| is_source(path) || path.join("main.rs").is_file());
    sources
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        // They show the library, and take no arguments.
        .filter(|name| !name.starts_with("hello_") && name != "doctor")
        .collect()
}

/// Returns the flags of a program as clap prints its definition, without the two that every program has.
fn flags(program: &str) -> BTreeSet<String> {
    let (help, _) = Desk::new().good(program, &["--help"]);
    let flag = |line: &str| {
        let line = line.trim_start();
        let long = if line.starts_with("--") {
            line
        } else {
            line.strip_prefix('-')?.split_once(", ")?.1
        };
        let end = long
            .find(|c: char| c != '-' && !c.is_ascii_alphanumeric())
            .unwrap_or(long.len());
        long.starts_with("--").then(|| long[..end].to_owned())
    };
    let flags = help.lines().filter_map(flag);
    flags.filter(|flag| flag != "--help" && flag != "--version").collect()
}

/// Returns the flags of a program that the tables of programs name.
fn listed(program: &str) -> BTreeSet<String> {
    let named = |names: &[String]| names.iter().any(|name| name == program);
    let rows = rows().into_iter().filter_map(|row| match row.header.as_str() {
        "Flag" if named(&quoted(&row.cells[0])) => Some(row.names),
        "Program" if named(&row.names) => Some(quoted(&row.cells[0])),
        _ => None,
    });
    rows.flatten().collect()
}

#[test]
fn every_flag_of_every_program_is_listed_and_no_other() {
    // Those of a request and of loading: a flag of this name sets the option.
    let options: BTreeSet<String> =
        options(|row| ["Option of `Request`", "Option of `PipelineBuilder`"].contains(&row.header.as_str()))
            .into_iter()
            .map(|(_, name)| format!("--{}", name.replace('_', "-")))
            .collect();
    let mut wrong = Vec::new();
    for program in programs() {
        let (flags, listed) = (flags(&program), listed(&program));
        assert!(!flags.is_empty(), "{program}");
        let missing = flags.difference(&listed).filter(|flag| !options.contains(*flag));
        wrong.extend(missing.map(|flag| format!("{program} {flag} is not listed")));
        wrong.extend(
            listed
                .difference(&flags)
                .map(|flag| format!("{program} has no {flag}, which is listed")),
        );
    }
    assert!(wrong.is_empty(), "docs/options.md: {wrong:#?}");
}

#[test]
fn the_programs_that_are_named_exist() {
    let programs = programs();
    for row in rows() {
        let named = match row.header.as_str() {
            "Flag" => quoted(&row.cells[0]),
            "Program" => row.names,
            _ => continue,
        };
        assert!(!named.is_empty());
        for name in named {
            assert!(programs.contains(&name), "{name}");
        }
    }
}

/// Adds the paths of a value's fields: `data.batch`.
fn add_fields(value: &Value, path: &str, fields: &mut BTreeSet<String>) {
    match value {
        // The keys of a map of categories are the user's.
        Value::Object(map) if path != "data.weights" => {
            for (key, value) in map {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                add_fields(value, &path, fields);
            }
        }
        _ => {
            fields.insert(path.to_owned());
        }
    }
}

/// Returns all fields of recipes given as TOML.
fn fields<R: serde::Serialize + serde::de::DeserializeOwned>(recipes: &[&str]) -> BTreeSet<String> {
    let mut fields = BTreeSet::new();
    for text in recipes {
        let recipe: R = toml::from_str(text).unwrap();
        add_fields(&serde_json::to_value(&recipe).unwrap(), "", &mut fields);
    }
    fields
}

#[test]
fn every_field_of_a_recipe_is_listed_and_no_other() {
    let base = "model = 'm'\nout = 'o'\nsteps = 1\nresume = ['steps']\n[data]\nfolder = 'd'\n";
    let kinds = [
        "[method]\nkind = 'full'\n[objective]\ndensity.kind = 'uniform'\n",
        "[method]\nkind = 'lora'\n[objective]\ndensity.kind = 'logit-normal'\n",
        "[objective]\ndensity = { kind = 'mode', scale = 1.0 }\n",
        "[objective]\nkind = 'guided'\n",
        "[objective]\nkind = 'adversarial'\nreal.kind = 'teacher'\n",
        "[objective]\nkind = 'adversarial'\nreal.kind = 'data'\ncritic_density = { kind = 'mode', scale = 1.0 }\n",
    ];
    let recipes = kinds.map(|kind| format!("{base}{kind}"));
    let recipes: Vec<&str> = recipes.iter().map(String::as_str).collect();
    for (name, expected) in [
        ("Recipe", fields::<Recipe>(&recipes)),
        (
            "AutoencoderRecipe",
            fields::<AutoencoderRecipe>(&["accept_changes = ['steps']"]),
        ),
        ("TextRecipe", fields::<TextRecipe>(&[""])),
    ] {
        let rows = rows().into_iter();
        let rows = rows.filter(|row| row.header == format!("Field of `{name}`"));
        let listed: BTreeSet<String> = rows.flat_map(|row| row.names).collect();
        assert_eq!(listed, expected, "{name}");
    }
}
