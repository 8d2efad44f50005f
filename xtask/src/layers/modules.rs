//! The top-level modules of one crate and the paths by which they name each other.
//!
//! The module tree is followed from the root file by `mod name;`, without the parts that only tests compile. Its files
//! are read as tokens, so that paths in the words of a macro are found too. Doc comments and plain strings hold no
//! paths; strings in other attributes do (`#[serde(with = "crate::name")]`).
//!
//! The root file itself is no node: its items, and what it does with the modules, connect nothing. What it imports or
//! re-exports is known by the module that it comes from. Macros by their textual scope are not followed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use proc_macro2::{TokenStream, TokenTree};

use super::paths::{self, Spelled, is_punct, is_separator, name};
use super::tests_only;
use crate::failure::Failure;

/// A place where a module names another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Witness {
    /// From the root of the workspace.
    pub(super) file: PathBuf,
    pub(super) line: usize,
    /// The path as it is spelled.
    pub(super) path: String,
}

/// The witnesses of each pair (user, used) of top-level modules, in the order of files and lines.
pub(super) type Edges = BTreeMap<(String, String), BTreeSet<Witness>>;

/// Reads the crate whose root file is `root_file`, a path from `workspace`.
pub(super) fn edges(workspace: &Path, root_file: &Path) -> Result<Edges, Failure> {
    let mut reader = Reader {
        workspace,
        modules: BTreeSet::new(),
        imports: Vec::new(),
        uses: Vec::new(),
    };
    let folder = root_file.parent().unwrap_or(Path::new("")).to_path_buf();
    reader.read_file(root_file, folder, &[])?;
    Ok(reader.edges())
}

struct Reader<'a> {
    workspace: &'a Path,
    /// The top-level modules.
    modules: BTreeSet<String>,
    /// `use` declarations of the root file.
    imports: Vec<Spelled>,
    uses: Vec<Use>,
}

/// A path that a module names, resolved to one from the root of the crate.
struct Use {
    /// The top-level module that names it.
    from: String,
    to: Vec<String>,
    glob: bool,
    witness: Witness,
}

/// The place of tokens in the module tree.
#[derive(Clone)]
struct Place<'a> {
    file: &'a Path,
    /// The folder of the files of child modules.
    children: PathBuf,
    /// The path of the module from the root of the crate.
    module: Vec<String>,
}

