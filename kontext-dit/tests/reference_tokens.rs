//! The tokens of references over the steps of a run.
#![allow(clippy::unwrap_used, clippy::panic)] // In helper functions of a test.

mod common;

use common::{TARGET, config, prepare_times, target};
use kontext_core::{Kind, Tensor};
use kontext_dit::{Dit, Run, State};
use kontext_nn::Weights;

#[test]
fn the_references_tokens_are_equal_to_the_bit_in_every_step() {
    // They enter each step as they were prepared: nothing moves them while the target comes out of the noise.
    const TIMES: [f32; 4] = [990.0, 700.0, 400.0, 100.0];
    for kind in [Kind::Float, Kind::BFloat16] {
        let case = (1, 1, true);
        let dit = Dit::new(&Weights::synthetic(3).kind(kind), &config(2, 2), |_| ()).unwrap();
        let run = prepare_times(&dit, case, kind, &TIMES);
        let entered = |run: &Run, x: &Tensor| match dit.enter(run, x).unwrap() {
            State::Streams { img, .. } => {
                let references = img.size()[1] - TARGET;
                assert!(references > 0);
                [img.narrow(1, 0, TARGET), img.narrow(1, TARGET, references)]
            }
            other => panic!("{other:?}"),
        };
        let mut x = target(case, kind);
        let [target, references] = entered(&run, &x);
        for step in 0..TIMES.len() {
            x += dit.forward(&run, step, &x).unwrap() * 0.1;
            let [moved, same] = entered(&run, &x);
            assert!(
                same.equal(&references) && !moved.equal(&target),
                "{kind:?}, step {step}"
            );
        }
        // And as in a run that has made no step.
        let [_, fresh] = entered(&prepare_times(&dit, case, kind, &TIMES), &x);
        assert!(fresh.equal(&references));
    }
}
