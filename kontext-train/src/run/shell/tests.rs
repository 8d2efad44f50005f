//! Tests of the shell around a loop that counts.

use std::ops::ControlFlow;

use kontext_core::{Device, ModelPart, Tensor};

use super::*;
use crate::optim::{AdamWConfig, LearnerConfig, Params};

/// A loop that adds 1 to its value at each step, and seems to diverge after some.
struct Counting(Learner, &'static [u64]);

impl Counting {
    fn new() -> Self {
        let params = Params::new(&[("w".to_owned(), Tensor::from_slice(&[0.0_f32]))], Device::Cpu).unwrap();
        let config = LearnerConfig {
            prefix: "",
            optimizer: AdamWConfig::default(),
            ema: None,
            clip: 1.0,
            part: ModelPart::Transformer,
            hint: "",
        };
        Self(Learner::new(params, config).unwrap(), &[])
    }

    fn value(&self) -> f64 {
        self.0.params.flat().double_value(&[0])
    }
}

impl Training for Counting {
    type Event = String;

    fn train(&mut self, segment: &mut Segment<'_, String>) -> Result<()> {
        for _ in segment.steps() {
            let _ = self.0.params.flat().shallow_clone().f_add_scalar_(1.0)?;
            let done = segment.finish_step(1);
            segment.report(format!("step {}", done.step))?;
        }
        Ok(())
    }

    fn learners(&self) -> Vec<&Learner> {
        vec![&self.0]
    }

    fn last_loss(&mut self, _step: u64) -> Result<f64> {
        Ok(self.0.params.flat().double_value(&[0]))
    }

    fn diverging(&self, step: u64) -> Option<String> {
        self.1.contains(&step).then(|| format!("not saved {step}"))
    }

    fn validate(&mut self, step: u64) -> Result<Option<String>> {
        Ok(Some(format!("validated {step}")))
    }

    fn saved(&self, step: u64, _state: &Path) -> Option<String> {
        Some(format!("saved {step}"))
    }
}

/// Opens the run in `folder`, trains until the event `stop`, and returns the loop and its events.
fn run(folder: &Path, stop: &str) -> (Counting, Vec<String>, Result<()>) {
    train(folder, stop, Counting::new())
}

fn train(folder: &Path, stop: &str, mut training: Counting) -> (Counting, Vec<String>, Result<()>) {
    let every = Intervals {
        save: 2,
        validate: 3,
        sample: 0,
    };
    let mut shell = Shell::open(folder, "state.safetensors", 5, every).unwrap();
    let mut events = Vec::new();
    if let Some(snapshot) = shell.snapshot().unwrap() {
        shell.resume(&snapshot, vec![&mut training.0]).unwrap();
    }
    let result = shell.run(&mut training, &mut |event: String| {
        events.push(event);
        if events.last().is_some_and(|event| event == stop) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    (training, events, result)
}

#[test]
fn a_run_reports_validates_and_saves_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let (training, events, result) = run(folder.path(), "");
    result.unwrap();
    let expected = "step 1, step 2, saved 2, step 3, validated 3, step 4, saved 4, step 5, validated 5, saved 5";
    assert_eq!(events.join(", "), expected);
    assert_eq!(training.value(), 5.0);
}

#[test]
fn a_cancelled_run_saves_and_the_next_one_resumes_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let (_, events, result) = run(folder.path(), "step 3");
    assert!(matches!(result, Err(Error::Cancelled { done: 3, total: 5 })));
    assert_eq!(events.last().unwrap(), "saved 3");
    // `Break` at a save is ignored.
    let (training, events, result) = run(folder.path(), "saved 4");
    result.unwrap();
    assert_eq!(
        (events[..2].join(", ").as_str(), training.value()),
        ("validated 3, step 4", 5.0)
    );
}

#[test]
fn a_diverging_run_saves_at_its_end_and_on_cancellation_only() {
    let folder = tempfile::tempdir().unwrap();
    let diverging = || Counting(Counting::new().0, &[2, 4, 5]);
    let (_, events, _) = train(folder.path(), "step 4", diverging());
    assert_eq!(
        events.join(", "),
        "step 1, step 2, not saved 2, step 3, validated 3, step 4, saved 4"
    );
    std::fs::remove_file(folder.path().join("state.safetensors")).unwrap();
    let (_, events, result) = train(folder.path(), "", diverging());
    result.unwrap();
    assert_eq!(
        events[5..].join(", "),
        "step 4, not saved 4, step 5, validated 5, saved 5"
    );
}

#[test]
fn what_was_due_when_a_run_was_cancelled_is_done_when_it_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    for (stop, expected) in [
        ("step 5", "validated 5, saved 5"),
        ("validated 5", "validated 5, saved 5"),
        ("saved 5", ""),
    ] {
        let _ = std::fs::remove_file(folder.path().join("state.safetensors"));
        let (_, _, result) = run(folder.path(), stop);
        assert_eq!(result.is_err(), stop != "saved 5", "{stop}");
        let (_, events, result) = run(folder.path(), "");
        result.unwrap();
        assert_eq!(events.join(", "), expected, "{stop}");
    }
}