impl Reader<'_> {
    fn read_file(&mut self, file: &Path, children: PathBuf, module: &[String]) -> Result<(), Failure> {
        let path = self.workspace.join(file);
        let source = fs::read_to_string(&path).map_err(Failure::source_io(&path))?;
        let tokens = TokenStream::from_str(&source).map_err(|error| Failure::Syntax {
            line: error.span().start().line,
            path: path.clone(),
        })?;
        let place = Place {
            file,
            children,
            module: module.to_vec(),
        };
        self.read(tokens, &place)
    }

    fn read(&mut self, stream: TokenStream, place: &Place<'_>) -> Result<(), Failure> {
        let tokens: Vec<_> = stream.into_iter().collect();
        let mut own_path = None;
        let mut index = 0;
        while let Some(token) = tokens.get(index) {
            index += 1;
            match token {
                TokenTree::Punct(_) if is_punct(token, '#') => {
                    let inner = tokens.get(index).is_some_and(|token| is_punct(token, '!'));
                    let Some(TokenTree::Group(attribute)) = tokens.get(index + usize::from(inner)) else {
                        continue;
                    };
                    index += usize::from(inner) + 1;
                    let attribute = attribute.stream();
                    if tests_only::is_tests_only(&attribute) {
                        index = if inner {
                            tokens.len()
                        } else {
                            tests_only::after_item(&tokens, index)
                        };
                    } else {
                        own_path = path_attribute(&attribute).or(own_path);
                        self.read_attribute(attribute, place)?;
                    }
                }
                TokenTree::Ident(word) if word == "mod" => {
                    let Some(TokenTree::Ident(ident)) = tokens.get(index) else {
                        continue;
                    };
                    let child = name(&ident.to_string());
                    match tokens.get(index + 1) {
                        Some(TokenTree::Group(body)) => {
                            let inside = self.enter(place, &child);
                            self.read(body.stream(), &inside)?;
                        }
                        Some(end) if is_punct(end, ';') => self.read_child(place, &child, own_path.take())?,
                        _ => continue,
                    }
                    index += 2;
                }
                TokenTree::Ident(word) if word == "use" && place.module.is_empty() => {
                    let (imports, end) = paths::read(&tokens, index);
                    self.imports.extend(imports);
                    index = end;
                }
                TokenTree::Ident(word)
                    if ["crate", "self", "super"].iter().any(|root| word == root) && is_separator(&tokens, index) =>
                {
                    let (spelled, end) = paths::read(&tokens, index - 1);
                    for path in spelled {
                        self.note(&path, place);
                    }
                    index = end;
                }
                TokenTree::Group(group) => self.read(group.stream(), place)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads `mod child;`.
    fn read_child(&mut self, place: &Place<'_>, child: &str, own_path: Option<String>) -> Result<(), Failure> {
        let inside = self.enter(place, child);
        if let Some(path) = own_path {
            let file = place.file.with_file_name(path);
            let folder = file.parent().unwrap_or(Path::new("")).to_path_buf();
            return self.read_file(&file, folder, &inside.module);
        }
        let in_folder = inside.children.join("mod.rs");
        let file = if self.workspace.join(&in_folder).exists() {
            in_folder
        } else {
            place.children.join(format!("{child}.rs"))
        };
        self.read_file(&file, inside.children.clone(), &inside.module)
    }

    fn enter<'p>(&mut self, place: &Place<'p>, child: &str) -> Place<'p> {
        if place.module.is_empty() {
            self.modules.insert(child.to_owned());
        }
        let mut module = place.module.clone();
        module.push(child.to_owned());
        Place {
            file: place.file,
            children: place.children.join(child),
            module,
        }
    }

    /// Reads the words of an attribute, and its strings as words too.
    fn read_attribute(&mut self, attribute: TokenStream, place: &Place<'_>) -> Result<(), Failure> {
        let tokens: Vec<_> = attribute.into_iter().collect();
        if matches!(&tokens[..], [TokenTree::Ident(word), ..] if word == "doc") {
            return Ok(());
        }
        for token in &tokens {
            match token {
                TokenTree::Literal(literal) => {
                    let text = literal.to_string();
                    let text = text.trim_matches('"');
                    if let Ok(words) = TokenStream::from_str(text) {
                        let at = literal.span().start().line;
                        let (spelled, _) = paths::read(&words.into_iter().collect::<Vec<_>>(), 0);
                        for path in spelled {
                            self.note(&Spelled { line: at, ..path }, place);
                        }
                    }
                }
                TokenTree::Group(group) => self.read_attribute(group.stream(), place)?,
                _ => {}
            }
        }
        self.read(tokens.into_iter().collect(), place)
    }

    fn note(&mut self, path: &Spelled, place: &Place<'_>) {
        let Some(from) = place.module.first() else {
            return;
        };
        let Some(to) = resolve(&path.segments, &place.module) else {
            return;
        };
        let glob = if path.glob { "::*" } else { "" };
        self.uses.push(Use {
            from: from.clone(),
            to,
            glob: path.glob,
            witness: Witness {
                file: place.file.to_path_buf(),
                line: path.line,
                path: format!("{}{glob}", path.segments.join("::")),
            },
        });
    }

    fn edges(self) -> Edges {
        let imports = self.imported();
        let mut edges = Edges::new();
        for used in self.uses {
            let targets: BTreeSet<&String> = match used.to.first() {
                Some(first) => match self.modules.get(first) {
                    Some(module) => [module].into(),
                    None => imports
                        .iter()
                        .filter(|(name, _)| name.as_ref().is_none_or(|name| name == first))
                        .map(|(_, module)| module)
                        .collect(),
                },
                // `use crate::*` may be for any module and any import.
                None if used.glob => self.modules.iter().collect(),
                None => continue,
            };
            for target in targets {
                if *target != used.from {
                    let pair = (used.from.clone(), target.clone());
                    edges.entry(pair).or_default().insert(used.witness.clone());
                }
            }
        }
        edges
    }

    /// The names that the root file imports from its modules, with these modules; a glob has any name.
    fn imported(&self) -> Vec<(Option<String>, String)> {
        self.imports
            .iter()
            .filter_map(|import| {
                let path = resolve(&import.segments, &[]).unwrap_or_else(|| import.segments.clone());
                let module = self.modules.get(path.first()?)?;
                let name = import.alias.as_ref().or(path.last());
                Some((name.filter(|_| !import.glob).cloned(), module.clone()))
            })
            .collect()
    }
}

