//! The state of a run in one file, from which it goes on to the same bits.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use kontext_core::{Error, Result, Tensor};
use kontext_nn::Weights;

use crate::{AdamW, Ema, Params};

const MEAN: &str = "optimizer.mean";
const SQUARE: &str = "optimizer.square";
const VALUES: &str = "values";
const AVERAGE: &str = "average";

/// Trained values, optimizer, moving average and step, read from a file.
#[derive(Debug)]
pub struct Snapshot {
    weights: Weights,
    /// Steps that are done.
    pub step: u64,
    /// What else was kept: the recipe, say.
    pub facts: BTreeMap<String, String>,
}

impl Snapshot {
    /// Writes a state. The file appears whole or not at all, so a run that is cut off while it
    /// saves still has its last state.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be written.
    pub fn save(
        path: impl AsRef<Path>,
        params: &Params,
        optimizer: &AdamW,
        average: Option<&Ema>,
        step: u64,
        facts: &BTreeMap<String, String>,
    ) -> Result<()> {
        let (mean, square, steps) = optimizer.state();
        let mut tensors = vec![
            (VALUES.to_owned(), params.flat().shallow_clone()),
            (MEAN.to_owned(), mean.shallow_clone()),
            (SQUARE.to_owned(), square.shallow_clone()),
        ];
        tensors.extend(average.map(|ema| (AVERAGE.to_owned(), ema.average().shallow_clone())));
        let mut text: HashMap<String, String> = facts.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        text.insert("step".to_owned(), step.to_string());
        text.insert("optimizer_steps".to_owned(), steps.to_string());
        text.insert("layout".to_owned(), layout(params));
        kontext_formats::save(path, &tensors, Some(text))
    }

    /// Opens a state.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be read, a checkpoint error where it is no state.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let weights = Weights::open(path.as_ref())?;
        let mut facts = weights.store().metadata();
        let step = facts.remove("step").and_then(|s| s.parse().ok());
        let step = step.ok_or_else(|| Error::config(path.as_ref(), "it is no state of a training run: no `step`"))?;
        Ok(Self { weights, step, facts })
    }

    /// Puts the state into the parts of a run.
    ///
    /// # Errors
    /// A checkpoint error where the state is of other tensors.
    pub fn restore(&self, params: &Params, optimizer: &mut AdamW, average: Option<&mut Ema>) -> Result<()> {
        let other = |reason: &str| Error::config(self.weights.path(), format!("{reason}; start in another folder"));
        if self.facts.get("layout") != Some(&layout(params)) {
            return Err(other("it is the state of a run that trains other tensors"));
        }
        let raw = |name: &str| -> Result<Tensor> { Ok(self.weights.raw(name)?.f_to_device(params.flat().device())?) };
        params.set(&raw(VALUES)?)?;
        let steps = self.facts.get("optimizer_steps").and_then(|s| s.parse().ok());
        let steps = steps.ok_or_else(|| other("the optimizer's number of steps is missing"))?;
        optimizer.restore(&raw(MEAN)?, &raw(SQUARE)?, steps)?;
        match average {
            Some(ema) if self.weights.contains(AVERAGE) => ema.restore(&raw(AVERAGE)?),
            Some(_) => Err(other("it has no moving average")),
            None => Ok(()),
        }
    }
}

/// A check sum of the tensors' names and shapes.
fn layout(params: &Params) -> String {
    let text: Vec<String> = params
        .layout()
        .map(|(name, _, shape)| format!("{name}{shape:?}"))
        .collect();
    format!("{:08x}", crc32fast::hash(text.join(";").as_bytes()))
}

#[cfg(test)]
mod tests {
    use kontext_core::Device;

    use super::*;
    use crate::AdamWConfig;

    fn parts(name: &str) -> (Params, AdamW, Ema) {
        let params = Params::new(&[(name.to_owned(), Tensor::from_slice(&[1.0_f32, 2.0]))], Device::Cpu).unwrap();
        let adam = AdamW::new(&params, AdamWConfig::default()).unwrap();
        let ema = Ema::new(&params, 0.9).unwrap();
        (params, adam, ema)
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
