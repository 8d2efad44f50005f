//! The pinned npm packages that contain the emoji.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use sha2::{Digest, Sha512};

use crate::files::create_folder;

/// A package and its published checksum (base64 of SHA-512).
struct Package {
    name: &'static str,
    version: &'static str,
    sha512: &'static str,
}

const THREE_D: Package = Package {
    name: "@lobehub/fluent-emoji-3d",
    version: "1.1.0",
    sha512: "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
};
const FLAT: Package = Package {
    name: "@iconify-json/fluent-emoji-flat",
    version: "1.2.6",
    sha512: "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
};
const CONTRAST: Package = Package {
    name: "@iconify-json/fluent-emoji-high-contrast",
    version: "1.2.6",
    sha512: "esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
};
const NAMES: Package = Package {
    name: "emojibase-data",
    version: "17.0.0",
    sha512: "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
};

/// The contents of the packages.
pub(super) struct Packages {
    /// WebP files by code points ("1f44b-1f3fd").
    pub(super) three_d: HashMap<String, Vec<u8>>,
    /// SVG files by name ("waving-hand-medium").
    pub(super) flat: HashMap<String, String>,
    /// SVG files by name, in black and white.
    pub(super) contrast: HashMap<String, String>,
    /// Code points by name and skin tone: 0 without one, 1 (light) to 5 (dark).
    pub(super) codes: HashMap<(String, u8), String>,
}

#[derive(Deserialize)]
struct Icons {
    icons: HashMap<String, Icon>,
    width: u32,
    height: u32,
}

#[derive(Deserialize)]
struct Icon {
    body: String,
    width: Option<u32>,
    height: Option<u32>,
}

#[derive(Deserialize)]
struct Emoji {
    label: String,
    hexcode: String,
    #[serde(default)]
    tone: Option<serde_json::Value>,
    #[serde(default)]
    skins: Vec<Emoji>,
}

/// Fetches the packages missing in the folder, verifies and unpacks all.
pub(super) fn open(cache: &Path) -> anyhow::Result<Packages> {
    create_folder(cache)?;
    let three_d = unpack(&THREE_D, cache, |name| name.ends_with(".webp"))?;
    let stem = |name: String| {
        Path::new(&name)
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let names = unpack(&NAMES, cache, |name| name.ends_with("/en/data.json"))?;
    let (_, names) = names
        .into_iter()
        .next()
        .context("emojibase-data holds no en/data.json")?;
    Ok(Packages {
        three_d: three_d.into_iter().map(|(name, bytes)| (stem(name), bytes)).collect(),
        flat: icons(&FLAT, cache)?,
        contrast: icons(&CONTRAST, cache)?,
        codes: codes(serde_json::from_slice(&names)?),
    })
}

fn icons(package: &Package, cache: &Path) -> anyhow::Result<HashMap<String, String>> {
    let files = unpack(package, cache, |name| name.ends_with("/icons.json"))?;
    let (_, bytes) = files
        .into_iter()
        .next()
        .with_context(|| format!("{} holds no icons.json", package.name))?;
    let Icons { icons, width, height } = serde_json::from_slice(&bytes)?;
    let svg = |icon: Icon| {
        let (width, height) = (icon.width.unwrap_or(width), icon.height.unwrap_or(height));
        let open = format!("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\"");
        format!(
            "{open} width=\"{width}\" height=\"{height}\" color=\"black\">{}</svg>",
            icon.body
        )
    };
    Ok(icons.into_iter().map(|(name, icon)| (name, svg(icon))).collect())
}

fn codes(emojis: Vec<Emoji>) -> HashMap<(String, u8), String> {
    let mut codes = HashMap::new();
    for emoji in emojis {
        let name = slug(&emoji.label);
        codes.insert((name.clone(), 0), emoji.hexcode.to_lowercase());
        for skin in emoji.skins {
            // Pairs of people have one tone each: those are excluded.
            if let Some(tone) = skin.tone.and_then(|tone| tone.as_u64()) {
                codes.insert((name.clone(), tone as u8), skin.hexcode.to_lowercase());
            }
        }
    }
    codes
}

/// Converts a label to a file name of the packages: "woman: red hair" to "woman-red-hair".
fn slug(label: &str) -> String {
    let plain = label.to_lowercase().replace(['’', '\'', '.', '“', '”', '!'], "");
    let words: Vec<&str> = plain
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    words.join("-")
}

/// Returns the wanted files of a package, with their names.
fn unpack(package: &Package, cache: &Path, wanted: impl Fn(&str) -> bool) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let bytes = fetch(package, cache)?;
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes.as_slice()));
    let mut files = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.to_string_lossy().into_owned();
        if wanted(&name) {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            files.push((name, bytes));
        }
    }
    ensure!(
        !files.is_empty(),
        "{} {} holds none of the files that were looked for",
        package.name,
        package.version
    );
    Ok(files)
}

/// Returns the package's file from the folder, or fetches it by `npm pack`.
fn fetch(package: &Package, cache: &Path) -> anyhow::Result<Vec<u8>> {
    let Package { name, version, .. } = package;
    let path: PathBuf = cache.join(format!(
        "{}-{version}.tgz",
        name.trim_start_matches('@').replace('/', "-")
    ));
    if let Ok(bytes) = std::fs::read(&path)
        && is_intact(package, &bytes)
    {
        return Ok(bytes);
    }
    let run = Command::new("npm")
        .args(["pack", "--silent", &format!("{name}@{version}")])
        .current_dir(cache)
        .output();
    let run = run.context("cannot run npm, which fetches the emoji packages; install Node.js")?;
    if !run.status.success() {
        bail!(
            "npm could not fetch {name}@{version}: {}",
            String::from_utf8_lossy(&run.stderr).trim()
        );
    }
    let bytes = std::fs::read(&path).with_context(|| format!("npm wrote no {}", path.display()))?;
    ensure!(
        is_intact(package, &bytes),
        "{} has not the check sum of {name}@{version}; delete it and try again",
        path.display()
    );
    Ok(bytes)
}

/// Returns `true` if the checksum is the published one.
fn is_intact(package: &Package, bytes: &[u8]) -> bool {
    BASE64_STANDARD.encode(Sha512::digest(bytes)) == package.sha512
}