/// The path from the root of the crate, if `segments` start at the root or at `module`.
fn resolve(segments: &[String], module: &[String]) -> Option<Vec<String>> {
    let (first, rest) = segments.split_first()?;
    let mut path = match first.as_str() {
        "crate" => Vec::new(),
        "self" => module.to_vec(),
        "super" => module.split_last()?.1.to_vec(),
        _ => return None,
    };
    for segment in rest {
        match segment.as_str() {
            "self" => {}
            "super" => {
                path.pop()?;
            }
            name => path.push(name.to_owned()),
        }
    }
    Some(path)
}

/// The file that `#[path = "…"]` names.
fn path_attribute(attribute: &TokenStream) -> Option<String> {
    let tokens: Vec<_> = attribute.clone().into_iter().collect();
    match &tokens[..] {
        [TokenTree::Ident(word), _, TokenTree::Literal(file)] if word == "path" => {
            Some(file.to_string().trim_matches('"').to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The edges of a crate with these files, as `user -> used file:line path`.
    fn edges_of(files: &[(&str, &str)]) -> Vec<String> {
        let folder = tempfile::tempdir().expect("created");
        for (file, source) in files {
            let path = folder.path().join("src").join(file);
            fs::create_dir_all(path.parent().expect("a folder")).expect("created");
            fs::write(path, source).expect("written");
        }
        let edges = edges(folder.path(), Path::new("src/lib.rs")).expect("read");
        edges
            .iter()
            .flat_map(|((from, to), witnesses)| {
                witnesses.iter().map(move |Witness { file, line, path }| {
                    let file = file.strip_prefix("src").expect("in src").display();
                    format!("{from} -> {to} {file}:{line} {path}")
                })
            })
            .collect()
    }

    const ROOT: (&str, &str) = (
        "lib.rs",
        "mod a; mod b; mod c; pub use b::B; use crate::c::{self as d, C as E};",
    );

    #[test]
    fn paths_of_all_forms_are_found() {
        let a = "use crate::{\n  b::X,\n  c,\n};\n\
                 fn f() { let x = crate::b::f::<u8>(vec![super::c::g()]); }\n\
                 pub(in crate::b) struct A;\n\
                 #[serde(with = \"crate::c\")] struct B(self::super::b::Y);\n\
                 macro_rules! m { () => { $crate::c::h() } }\n";
        assert_eq!(
            edges_of(&[ROOT, ("a.rs", a), ("b.rs", ""), ("c.rs", "")]),
            [
                "a -> b a.rs:2 crate::b::X",
                "a -> b a.rs:5 crate::b::f",
                "a -> b a.rs:6 crate::b",
                "a -> b a.rs:7 self::super::b::Y",
                "a -> c a.rs:3 crate::c",
                "a -> c a.rs:5 super::c::g",
                "a -> c a.rs:7 crate::c",
                "a -> c a.rs:8 crate::c::h",
            ]
        );
    }

    #[test]
    fn names_of_the_root_lead_to_the_modules_they_come_from() {
        let a = "use crate::B;\nuse crate::{E, d::f, Unknown};\nuse super::Error;\n";
        assert_eq!(
            edges_of(&[ROOT, ("a.rs", a), ("b.rs", ""), ("c.rs", "")]),
            [
                "a -> b a.rs:1 crate::B",
                "a -> c a.rs:2 crate::E",
                "a -> c a.rs:2 crate::d::f"
            ]
        );
        let globs = ("lib.rs", "mod a; mod b; mod c; pub use b::*;");
        assert_eq!(
            edges_of(&[
                globs,
                ("a.rs", "use crate::Any;"),
                ("b.rs", "use super::*;"),
                ("c.rs", "")
            ]),
            [
                "a -> b a.rs:1 crate::Any",
                "b -> a b.rs:1 super::*",
                "b -> c b.rs:1 super::*"
            ]
        );
    }

    #[test]
    fn files_below_a_module_belong_to_it() {
        let files = [
            (
                "lib.rs",
                "mod a; mod b;\n#[path = \"odd/place.rs\"] mod c; mod e { mod f; use super::b; }",
            ),
            (
                "a.rs",
                "mod inner;\nmod written { use super::super::b::X; use super::b::Y; }",
            ),
            ("a/inner.rs", "mod deep;"),
            (
                "a/inner/deep.rs",
                "use super::super::super::c;\nuse super::super::c as own;",
            ),
            ("b/mod.rs", "mod inner;"),
            ("b/inner.rs", "use super::super::a;"),
            ("odd/place.rs", "use crate::e;"),
            ("e/f.rs", "use super::super::a;"),
        ];
        assert_eq!(
            edges_of(&files),
            [
                "a -> b a.rs:2 super::super::b::X",
                "a -> c a/inner/deep.rs:1 super::super::super::c",
                "b -> a b/inner.rs:1 super::super::a",
                "c -> e odd/place.rs:1 crate::e",
                "e -> a e/f.rs:1 super::super::a",
                "e -> b lib.rs:2 super::b",
            ]
        );
    }

    #[test]
    fn tests_comments_strings_and_the_root_name_nothing() {
        let lib = (
            "lib.rs",
            "mod a; mod b; fn f() { crate::a::f(crate::b::g()) } mod own { use self::inner::X; }",
        );
        let a = "//! See [`crate::b`].\n\
                 /// See [`crate::b::X`].\n// use crate::b;\n\
                 fn f(self) { self.b; \"crate::b\"; super_::b(); x::crate_::b() }\n\
                 #[cfg(test)] use crate::{b, b::X};\n\
                 struct S { #[cfg(test)] x: crate::b::X, y: Y }\n\
                 #[test] fn t() { crate::b::f() }\n\
                 #[cfg(test)] mod tests;\n\
                 #[cfg(all(test, unix))] mod more { use crate::b; }\n";
        assert_eq!(
            edges_of(&[lib, ("a.rs", a), ("b.rs", "#![cfg(test)] use crate::a;")]),
            [""; 0]
        );
    }

    #[test]
    fn what_follows_a_test_item_counts() {
        let a = "#[cfg(test)] use crate::{b, c};\nuse crate::b::X;\n#[cfg(test)] fn f() {}\nuse crate::b::Y;\n\
                 #[cfg(any(test, unix))] use crate::b::Z;\n";
        assert_eq!(
            edges_of(&[ROOT, ("a.rs", a), ("b.rs", ""), ("c.rs", "")]),
            [
                "a -> b a.rs:2 crate::b::X",
                "a -> b a.rs:4 crate::b::Y",
                "a -> b a.rs:5 crate::b::Z"
            ]
        );
    }

    #[test]
    fn a_missing_module_and_broken_source_are_told_with_their_file() {
        let folder = tempfile::tempdir().expect("created");
        let root = Path::new("lib.rs");
        for (source, part) in [("mod absent;", "absent.rs"), ("\nfn f() { (", "lib.rs:2")] {
            fs::write(folder.path().join(root), source).expect("written");
            let failure = edges(folder.path(), root).expect_err("refused").to_string();
            assert!(failure.contains(part), "{failure}");
        }
    }
}
