//! Runs of the text encoders, which save no state: an encoder is written whole, or the stage begins again.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::Ordering;

use kontext::ModelPart;
use kontext_core::{Result, failpoint};
use kontext_train::{TextRecipe, train_text};

use crate::world::{before_renaming, files, killed, reason, run_killed};

fn recipe() -> TextRecipe {
    TextRecipe {
        width: 32,
        layers: 1,
        batch: 2,
        steps: 3,
        ..TextRecipe::default()
    }
}

fn train(out: &Path) -> Result<()> {
    let texts = BTreeSet::from(["make it red", "make it blue"].map(str::to_owned));
    train_text(&recipe(), &texts, out, |_| ControlFlow::Continue(()))
}

#[test]
#[ignore = "the child process of the next test"]
fn a_child_that_is_killed() {
    let Some((out, number)) = killed() else { return };
    before_renaming(&out, number, || std::process::abort());
    train(&out).unwrap();
}

#[test]
fn text_encoders_killed_or_out_of_disk_at_every_renaming_end_with_the_files_of_an_unbroken_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("text");
    let count = before_renaming(&out, u64::MAX, || Ok(()));
    train(&out).unwrap();
    failpoint::clear(&out);
    let (count, unbroken) = (count.load(Ordering::SeqCst), files(&out));
    assert!(count >= 8, "{count} renamings");
    for number in 1..=count {
        std::fs::remove_dir_all(&out).unwrap();
        before_renaming(&out, number, || Err(ErrorKind::StorageFull.into()));
        assert_eq!(
            reason(&train(&out).unwrap_err()),
            "the disk is full; free some space",
            "renaming {number}"
        );
        failpoint::clear(&out);
        train(&out).unwrap();
        assert!(files(&out) == unbroken, "renaming {number}");
        std::fs::remove_dir_all(&out).unwrap();
        run_killed("text::a_child_that_is_killed", &out, number);
        assert!(files(&out) != unbroken, "renaming {number}");
        train(&out).unwrap();
        assert!(files(&out) == unbroken, "renaming {number}");
    }
}

#[test]
fn text_encoders_stopped_at_any_step_end_with_the_files_of_an_unbroken_run() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, out) = (folder.path().join("whole"), folder.path().join("text"));
    train(&whole).unwrap();
    let texts = BTreeSet::from(["make it red", "make it blue"].map(str::to_owned));
    for stop in [(ModelPart::T5, 1), (ModelPart::T5, 3), (ModelPart::Clip, 2)] {
        let result = train_text(&recipe(), &texts, &out, |report| {
            if (report.encoder, report.step) == stop {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        assert!(result.unwrap_err().is_cancelled(), "{stop:?}");
        assert!(!out.join("text_encoder").exists(), "{stop:?}");
    }
    train(&out).unwrap();
    let relative = |root: &Path| -> Vec<_> {
        let all = files(root).into_iter();
        all.map(|(path, bytes)| (path.strip_prefix(root).unwrap().to_owned(), bytes))
            .collect()
    };
    assert!(relative(&out) == relative(&whole));
}
