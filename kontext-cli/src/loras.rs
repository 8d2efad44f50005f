//! The LoRAs of a command line.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::bail;
use kontext::{Checkpoint, Lora, LoraUse};

use crate::args::LoadArgs;
use crate::outputs::Outputs;

impl LoadArgs {
    /// Returns the files of the LoRAs; a folder's is the one in it.
    ///
    /// # Errors
    /// If a folder has none or several, or a file is given twice.
    pub fn lora_files(&self) -> anyhow::Result<Vec<PathBuf>> {
        let files: Vec<PathBuf> = self.lora.iter().map(Lora::find).collect::<kontext::Result<_>>()?;
        let mut seen = BTreeSet::new();
        for file in &files {
            if !seen.insert(file.canonicalize().unwrap_or_else(|_| file.clone())) {
                bail!(
                    "{} is given to --lora twice; give it once, with a higher --lora-scale",
                    file.display()
                );
            }
        }
        Ok(files)
    }

    /// Adds the files that a run with these flags reads, of `model` and the LoRAs, to those that no output may replace.
    ///
    /// # Errors
    /// Those of [`LoadArgs::lora_files`].
    pub fn inputs(&self, model: &Checkpoint, outputs: &mut Outputs) -> anyhow::Result<()> {
        outputs.model("--model", model);
        for file in self.lora_files()? {
            outputs.weights("--lora", &file);
        }
        Ok(())
    }

    /// Returns the LoRAs with their scales and options. Those of equal names get a number, in their order:
    /// `ink`, `ink-2`.
    ///
    /// # Errors
    /// Those of [`LoadArgs::lora_files`]; if there are more scales than LoRAs.
    pub fn loras(&self) -> anyhow::Result<Vec<LoraUse>> {
        let files = self.lora_files()?;
        let (scales, loras) = (self.lora_scale.len(), files.len());
        if scales > loras {
            bail!(
                "--lora-scale is given {scales} times, and --lora {loras} times; give at most one scale for each LoRA"
            );
        }
        let scales = self.lora_scale.iter().copied().map(Some).chain(std::iter::repeat(None));
        let mut names = BTreeSet::new();
        let mut use_of = |(file, scale): (&PathBuf, Option<f64>)| {
            let patterns = self.allow_unmatched.iter();
            let lora = LoraUse::new(file).named(free_name(file, &mut names));
            let lora = match scale {
                Some(scale) => lora.scale(scale),
                None => lora,
            };
            let lora = patterns.fold(lora, LoraUse::allow_unmatched);
            if self.allow_no_effect {
                lora.allow_no_effect()
            } else {
                lora
            }
        };
        Ok(files.iter().zip(scales).map(&mut use_of).collect())
    }
}

/// Returns the name of a file's LoRA, with a number if it is taken, and takes it.
fn free_name(file: &Path, taken: &mut BTreeSet<String>) -> String {
    let name = Lora::name_of(file);
    let numbered = |number: usize| {
        if number == 1 {
            name.clone()
        } else {
            format!("{name}-{number}")
        }
    };
    let free = (1..).map(numbered).find(|name| !taken.contains(name));
    let free = free.unwrap_or_else(|| name.clone());
    taken.insert(free.clone());
    free
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        load: LoadArgs,
    }

    fn loras(words: &[&str]) -> anyhow::Result<Vec<LoraUse>> {
        let words = std::iter::once("program").chain(words.iter().copied());
        Program::try_parse_from(words)?.load.loras()
    }

    #[test]
    fn loras_of_one_file_name_have_names_of_their_own() {
        let files = [
            "a/pytorch_lora_weights.safetensors",
            "b/pytorch_lora_weights.safetensors",
            "c/ink.safetensors",
            "d/ink.safetensors",
            "ink-2.safetensors",
        ];
        let words: Vec<&str> = files.iter().flat_map(|file| ["--lora", file]).collect();
        let names: Vec<String> = loras(&words).unwrap().iter().map(LoraUse::name).collect();
        assert_eq!(names, ["a", "b", "ink", "ink-2", "ink-2-2"]);
    }

    #[test]
    fn one_file_is_not_given_twice() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("adapter_model.safetensors");
        std::fs::write(&file, "").unwrap();
        let [folder, file] = [folder.path(), &file].map(|path| path.to_str().unwrap());
        let error = loras(&["--lora", folder, "--lora", file]).unwrap_err().to_string();
        assert!(
            error.ends_with("is given to --lora twice; give it once, with a higher --lora-scale"),
            "{error}"
        );
    }

    #[test]
    fn a_scale_without_a_lora_is_an_error() {
        let error = loras(&["--lora", "a", "--lora-scale", "0.5", "--lora-scale", "0.1"]);
        let error = error.unwrap_err().to_string();
        assert!(error.ends_with("give at most one scale for each LoRA"), "{error}");
        // Fewer scales: the other LoRAs are at those of their files.
        let error = loras(&["--lora", "a", "--lora", "b", "--lora-scale", "0.5"]);
        assert_eq!(error.unwrap().len(), 2);
    }

    #[test]
    fn options_of_loras_need_a_lora() {
        for words in [
            &["--allow-unmatched", "*"][..],
            &["--allow-no-effect"],
            &["--lora-scale", "1"],
        ] {
            let error = loras(words).unwrap_err().to_string();
            assert!(error.contains("--lora <FILE>"), "{error}");
        }
    }
}
