//! Files that a program will write, checked before any work.

use std::path::{Path, PathBuf};

use anyhow::bail;
use kontext::{Checkpoint, Weights};
use kontext_core::output_path;

/// Names that one message lists.
const LISTED: usize = 3;

/// The files that a run reads and writes, by the flags that name them.
///
/// A file that a flag names replaces an existing file. Names that the program derives, such as the numbered
/// images of a batch, replace none, and no output replaces a file that the run reads, unless it is asked to
/// overwrite them.
#[derive(Debug, Default)]
pub struct Outputs {
    read: Vec<Named>,
    /// Folders of which the run reads some files.
    collections: Vec<Named>,
    written: Vec<Named>,
    overwrite: bool,
    /// The advice to use the flag, of a program that has it.
    advice: &'static str,
}

/// A file, by its flag.
#[derive(Debug)]
struct Named {
    flag: &'static str,
    /// The file itself: its real folder, and links followed.
    file: PathBuf,
}

impl Outputs {
    /// Returns no outputs, of a program with the flag `--overwrite`.
    #[must_use]
    pub fn overwriting(overwrite: bool) -> Self {
        Self {
            overwrite,
            advice: ", or add --overwrite",
            ..Self::default()
        }
    }

    /// Adds a file that the run reads, or a folder of which it reads all files; one that does not exist is ignored.
    pub fn read(&mut self, flag: &'static str, path: &Path) {
        if let Ok(file) = path.canonicalize() {
            self.read.push(Named { flag, file });
        }
    }

    /// Adds a folder of which the run reads these files, whose paths are relative to it. Other files may be written
    /// next to them.
    pub fn collection(&mut self, flag: &'static str, folder: &Path, files: impl IntoIterator<Item = PathBuf>) {
        for file in files {
            self.read(flag, &folder.join(file));
        }
        if let Ok(file) = folder.canonicalize() {
            self.collections.push(Named { flag, file });
        }
    }

    /// Adds all files of a model: weights with their shards, configurations and tokenizers, and the folders of
    /// its parts.
    pub fn model(&mut self, flag: &'static str, model: &Checkpoint) {
        for part in [&model.transformer, &model.vae, &model.clip, &model.t5] {
            self.part(flag, part);
        }
        let tokenizers = [&model.clip_tokenizer, &model.t5_tokenizer];
        tokenizers.into_iter().for_each(|path| self.read(flag, path));
        // What cannot be opened is reported when it is read.
        let files = model.files().unwrap_or_default();
        files.iter().for_each(|path| self.read(flag, path));
    }

    /// Adds weights that the run reads: a file, with the other files of its set and the configuration next to
    /// it, or a folder.
    pub fn weights(&mut self, flag: &'static str, path: &Path) {
        self.part(flag, path);
        if path.is_dir() {
            return;
        }
        // What cannot be opened is reported when it is read.
        for file in Weights::open(path).iter().flat_map(|weights| weights.store().files()) {
            self.read(flag, &file);
        }
    }

    /// Adds a file of weights and the configuration next to it, or a folder.
    fn part(&mut self, flag: &'static str, path: &Path) {
        self.read(flag, path);
        if !path.is_dir() {
            self.read(flag, &path.with_file_name("config.json"));
        }
    }

    /// Adds a file that the run writes.
    ///
    /// # Errors
    /// If it cannot be written, is another output, or is a file that the run reads.
    pub fn file(&mut self, flag: &'static str, path: &Path) -> anyhow::Result<()> {
        kontext_core::check_writable(path)?;
        let file = real(path)?;
        if let Some(other) = self.written.iter().find(|other| same(&other.file, &file)) {
            bail!(
                "{} and {flag} would write one file, {}; give each a name of its own",
                other.flag,
                path.display()
            );
        }
        let exists = file.exists();
        let reads =
            |read: &&Named| exists && (read.file == file || (read.file.is_dir() && file.starts_with(&read.file)));
        if let Some(read) = self.read.iter().find(reads).filter(|_| !self.overwrite) {
            bail!(
                "{flag} would replace {}, which the run reads ({}); choose another name{}",
                path.display(),
                read.flag,
                self.advice
            );
        }
        self.written.push(Named { flag, file });
        Ok(())
    }

