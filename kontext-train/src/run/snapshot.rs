//! The saved state of a run, from which it resumes to the same bits.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use kontext_core::{Error, Result, Stage, Tensor, check};
use kontext_nn::Weights;

use crate::optim::{AdamW, Ema, Learner, Params};

const MEAN: &str = "optimizer.mean";
const SQUARE: &str = "optimizer.square";
const VALUES: &str = "values";
const AVERAGE: &str = "average";
const OPTIMIZER_STEPS: &str = "optimizer_steps";
const LAYOUT: &str = "layout";

/// Trained values, optimizer state, moving average and step, read from a file.
#[derive(Debug)]
pub struct Snapshot {
    weights: Weights,
    /// Finished steps.
    pub step: u64,
    /// Further text of the file, such as the recipe.
    pub facts: BTreeMap<String, String>,
}

impl Snapshot {
    /// Writes a state. The file appears whole or not at all, so that a run killed while it saves keeps its
    /// last state.
    ///
    /// # Errors
    /// [`Error::NotFinite`] for values that are NaN or infinite, [`Error::Io`] if the file cannot be written; the
    /// file before is then kept.
    pub fn save(
        path: impl AsRef<Path>,
        params: &Params,
        optimizer: &AdamW,
        average: Option<&Ema>,
        step: u64,
        facts: &BTreeMap<String, String>,
    ) -> Result<()> {
        let mut contents = Contents::new(step, facts);
        contents.add("", params, optimizer, average)?;
        kontext_formats::save(path, &contents.tensors, Some(contents.text))
    }

    /// As [`Snapshot::save`], of all learners of a run and its further tensors in one file.
    pub(crate) fn save_learners(
        path: &Path,
        learners: &[&Learner],
        records: Vec<(String, Tensor)>,
        step: u64,
        facts: &BTreeMap<String, String>,
    ) -> Result<()> {
        let mut contents = Contents::new(step, facts);
        contents.tensors = records;
        for learner in learners {
            contents.add(
                learner.prefix(),
                &learner.params,
                &learner.optimizer,
                learner.ema.as_ref(),
            )?;
        }
        kontext_formats::save(path, &contents.tensors, Some(contents.text))
    }

    /// Opens a state.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, a checkpoint error if it is not a state.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let weights = Weights::open(path.as_ref())?;
        let mut facts = weights.store().metadata();
        let step = facts.remove("step").and_then(|s| s.parse().ok());
        let step = step.ok_or_else(|| Error::config(path.as_ref(), "it is no state of a training run: no `step`"))?;
        Ok(Self { weights, step, facts })
    }

    pub(crate) fn path(&self) -> &Path {
        self.weights.path()
    }

    /// Returns the further tensor of this name, if there is one.
    pub(crate) fn record(&self, name: &str) -> Result<Option<Tensor>> {
        let read = || self.weights.raw(name);
        self.weights.contains(name).then(read).transpose()
    }

    /// Copies the state into the parts of a run.
    ///
    /// # Errors
    /// A checkpoint error if the state is of other tensors, or if a value is NaN or infinite.
    pub fn restore(&self, params: &Params, optimizer: &mut AdamW, average: Option<&mut Ema>) -> Result<()> {
        self.restore_at("", params, optimizer, average)
    }

    /// Copies the state saved under the learner's prefix into it.
    pub(crate) fn restore_learner(&self, learner: &mut Learner) -> Result<()> {
        self.restore_at(
            learner.prefix(),
            &learner.params,
            &mut learner.optimizer,
            learner.ema.as_mut(),
        )
    }

    fn restore_at(
        &self,
        prefix: &str,
        params: &Params,
        optimizer: &mut AdamW,
        average: Option<&mut Ema>,
    ) -> Result<()> {
        let other = |reason: &str| Error::config(self.weights.path(), format!("{reason}; start in another folder"));
        let fact = |name: &str| self.facts.get(&format!("{prefix}{name}"));
        if fact(LAYOUT) != Some(&layout(params)) {
            return Err(other("it is the state of a run that trains other tensors"));
        }
        let raw = |name: &str| -> Result<Tensor> {
            let value = self.weights.raw(&format!("{prefix}{name}"))?;
            if !check::is_finite(&value)? {
                return Err(other("it holds NaN or infinity, so its training had diverged"));
            }
            Ok(value.f_to_device(params.flat().device())?)
        };
        params.set(&raw(VALUES)?)?;
        let steps = fact(OPTIMIZER_STEPS).and_then(|s| s.parse().ok());
        let steps = steps.ok_or_else(|| other("the optimizer's number of steps is missing"))?;
        optimizer.restore(&raw(MEAN)?, &raw(SQUARE)?, steps)?;
        match average {
            Some(ema) if self.weights.contains(&format!("{prefix}{AVERAGE}")) => ema.restore(&raw(AVERAGE)?),
            Some(_) => Err(other("it has no moving average")),
            None => Ok(()),
        }
    }
}

/// Tensors and metadata of a state to be written.
struct Contents {
    tensors: Vec<(String, Tensor)>,
    text: HashMap<String, String>,
}

impl Contents {
    fn new(step: u64, facts: &BTreeMap<String, String>) -> Self {
        let mut text: HashMap<String, String> = facts.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        text.insert("step".to_owned(), step.to_string());
        Self {
            tensors: Vec::new(),
            text,
        }
    }

