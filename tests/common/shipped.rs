//! The shipped model, and held-out edits of its card.

use std::path::{Path, PathBuf};

use kontext::image::{RgbImage, imageops};
use kontext::open_image;

/// Edits: the names of their strips, and their instructions.
pub const EDITS: [(&str, &str); 8] = [
    ("character-occupation", "make her a health worker"),
    ("compound-background", "make the background pink in flat style"),
    ("compound-letter", "change the text to ab in high contrast style"),
    ("global-invert", "invert the colours"),
    ("local-colour", "make the square brown"),
    ("local-hair", "give them white hair"),
    ("local-moon", "make it a waxing crescent moon"),
    ("text-keycap", "change the number to 4"),
];

/// Returns a path in the model's folder, or with "" the folder.
pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("models/kontext-emoji")
        .join(name)
}

/// Returns the source of an edit: a strip begins with it, at twice its size.
pub fn source(name: &str) -> RgbImage {
    let strip = open_image(path("pictures").join(format!("{name}.png"))).unwrap();
    let twice = imageops::crop_imm(&strip, 0, 0, 128, 128).to_image();
    imageops::resize(&twice, 64, 64, imageops::FilterType::Nearest)
}
