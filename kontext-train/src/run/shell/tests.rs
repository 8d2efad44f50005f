//! Tests of the shell around a loop that counts.

use std::ops::ControlFlow;

use kontext_core::{Device, ModelPart, Tensor};

use super::*;
use crate::optim::{AdamWConfig, LearnerConfig, Params};

/// A loop that adds 1 to its value at each step, with a loss of 1 but for the given steps. The loss after a step
/// is the third field's.
struct Counting(Learner, &'static [(u64, f64)], fn(u64) -> f64);

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
        Self(Learner::new(params, config).unwrap(), &[], |_| 1.0)
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
            let next = segment.steps().start + 1;
            let loss = self
                .1
                .iter()
                .find(|(step, _)| *step == next)
                .map_or(1.0, |(_, loss)| *loss);
            let done = segment.finish_step(1, loss)?;
            segment.report(format!("step {}", done.step))?;
        }
        Ok(())
    }

    fn learners(&self) -> Vec<&Learner> {
        vec![&self.0]
    }

    fn last_loss(&mut self, step: u64) -> Result<f64> {
        Ok((self.2)(step))
    }

    fn not_saved(&self, step: u64, usual: f64) -> Option<String> {
        Some(format!("not saved {step} ({usual})"))
    }

    fn validate(&mut self, step: u64, report: &mut dyn FnMut(String) -> Result<()>) -> Result<()> {
        report(format!("validated {step}"))
    }

    fn saved(&self, step: u64, _state: &Path) -> Option<String> {
        Some(format!("saved {step}"))
    }
}

/// Opens the run in `folder`, trains until the event `stop`, and returns the loop and its events.
fn run(folder: &Path, stop: &str) -> (Counting, Vec<String>, Result<()>) {
    train(folder, stop, 5, Counting::new())
}

fn train(folder: &Path, stop: &str, steps: u64, training: Counting) -> (Counting, Vec<String>, Result<()>) {
    resumed(folder, stop, steps, training, false)
}

fn resumed(
    folder: &Path,
    stop: &str,
    steps: u64,
    mut training: Counting,
    new_loss: bool,
) -> (Counting, Vec<String>, Result<()>) {
    let every = Intervals {
        save: 2,
        validate: 3,
        sample: 0,
    };
    let mut shell = Shell::open(folder, "state.safetensors", steps, every).unwrap();
    let mut events = Vec::new();
    if let Some(snapshot) = shell.snapshot().unwrap() {
        shell.resume(&snapshot, vec![&mut training.0], new_loss).unwrap();
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

/// A run of `steps` steps whose losses and, after a step, whose loss are given, from a good state of five steps.
/// Returns its events and its error; the state is unchanged.
fn diverging(
    steps: u64,
    stop: &str,
    losses: &'static [(u64, f64)],
    after: fn(u64) -> f64,
) -> (String, Result<()>, bool) {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), "").2.unwrap();
    let state = || std::fs::read(folder.path().join("state.safetensors")).unwrap();
    let before = state();
    let training = Counting(Counting::new().0, losses, after);
    let (_, events, result) = train(folder.path(), stop, steps, training);
    (events.join(", "), result, state() == before)
}

#[test]
fn intervals_do_not_save_after_a_high_loss_and_do_once_it_is_usual_again() {
    let (events, result, _) = diverging(9, "", &[(6, 50.0)], |_| 1.0);
    result.unwrap();
    let expected = "step 6, validated 6, not saved 6 (1), step 7, step 8, saved 8, step 9, validated 9, saved 9";
    assert_eq!(events, expected);
    // A step that raises the loss of its own batch, by however much: the next one may lower it.
    let (events, result, _) = diverging(8, "", &[], |step| if step == 6 { 1e6 } else { 1.0 });
    result.unwrap();
    assert_eq!(
        events,
        "step 6, validated 6, not saved 6 (1), step 7, step 8, validated 8, saved 8"
    );
    // An outlier at the end is saved.
    let (events, result, _) = diverging(6, "", &[(6, 50.0)], |_| 50.0);
    result.unwrap();
    assert_eq!(events, "step 6, validated 6, saved 6");
}

#[test]
fn a_run_that_ends_diverged_keeps_its_state() {
    let high: &[(u64, f64)] = &[(6, 50.0), (7, 50.0), (8, 50.0), (9, 50.0)];
    let exploded = |step| if step >= 6 { 1e6 } else { 1.0 };
    for (steps, stop, losses, after) in [
        (8, "", high, (|_| 50.0) as fn(u64) -> f64),
        (10, "step 8", high, |_| 50.0),
        (7, "", &[], exploded),
        (9, "step 7", &[], exploded),
    ] {
        let (events, result, unchanged) = diverging(steps, stop, losses, after);
        assert!(matches!(result, Err(Error::Diverged { usual: 1.0, .. })), "{events}");
        assert!(unchanged && !events.contains(", saved"), "{events}");
    }
}

#[test]
fn values_without_a_finite_loss_are_neither_saved_nor_validated() {
    for (steps, stop) in [(6, ""), (9, ""), (9, "step 6")] {
        let (events, result, unchanged) = diverging(steps, stop, &[], |_| f64::NAN);
        assert!(matches!(result, Err(Error::NotFinite { .. })), "{events}");
        assert!(unchanged);
        assert_eq!(events, "step 6");
    }
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

#[test]
fn a_run_that_goes_on_under_another_objective_has_another_usual_loss() {
    const HIGH: &[(u64, f64)] = &[(6, 50.0), (7, 50.0), (8, 50.0), (9, 50.0)];
    for new_loss in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path(), "").2.unwrap();
        let training = Counting(Counting::new().0, HIGH, |_| 50.0);
        let (_, events, result) = resumed(folder.path(), "", 9, training, new_loss);
        assert_eq!(result.is_ok(), new_loss, "{result:?}");
        assert_eq!(events.contains(&"saved 8".to_owned()), new_loss, "{events:?}");
    }
}

#[test]
fn a_run_that_saves_nothing_names_another_remedy_when_it_diverges() {
    const HIGH: &[(u64, f64)] = &[(6, 50.0), (7, 50.0), (8, 50.0)];
    let mut training = Counting(Counting::new().0, HIGH, |_| 50.0);
    let result = Shell::unsaved(8, "begin again").run(&mut training, &mut |_| ControlFlow::Continue(()));
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Diverged { step: 8, .. }), "{error}");
    assert!(
        error.to_string().ends_with("above its usual 1.0000; begin again"),
        "{error}"
    );
}