    /// Adds one optimizer with its values under a prefix. A state that could not be restored is refused.
    fn add(&mut self, prefix: &str, params: &Params, optimizer: &AdamW, average: Option<&Ema>) -> Result<()> {
        let (mean, square, steps) = optimizer.state();
        let mut add_tensor = |name: &str, value: &Tensor| {
            if !check::is_finite(value)? {
                return Err(Error::NotFinite {
                    stage: Stage::Other("training"),
                    hint: "a state saved before is kept; go on from it with a lower rate".to_owned(),
                });
            }
            self.tensors.push((format!("{prefix}{name}"), value.shallow_clone()));
            Ok(())
        };
        add_tensor(VALUES, params.flat())?;
        add_tensor(MEAN, mean)?;
        add_tensor(SQUARE, square)?;
        if let Some(ema) = average {
            add_tensor(AVERAGE, ema.average())?;
        }
        self.text
            .insert(format!("{prefix}{OPTIMIZER_STEPS}"), steps.to_string());
        self.text.insert(format!("{prefix}{LAYOUT}"), layout(params));
        Ok(())
    }
}

/// Returns a checksum of the tensors' names and shapes.
fn layout(params: &Params) -> String {
    let text: Vec<String> = params
        .layout()
        .map(|(name, _, shape)| format!("{name}{shape:?}"))
        .collect();
    format!("{:08x}", crc32fast::hash(text.join(";").as_bytes()))
}

#[cfg(test)]
mod tests {
    use kontext_core::{Device, ModelPart};

    use super::*;
    use crate::optim::{AdamWConfig, LearnerConfig};

    fn parts(name: &str) -> (Params, AdamW, Ema) {
        let params = Params::new(&[(name.to_owned(), Tensor::from_slice(&[1.0_f32, 2.0]))], Device::Cpu).unwrap();
        let adam = AdamW::new(&params, AdamWConfig::default()).unwrap();
        let ema = Ema::new(&params, 0.9).unwrap();
        (params, adam, ema)
    }

    fn learner(prefix: &'static str, values: &[f32], ema: Option<f64>) -> Learner {
        let params = Params::new(&[("w".to_owned(), Tensor::from_slice(values))], Device::Cpu).unwrap();
        let config = LearnerConfig {
            prefix,
            optimizer: AdamWConfig::default(),
            ema,
            clip: 1.0,
            part: ModelPart::Transformer,
            hint: "",
        };
        Learner::new(params, config).unwrap()
    }

    #[test]
    fn learners_share_a_file_under_their_prefixes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.safetensors");
        let (first, second) = (learner("", &[1.0], Some(0.9)), learner("critic.", &[2.0, 3.0], None));
        Snapshot::save_learners(&path, &[&first, &second], Vec::new(), 5, &BTreeMap::new()).unwrap();
        let (mut a, mut b) = (learner("", &[0.0], Some(0.9)), learner("critic.", &[0.0, 0.0], None));
        let snapshot = Snapshot::open(&path).unwrap();
        snapshot.restore_learner(&mut a).unwrap();
        snapshot.restore_learner(&mut b).unwrap();
        assert!(a.params.flat().equal(first.params.flat()) && b.params.flat().equal(second.params.flat()));
    }

    #[test]
    fn values_that_are_not_finite_leave_the_state_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.safetensors");
        let (params, mut adam, mut ema) = parts("w");
        let save =
            |adam: &AdamW, ema: &Ema, step| Snapshot::save(&path, &params, adam, Some(ema), step, &BTreeMap::new());
        save(&adam, &ema, 1).unwrap();
        let before = std::fs::read(&path).unwrap();
        let values = Tensor::from_slice(&[1.0_f32, f32::INFINITY]);
        let zeros = values.zeros_like();
        ema.restore(&values).unwrap();
        assert!(matches!(save(&adam, &ema, 2), Err(Error::NotFinite { .. })));
        ema.restore(&zeros).unwrap();
        adam.restore(&zeros, &values, 1).unwrap();
        assert!(matches!(save(&adam, &ema, 2), Err(Error::NotFinite { .. })));
        adam.restore(&zeros, &zeros, 1).unwrap();
        params.set(&values).unwrap();
        assert!(matches!(save(&adam, &ema, 2), Err(Error::NotFinite { .. })));
        // A run's own saves are written by the same code.
        let learner = learner("", &[1.0], None);
        learner.params.set(&Tensor::from_slice(&[f32::NAN])).unwrap();
        let saved = Snapshot::save_learners(&path, &[&learner], Vec::new(), 2, &BTreeMap::new());
        assert!(matches!(saved, Err(Error::NotFinite { .. })));
        assert!(std::fs::read(&path).unwrap() == before);
    }

    #[test]
    fn a_restored_run_takes_the_step_that_the_unbroken_one_takes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.safetensors");
        let gradient = |k: f32| Tensor::from_slice(&[k, -0.3]);
        let (params, mut adam, mut ema) = parts("w");
        adam.step(&params, &gradient(1.0), 0.1).unwrap();
        ema.update(&params, 0).unwrap();
        Snapshot::save(&path, &params, &adam, Some(&ema), 1, &BTreeMap::new()).unwrap();
        adam.step(&params, &gradient(0.2), 0.1).unwrap();

        let (again, mut other_adam, mut other_ema) = parts("w");
        let snapshot = Snapshot::open(&path).unwrap();
        assert_eq!(snapshot.step, 1);
        snapshot.restore(&again, &mut other_adam, Some(&mut other_ema)).unwrap();
        assert!(other_ema.average().equal(ema.average()));
        other_adam.step(&again, &gradient(0.2), 0.1).unwrap();
        assert!(again.flat().equal(params.flat()));

        let (third, mut adam, _) = parts("other");
        let error = snapshot.restore(&third, &mut adam, None).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("other tensors"), "{cause}");
    }
}
