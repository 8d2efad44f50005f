//! Text that an encoder does not see, and settings without effect, in the results of runs and turns.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use common::model;
use kontext::image::RgbImage;
use kontext::{Device, Event, Layout, ModelPart, Pipeline, Request, Unseen, Warning};

const PROMPT: &str = "a 漢字 cup";

fn pipeline() -> Arc<Pipeline> {
    let builder = Pipeline::builder().device(Device::Cpu);
    Arc::new(builder.load(model(Layout::Diffusers)).unwrap())
}

fn request(prompt: &str) -> Request {
    Request::generate(prompt).max_area(64 * 64).steps(1).seed(1)
}

/// Returns the encoders that do not know a text, with it.
fn unknown(unseen: &Unseen) -> Vec<(ModelPart, String)> {
    let text = |unknown: &kontext::Unknown| (unknown.encoder, unknown.texts.join(" "));
    unseen.unknown.iter().map(text).collect()
}

#[test]
fn an_output_holds_what_the_encoders_did_not_see_of_both_prompts() {
    let pipe = pipeline();
    let both = request(PROMPT).negative_prompt("word ".repeat(10_000)).true_cfg(2.0);
    let output = pipe.run(&both).unwrap();
    assert_eq!(
        unknown(&output.unseen),
        [(ModelPart::T5, "漢字".to_owned()), (ModelPart::Clip, "漢字".to_owned())]
    );
    let cut: Vec<ModelPart> = output.unseen.truncated.iter().map(|cut| cut.encoder).collect();
    assert_eq!(cut, [ModelPart::T5, ModelPart::Clip]);
    assert!(pipe.run(&request("a cup")).unwrap().unseen.is_empty());
}

#[test]
fn a_turn_holds_its_warnings_and_what_the_encoders_did_not_see_also_of_a_cached_prompt() {
    let pipe = pipeline();
    let mut session = pipe.session(RgbImage::new(64, 64));
    session.defaults = request("").negative_prompt("red");
    for turn in 1..=2 {
        let request = session.request(PROMPT);
        let mut events = 0;
        let made = session.run_with(&request, |event| {
            events += usize::from(matches!(event, Event::UnknownWords { .. }));
            ControlFlow::Continue(())
        });
        let made = made.unwrap();
        assert_eq!((made.id, events), (turn, 2));
        assert_eq!(unknown(&made.unseen).len(), 2);
        assert!(
            made.warnings
                .contains(&Warning::NegativePromptIgnored { true_cfg: 1.0 })
        );
    }
    // A folder does not hold them.
    let folder = tempfile::tempdir().unwrap();
    session.save(folder.path().join("s")).unwrap();
    let restored = pipe.restore_session(folder.path().join("s")).unwrap();
    assert!(restored.current().warnings.is_empty() && restored.current().unseen.is_empty());
}
