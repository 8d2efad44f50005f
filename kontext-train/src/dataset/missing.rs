//! The error for a folder without `metadata.jsonl`.

use std::path::{Path, PathBuf};

use kontext_core::Error;

/// A line as it should be, for messages.
pub(super) const EXAMPLE: &str = r#"{"source": "a.png", "target": "b.png", "instruction": "make it red"}"#;
/// Extensions of images and of captions, as other trainers have them side by side.
const IMAGES: [&str; 4] = ["png", "jpg", "jpeg", "webp"];
const CAPTIONS: [&str; 2] = ["txt", "caption"];
/// Entries of a folder that are looked at.
const LOOKED_AT: usize = 10_000;

/// Returns the error, with the way from a folder of images with captions, as kohya's scripts and ai-toolkit
/// read it.
pub(super) fn missing(folder: &Path) -> Error {
    let reason = match captioned(folder) {
        Some((image, caption)) => {
            let line = serde_json::json!({"target": image.to_string_lossy(), "instruction": "…"});
            format!(
                "there is no metadata.jsonl; the caption of {:?} is in {:?}, as other trainers have it: write a line for \
                 each image, such as {line}, with its caption, and with `source` for the image to edit",
                image.display().to_string(),
                caption.display().to_string()
            )
        }
        None => {
            format!("there is no metadata.jsonl; expected that file, with a line such as {EXAMPLE} for each example")
        }
    };
    Error::config(folder, reason)
}

/// Returns an image with a caption of its name, in the folder or one in it, relative to the folder.
fn captioned(folder: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut folders = vec![folder.to_owned()];
    folders.extend(entries(folder).into_iter().filter(|path| path.is_dir()));
    folders.iter().flat_map(|folder| entries(folder)).find_map(|image| {
        let extension = image.extension()?.to_str()?.to_ascii_lowercase();
        let captions = CAPTIONS.map(|extension| image.with_extension(extension));
        let caption = captions.into_iter().find(|caption| caption.is_file())?;
        let relative = |path: &Path| path.strip_prefix(folder).ok().map(Path::to_owned);
        IMAGES
            .contains(&extension.as_str())
            .then(|| Some((relative(&image)?, relative(&caption)?)))?
    })
}

/// Returns the paths in a folder, in order; none if it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let read = std::fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = read
        .take(LOOKED_AT)
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(files: &[&str]) -> String {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            kontext_core::create_folder(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let error = missing(folder.path());
        std::error::Error::source(&error).unwrap().to_string()
    }

    #[test]
    fn a_folder_of_images_with_captions_is_answered_with_the_line_to_write() {
        for files in [["a.txt", "x.PNG", "x.txt"], ["10_cat/x.PNG", "10_cat/x.txt", "a.json"]] {
            let image = files.into_iter().find(|file| file.ends_with("PNG")).unwrap();
            let reason = reason(&files);
            assert!(reason.contains(&format!("the caption of {image:?}")), "{reason}");
            assert!(
                reason.contains(&format!("{{\"instruction\":\"…\",\"target\":\"{image}\"}}")),
                "{reason}"
            );
        }
        for files in [&[][..], &["x.png"], &["x.txt"], &["x.png", "y.txt"]] {
            let reason = reason(files);
            assert!(
                reason.contains("expected that file") && reason.contains(EXAMPLE),
                "{reason}"
            );
        }
    }
}
