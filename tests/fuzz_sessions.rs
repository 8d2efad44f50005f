//! Fuzzing of `session.json`: each broken session is restored and edited or refused, in time, and for no more memory
//! than its size explains. See `kontext_fixtures::fuzz` for a long run.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::model;
use kontext::image::{GrayImage, Luma, RgbImage};
use kontext::ndarray::ArrayD;
use kontext::session::KeepUnchanged;
use kontext::{Device, Error, Layout, Pipeline, Request};
use kontext_fixtures::fuzz::{Counting, Draw, Taken, Target, change_bytes, change_json, long, short};
use serde_json::Value;
use tempfile::TempDir;

#[global_allocator]
static COUNTING: Counting = Counting;

/// Bytes that an edit of an image of 64x64 pixels takes, next to those of libtorch.
const EDIT: u64 = 8_000_000;

/// A session's folder, of which `session.json` changes, next to files that it may name.
struct Sessions {
    pipe: Arc<Pipeline>,
    folder: TempDir,
    sound: Value,
}

impl Sessions {
    fn new() -> Self {
        let builder = Pipeline::builder().device(Device::Cpu).max_sequence_length(16);
        let pipe = Arc::new(builder.load(model(Layout::Diffusers)).unwrap());
        let mut session = pipe.session(RgbImage::new(64, 64));
        session.defaults = small();
        session.keep_unchanged = Some(KeepUnchanged::Mask(GrayImage::from_pixel(64, 64, Luma([255]))));
        let request = small().prompt("winter").reference(RgbImage::new(16, 16));
        session.run(&request.noise(ArrayD::zeros(vec![1, 16, 64]))).unwrap();
        session.keep_unchanged = Some(KeepUnchanged::default());
        session.edit("night").unwrap();
        let folder = tempfile::tempdir().unwrap();
        session.save(folder.path()).unwrap();
        let sound = serde_json::from_slice(&fs::read(folder.path().join("session.json")).unwrap()).unwrap();
        Self { pipe, folder, sound }
    }
}

/// A request that takes little time.
fn small() -> Request {
    Request::default().max_area(64 * 64).steps(1).seed(3)
}

impl Target for Sessions {
    fn sound(&self) -> Vec<Vec<u8>> {
        vec![self.sound.to_string().into_bytes()]
    }

    fn file(&self, draw: &mut Draw) -> Vec<u8> {
        let mut json = self.sound.clone();
        let (fields, bytes) = *draw.pick(&[(1, 0), (1, 0), (1, 0), (2, 0), (4, 0), (0, 1), (0, 3), (1, 1)]);
        (0..fields).for_each(|_| change_json(&mut json, draw));
        let mut file = json.to_string().into_bytes();
        (0..bytes).for_each(|_| change_bytes(&mut file, draw));
        file
    }

    fn allowed(&self, size: u64) -> u64 {
        200 * size + EDIT
    }

    fn explore(&self, path: &Path, _: u64) -> Taken {
        fs::copy(path, self.folder.path().join("session.json")).unwrap();
        let mut taken = Taken::default();
        let restored = taken.phase("restoring", || accepted(self.pipe.restore_session(self.folder.path())));
        if let Some(mut session) = restored {
            // A request of a thousand steps is sound; the time of one step is enough here.
            let (steps, area) = (session.defaults.steps, session.defaults.max_area);
            session.defaults.sigmas = None;
            session.defaults.steps = steps.map(|_| 1).or(Some(1));
            if session.defaults.width.is_some() || session.defaults.height.is_some() || area != Some(64 * 64) {
                session.defaults = small();
            }
            taken.phase("editing", || {
                // Settings that contradict each other are refused by the edit.
                accepted(session.edit("snow"));
                Some(())
            });
            let copy = tempfile::tempdir().unwrap();
            if accepted(session.save(copy.path())).is_some() {
                let again = self.pipe.restore_session(copy.path()).unwrap();
                assert_eq!(again.turns().len(), session.turns().len());
            }
        }
        taken
    }
}

/// Returns the result; an error must not be a bug, and not of libtorch.
fn accepted<T>(result: kontext::Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error @ (Error::Bug { .. } | Error::Torch { .. } | Error::NotFinite { .. })) => panic!("{error:?}"),
        Err(_) => None,
    }
}

#[test]
fn broken_sessions_are_continued_or_refused_in_time_and_memory() {
    short(&Sessions::new(), env!("CARGO_TARGET_TMPDIR"), 100);
}

#[test]
#[ignore = "it runs for half an hour: see kontext_fixtures::fuzz"]
fn broken_sessions_without_end_are_continued_or_refused_in_time_and_memory() {
    long(&Sessions::new(), env!("CARGO_TARGET_TMPDIR"));
}