    /// Checks a folder that the run writes into: it may not be one that the run reads, nor lie in one. Within a
    /// collection, it may not lie in a subfolder with files of the collection.
    ///
    /// # Errors
    /// If the run reads it, or a folder around it.
    pub fn folder(&self, flag: &'static str, path: &Path) -> anyhow::Result<()> {
        let folder = real_folder(path);
        let mixed = |read: &&Named| {
            let whole = if read.file.is_dir() {
                Some(&*read.file)
            } else {
                read.file.parent().filter(|parent| self.is_within_a_collection(parent))
            };
            whole.is_some_and(|whole| folder.starts_with(whole))
        };
        let mut collections = self.collections.iter();
        let equal = collections.find(|collection| collection.file == folder);
        if let Some(read) = equal.or_else(|| self.read.iter().find(mixed)) {
            bail!(
                "{flag} is {}, in a folder that the run reads ({}); choose another folder",
                path.display(),
                read.flag
            );
        }
        Ok(())
    }

    fn is_within_a_collection(&self, folder: &Path) -> bool {
        let mut collections = self.collections.iter();
        collections.clone().all(|collection| collection.file != folder)
            && collections.any(|collection| folder.starts_with(&collection.file))
    }

    /// Adds an image that the run writes.
    ///
    /// # Errors
    /// Those of [`Outputs::file`], and an extension of no image format.
    pub fn image(&mut self, flag: &'static str, path: &Path) -> anyhow::Result<()> {
        kontext::io::check_image_file(path)?;
        self.file(flag, path)
    }

    /// Adds the images of a batch or a session, whose names are that of `--out` with a number.
    ///
    /// # Errors
    /// Those of [`Outputs::derived`].
    pub fn numbered(&mut self, flag: &'static str, paths: &[PathBuf]) -> anyhow::Result<()> {
        self.derived(flag, "--out", paths)
    }

    /// Adds images under names that the program derives from the value of the flag `from`.
    ///
    /// # Errors
    /// Those of [`Outputs::image`], and if there are files of these names.
    pub fn derived(&mut self, flag: &'static str, from: &str, paths: &[PathBuf]) -> anyhow::Result<()> {
        let exist: Vec<String> = paths
            .iter()
            .filter(|path| path.is_file() && !self.overwrite)
            .map(|path| path.display().to_string())
            .collect();
        if !exist.is_empty() {
            let more = match exist.len().saturating_sub(LISTED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let listed = exist.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ");
            bail!(
                "{flag} would replace {listed}{more}; choose another {from}{}",
                self.advice
            );
        }
        paths.iter().try_for_each(|path| self.image(flag, path))
    }
}

/// Returns the real path of a folder, of which the last parts may not exist yet.
fn real_folder(path: &Path) -> PathBuf {
    let path = Path::new(".").join(path);
    let real = |part: &Path| Some(part.canonicalize().ok()?.join(path.strip_prefix(part).ok()?));
    path.ancestors().find_map(real).unwrap_or_else(|| path.clone())
}

/// Returns the file that writing to `path` creates or replaces, in its real folder.
fn real(path: &Path) -> anyhow::Result<PathBuf> {
    let target = output_path(path)?;
    if let Ok(file) = target.canonicalize() {
        return Ok(file);
    }
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new(".")).canonicalize()?;
    Ok(folder.join(target.file_name().unwrap_or_default()))
}

/// Returns `true` if both name one file, also on a file system that takes capital letters for small ones.
fn same(a: &Path, b: &Path) -> bool {
    let lower = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    a == b || (a.parent() == b.parent() && lower(a) == lower(b) && a.parent().is_some_and(ignores_case))
}

/// Returns `true` if a file in this folder is also found under its name in capital letters.
fn ignores_case(folder: &Path) -> bool {
    let probe = tempfile::Builder::new().prefix(".kontext-case-").tempfile_in(folder);
    let capitals = |probe: &tempfile::NamedTempFile| probe.path().file_name()?.to_str().map(str::to_uppercase);
    probe.is_ok_and(|probe| capitals(&probe).is_some_and(|name| folder.join(name).exists()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// An empty folder, for the files of a run.
    struct Desk(tempfile::TempDir);

    impl Desk {
        fn new() -> anyhow::Result<Self> {
            Ok(Self(tempfile::tempdir()?))
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }
    }

    fn words(result: anyhow::Result<()>) -> String {
        result.map_or_else(|error| format!("{error:#}"), |()| "accepted".to_owned())
    }

    #[test]
    fn two_outputs_of_one_file_are_refused_under_any_spelling() {
        let desk = Desk::new().unwrap();
        fs::create_dir(desk.path("deep")).unwrap();
        for name in ["a.png", "./a.png", "deep/../a.png", "deep/.././a.png"] {
            let mut outputs = Outputs::default();
            outputs.image("--out", &desk.path("a.png")).unwrap();
            let words = words(outputs.file("--dump", &desk.path(name)));
            assert!(
                words.starts_with("--out and --dump would write one file"),
                "{name}: {words}"
            );
        }
        let mut outputs = Outputs::default();
        outputs.image("--out", &desk.path("a.png")).unwrap();
        outputs.file("--dump", &desk.path("deep/a.png")).unwrap();
        // Capital letters make another file, unless the file system says otherwise.
        let capital = words(outputs.image("--compare", &desk.path("A.png")));
        assert_eq!(capital == "accepted", !ignores_case(desk.0.path()), "{capital}");
    }

    #[cfg(unix)]
    #[test]
    fn two_outputs_of_one_file_are_refused_through_links() {
        use std::os::unix::fs::symlink;
        let desk = Desk::new().unwrap();
        symlink("a.png", desk.path("link.png")).unwrap();
        symlink(desk.0.path(), desk.path("here")).unwrap();
        for exists in [false, true] {
            if exists {
                fs::write(desk.path("a.png"), "").unwrap();
            }
            for name in ["link.png", "here/a.png", "here/link.png"] {
                let mut outputs = Outputs::default();
                outputs.image("--out", &desk.path("a.png")).unwrap();
                let words = words(outputs.image("--compare", &desk.path(name)));
                assert!(words.contains("would write one file"), "{name}: {words}");
            }
        }
    }

    #[test]
    fn a_file_that_is_read_is_only_replaced_on_request() {
        let desk = Desk::new().unwrap();
        fs::create_dir(desk.path("model")).unwrap();
        for name in ["in.png", "model/config.json"] {
            fs::write(desk.path(name), "").unwrap();
        }
        let all = |overwrite| {
            let mut outputs = Outputs::overwriting(overwrite);
            outputs.read("--image", &desk.path("in.png"));
            outputs.read("--model", &desk.path("model"));
            outputs.read("--lora", &desk.path("absent"));
            outputs
        };
        let image = words(all(false).image("--out", &desk.path("in.png")));
        assert!(
            image.contains("which the run reads (--image)") && image.ends_with(", or add --overwrite"),
            "{image}"
        );
        let model = words(all(false).file("--dump", &desk.path("model/config.json")));
        assert!(model.contains("which the run reads (--model)"), "{model}");
        for (overwrite, name) in [(true, "in.png"), (false, "out.png"), (false, "model/out.png")] {
            assert_eq!(
                words(all(overwrite).image("--out", &desk.path(name))),
                "accepted",
                "{name}"
            );
        }
    }

    #[test]
    fn next_to_the_files_of_a_collection_others_are_written_again_and_again() {
        let desk = Desk::new().unwrap();
        kontext_core::create_folder(desk.path("data/images")).unwrap();
        for name in [
            "data/metadata.jsonl",
            "data/images/a.png",
            "data/t.csv",
            "data/images/t.csv",
        ] {
            fs::write(desk.path(name), "").unwrap();
        }
        let mut outputs = Outputs::default();
        let files = ["metadata.jsonl", "images/a.png", "absent.png"].map(PathBuf::from);
        outputs.collection("--data", &desk.path("data"), files);
        for name in ["data/metadata.jsonl", "data/images/a.png"] {
            let words = words(outputs.file("--csv", &desk.path(name)));
            assert!(words.contains("which the run reads (--data)"), "{name}: {words}");
        }
        for name in ["data/t.csv", "data/images/t.csv", "data/new.csv"] {
            assert_eq!(words(outputs.file("--csv", &desk.path(name))), "accepted", "{name}");
        }
    }

    #[test]
    fn a_run_is_not_written_among_the_files_that_it_reads() {
        let desk = Desk::new().unwrap();
        for folder in ["bench/test/images", "model", "data"] {
            kontext_core::create_folder(desk.path(folder)).unwrap();
        }
        for name in ["bench/test/metadata.jsonl", "bench/test/images/a.png", "data/lora"] {
            fs::write(desk.path(name), "").unwrap();
        }
        let mut outputs = Outputs::default();
        outputs.read("--model", &desk.path("model"));
        outputs.read("--lora", &desk.path("data/lora"));
        outputs.collection("--bench", &desk.path("bench"), []);
        let files = ["metadata.jsonl", "images/a.png"].map(PathBuf::from);
        outputs.collection("--bench", &desk.path("bench/test"), files);
        for (name, flag) in [
            ("model", "--model"),
            ("model/run/a", "--model"),
            ("bench", "--bench"),
            ("bench/test", "--bench"),
            ("bench/test/images", "--bench"),
            ("bench/test/images/run", "--bench"),
        ] {
            let words = words(outputs.folder("--out", &desk.path(name)));
            assert!(
                words.contains(&format!("in a folder that the run reads ({flag})")),
                "{name}: {words}"
            );
        }
        for name in ["bench/run", "bench/test/run", "data", "data/run"] {
            assert_eq!(words(outputs.folder("--out", &desk.path(name))), "accepted", "{name}");
        }
    }

    #[test]
    fn the_other_files_of_a_set_of_weights_are_read_too() {
        let desk = Desk::new().unwrap();
        let names = [1, 2].map(|number| format!("a-0000{number}-of-00002.safetensors"));
        for name in &names {
            let tensors = [(name.clone(), kontext::Tensor::from_slice(&[1.0_f32]))];
            kontext_formats::save(desk.path(name), &tensors, None).unwrap();
        }
        for name in ["config.json", "b.safetensors"] {
            fs::write(desk.path(name), "").unwrap();
        }
        let mut outputs = Outputs::default();
        outputs.weights("--vae", &desk.path(&names[0]));
        for name in [&names[0], &names[1], "config.json"] {
            let words = words(outputs.file("--out", &desk.path(name)));
            assert!(words.contains("which the run reads (--vae)"), "{name}: {words}");
        }
        assert_eq!(words(outputs.file("--out", &desk.path("b.safetensors"))), "accepted");
    }

    #[test]
    fn derived_names_replace_no_file_unless_on_request() {
        let desk = Desk::new().unwrap();
        let names: Vec<PathBuf> = (1..6).map(|n| desk.path(&format!("a-{n}.png"))).collect();
        for name in &names {
            fs::write(name, "").unwrap();
        }
        let refused = words(Outputs::overwriting(false).numbered("--batch", &names));
        assert!(
            refused.contains("a-1.png, ") && refused.contains("a-3.png and 2 more; choose another --out"),
            "{refused}"
        );
        assert_eq!(
            words(Outputs::overwriting(true).numbered("--batch", &names)),
            "accepted"
        );
        fs::create_dir(desk.path("a-6.png")).unwrap();
        let folder = words(Outputs::overwriting(true).numbered("--batch", &[desk.path("a-6.png")]));
        assert!(folder.contains("it is a folder"), "{folder}");
    }
}
