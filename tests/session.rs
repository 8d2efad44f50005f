//! Editing in turns: latents passed on, pixels kept, and sessions restored from a folder.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;

use common::model;
use image::{GrayImage, ImageFormat, Luma, Rgb, RgbImage};
use kontext::session::{DifferenceMap, KeepUnchanged};
use kontext::{Conformance, Device, Event, Layout, Pipeline, Placement, References, Request, Session, Size};

static PIPE: LazyLock<Arc<Pipeline>> = LazyLock::new(|| load(Placement::Resident));
/// A model trained to edit emoji.
static EMOJI: LazyLock<Arc<Pipeline>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/kontext-emoji");
    Arc::new(Pipeline::builder().device(Device::Cpu).load(folder).unwrap())
});

fn load(placement: Placement) -> Arc<Pipeline> {
    let builder = Pipeline::builder()
        .device(Device::Cpu)
        .max_sequence_length(32)
        .placement(placement);
    Arc::new(builder.load(model(Layout::Diffusers)).unwrap())
}

fn image(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 7) as u8, (y * 5) as u8, (x + y) as u8]))
}

/// Returns a request that takes a fraction of a second.
fn small() -> Request {
    Request::default().max_area(64 * 64).steps(2).seed(3)
}

/// Starts a session whose image has another size than the model's output.
fn session(pipe: &Arc<Pipeline>) -> Session {
    let mut session = pipe.session(image(70, 50));
    session.defaults = small();
    session
}

fn emoji() -> Session {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/emoji-source.png");
    let mut session = EMOJI.session(kontext::open_image(source).unwrap());
    session.defaults = Request::default().seed(1);
    session
}

fn request(prompt: &str) -> Request {
    small().prompt(prompt)
}

/// Runs a request and counts the prompts and images that it encoded.
fn encoded(session: &mut Session, request: &Request) -> (usize, usize) {
    let (mut texts, mut images) = (0, 0);
    let observe = |event: Event<'_>| {
        texts += usize::from(matches!(event, Event::Encoded { cached: false, .. }));
        images += usize::from(matches!(event, Event::Reference { cached: false, .. }));
        ControlFlow::Continue(())
    };
    session.run_with(request, observe).unwrap();
    (texts, images)
}

#[test]
fn only_the_first_image_and_new_prompts_are_encoded() {
    let mut session = session(&load(Placement::Resident));
    assert_eq!(encoded(&mut session, &request("winter")), (1, 1));
    assert_eq!(encoded(&mut session, &request("night")), (1, 0));
    assert_eq!(encoded(&mut session, &request("winter")), (0, 0));
    // The first image again, under another seed.
    assert!(session.undo() && session.undo() && session.undo());
    assert_eq!(encoded(&mut session, &request("night").seed(4)), (0, 0));
    // Negative prompts share the cache of prompts.
    let guided = request("night").true_cfg(2.0).negative_prompt("winter");
    assert_eq!(encoded(&mut session, &guided), (0, 0));
    // Known by the texts of both encoders.
    let two = request("night").prompt_2("winter");
    assert_eq!([(); 2].map(|()| encoded(&mut session, &two)), [(1, 0), (0, 0)]);
    assert_eq!(encoded(&mut session, &request("night").prompt_2("night")), (0, 0));
    assert_eq!(encoded(&mut session, &request("winter").prompt_2("night")), (1, 0));
    // A further reference is encoded once.
    let two = request("night").reference(image(30, 60));
    assert_eq!([(); 2].map(|()| encoded(&mut session, &two)), [(0, 1), (0, 0)]);
}

#[test]
fn the_next_turn_sees_the_latents_of_the_last_and_not_its_image() {
    let mut session = session(&PIPE);
    session.edit("winter").unwrap();
    let (image, latents) = (
        session.current().image.clone(),
        session.current().latents.clone().unwrap(),
    );
    let edit = request("night").reference(&image);
    let (by_latents, by_image) = (
        PIPE.run(&edit.clone().image_latents(latents)).unwrap(),
        PIPE.run(&edit).unwrap(),
    );
    let turn = session.edit("night").unwrap();
    assert_eq!(turn.image, by_latents.image);
    assert_eq!(turn.latents.as_ref(), Some(&by_latents.latents));
    assert_ne!(turn.latents.as_ref(), Some(&by_image.latents));
    assert_eq!(turn.image.dimensions(), (70, 50));
}

#[test]
fn reencoded_turns_are_runs_of_the_saved_images() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = session(&PIPE);
    session.reencode = true;
    let path = folder.path().join("winter.png");
    session.edit("winter").unwrap().save(&path).unwrap();
    let bytes = session.current().encode(ImageFormat::Png).unwrap();
    assert_eq!(bytes, std::fs::read(&path).unwrap());
    let run = PIPE
        .run(&request("night").reference(kontext::open_image(&path).unwrap()))
        .unwrap();
    assert_eq!(session.edit("night").unwrap().image, run.image);
}

#[test]
fn latents_of_another_grid_are_not_handed_over() {
    let mut session = session(&load(Placement::Resident));
    session.edit("winter").unwrap();
    assert_eq!(encoded(&mut session, &request("night").max_area(96 * 64)), (1, 1));
    assert_eq!(encoded(&mut session, &request("night").max_area(96 * 64)), (0, 0));
    // Stitched images form a new one, without cached latents.
    let joined = request("night")
        .max_area(96 * 64)
        .reference(image(20, 20))
        .references(References::Stitch);
    assert_eq!(encoded(&mut session, &joined), (0, 1));
}

#[test]
fn a_session_of_parts_that_come_and_go_gives_the_same_bytes() {
    let staged = load(Placement::Staged);
    let run = |pipe| {
        let mut session = session(pipe);
        session.edit("winter").unwrap();
        session.edit("night").unwrap().image.clone()
    };
    assert_eq!(run(&staged), run(&PIPE));
}

#[test]
fn both_prompts_are_saved_and_files_without_a_second_one_open() {
    let folder = tempfile::tempdir().unwrap();
    let index = || std::fs::read_to_string(folder.path().join("session.json")).unwrap();
    let mut session = session(&PIPE);
    session.edit("winter").unwrap();
    session.save(folder.path()).unwrap();
    // The keys of earlier versions.
    assert!(!index().contains("prompt_2"), "{}", index());
    assert_eq!(
        PIPE.restore_session(folder.path()).unwrap().current().prompt(),
        "winter"
    );

    let two = request("night")
        .prompt_2("many stars")
        .negative_prompt_2("day")
        .true_cfg(2.0);
    session.run(&two).unwrap();
    session.defaults = small().prompt_2("snow");
    session.save(folder.path()).unwrap();
    let mut restored = PIPE.restore_session(folder.path()).unwrap();
    let request = restored.current().request().unwrap();
    assert_eq!(request.prompt_2.as_deref(), Some("many stars"));
    assert_eq!(
        (&request.negative_prompt, request.negative_prompt_2.as_deref()),
        (&None, Some("day"))
    );
    assert_eq!(restored.defaults.prompt_2.as_deref(), Some("snow"));
    // An edit by one text gives it to both encoders.
    let turn = restored.edit("night").unwrap();
    assert_eq!(turn.request().unwrap().prompt_2, None);
}

#[test]
fn branches_are_kept_and_undo_leads_back() {
    let mut session = session(&PIPE);
    assert!(!session.undo() && !session.redo());
    for prompt in ["winter", "green scarf"] {
        session.edit(prompt).unwrap();
    }
    assert!(session.undo());
    let red = session.edit("red scarf").unwrap();
    assert_eq!(
        (red.id, red.parent, red.prompt(), red.seed(), red.steps()),
        (3, Some(1), "red scarf", Some(3), Some(2))
    );
    assert!(session.undo() && session.redo());
    assert_eq!(session.current().id, 3);
    assert_eq!(session.branch(2).unwrap().prompt(), "green scarf");
    assert_eq!(
        session.history().iter().map(|turn| turn.id).collect::<Vec<_>>(),
        [0, 1, 2]
    );
    assert_eq!(session.turns().len(), 4);
    assert!(session.branch(9).is_err());
}

#[test]
fn a_turn_that_fails_leaves_the_session_as_it_was() {
    let mut session = session(&PIPE);
    session.edit("winter").unwrap();
    assert!(
        session
            .run_with(&request("night"), |_| ControlFlow::Break(()))
            .unwrap_err()
            .is_cancelled()
    );
    for (wrong, words) in [
        (
            request("night").batch(2),
            "invalid batch: expected 1 image in a turn of a session, got 2",
        ),
        (
            request("night").image_latents(session.current().latents.clone().unwrap()),
            "use `replace`",
        ),
        (request("night").strength(2.0), "strength"),
    ] {
        let error = session.run(&wrong).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let panicking = |session: &mut Session| session.run_with(&request("night"), |_| panic!("own")).map(|_| ());
    assert!(catch_unwind(AssertUnwindSafe(|| panicking(&mut session))).is_err());
    assert_eq!((session.current().id, session.turns().len()), (1, 2));
    let mut other = self::session(&PIPE);
    other.edit("winter").unwrap();
    assert_eq!(session.edit("night").unwrap().image, other.edit("night").unwrap().image);
}

#[test]
fn a_replaced_image_is_encoded_anew() {
    let mut session = session(&PIPE);
    session.edit("winter").unwrap();
    let turn = session.replace(image(70, 50));
    assert_eq!(
        (turn.id, turn.parent, turn.prompt(), turn.seed()),
        (2, Some(1), "", None)
    );
    let fresh = PIPE.run(&request("night").reference(image(70, 50))).unwrap();
    assert_eq!(session.edit("night").unwrap().image, fresh.image);
}

/// Returns a session with everything it can hold.
fn full(pipe: &Arc<Pipeline>) -> Session {
    let mut session = session(pipe);
    session.edit("winter").unwrap();
    session.keep_unchanged = Some(KeepUnchanged::Mask(GrayImage::from_fn(70, 50, |x, _| {
        Luma([if x < 30 { 255 } else { 0 }])
    })));
    session.edit("green scarf").unwrap();
    session.undo();
    session
        .run(
            &request("like this")
                .reference(image(20, 30))
                .guidance(1.7)
                .seed(u64::MAX),
        )
        .unwrap();
    session.replace(image(70, 50));
    session.undo();
    session
}

#[test]
fn a_restored_session_goes_on_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("a/b");
    let mut session = full(&PIPE);
    session.save(&folder).unwrap();
    let mut restored = PIPE.restore_session(&folder).unwrap();
    assert_eq!(restored.turns().len(), session.turns().len());
    for (a, b) in restored.turns().iter().zip(session.turns()) {
        assert_eq!(
            (a.id, a.parent, &a.image, &a.changed),
            (b.id, b.parent, &b.image, &b.changed)
        );
        assert_eq!((a.prompt(), a.seed(), a.steps()), (b.prompt(), b.seed(), b.steps()));
        assert_eq!(a.latents, b.latents);
        assert_eq!(a.request().map(|r| &r.images), b.request().map(|r| &r.images));
        assert_eq!(a.request().map(|r| r.guidance), b.request().map(|r| r.guidance));
    }
    assert_eq!(restored.keep_unchanged, session.keep_unchanged);
    for session in [&mut session, &mut restored] {
        assert_eq!(session.current().id, 3);
        session.edit("night").unwrap();
    }
    assert_eq!(restored.current().image, session.current().image);
    assert_eq!(restored.current().latents, session.current().latents);
    for session in [&mut session, &mut restored] {
        assert!(session.undo() && session.undo() && session.redo() && session.redo());
        assert_eq!(session.current().id, 5);
    }
}

#[test]
fn sessions_in_a_map_move_between_threads_and_give_the_same_bytes() {
    const USERS: [&str; 3] = ["anna", "ben", "chi"];
    let folder = tempfile::tempdir().unwrap();
    let prompts = |user: &str| ["winter", "night", "rain"].map(|word| format!("{word} for {user}"));
    // Serial results: the bytes that every other way must give.
    let expected: HashMap<&str, Vec<RgbImage>> = USERS
        .into_iter()
        .map(|user| {
            let mut alone = session(&PIPE);
            let images = prompts(user).map(|prompt| alone.edit(prompt).unwrap().image.clone());
            (user, images.to_vec())
        })
        .collect();
    let sessions: Mutex<HashMap<String, Session>> = Mutex::default();
    for user in USERS {
        sessions.lock().unwrap().insert(user.to_owned(), session(&PIPE));
    }
    // Turn after turn, each on a new thread; the map is not locked while a session runs.
    for turn in 0..3 {
        thread::scope(|scope| {
            for user in USERS {
                let (sessions, folder, expected) = (&sessions, folder.path().join(user), &expected);
                scope.spawn(move || {
                    let mut own = sessions.lock().unwrap().remove(user).unwrap();
                    assert_eq!(own.edit(&prompts(user)[turn]).unwrap().image, expected[user][turn]);
                    if turn == 1 {
                        own.save(&folder).unwrap();
                        own = own.pipeline().restore_session(&folder).unwrap();
                    }
                    sessions.lock().unwrap().insert(user.to_owned(), own);
                });
            }
        });
    }
    let left = sessions.into_inner().unwrap();
    assert!(left.values().all(|session| session.turns().len() == 4));
    assert!(left.values().all(|session| Arc::ptr_eq(session.pipeline(), &PIPE)));
}

#[test]
fn saving_again_writes_what_is_new_alone() {
    let folder = tempfile::tempdir().unwrap();
    let names = || {
        let files = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap());
        files
            .map(|file| (file.file_name(), file.metadata().unwrap().modified().unwrap()))
            .collect::<Vec<_>>()
    };
    let mut session = session(&PIPE);
    session.edit("winter").unwrap();
    session.save(folder.path()).unwrap();
    let before = names();
    session.edit("night").unwrap();
    session.save(folder.path()).unwrap();
    let after = names();
    // One more image and its latents.
    assert_eq!((before.len(), after.len()), (4, 6));
    for file in before.iter().filter(|(name, _)| name != "session.json") {
        assert!(after.contains(file), "{file:?}");
    }
}

#[test]
fn latents_are_saved_in_the_dtype_of_the_run() {
    let pipe = Pipeline::builder().device(Device::Cpu).dtype(kontext::Kind::BFloat16);
    let pipe = Arc::new(pipe.load(model(Layout::Diffusers)).unwrap());
    for (conformance, dtype) in [(Conformance::Diffusers, "BF16"), (Conformance::Native, "F32")] {
        let folder = tempfile::tempdir().unwrap();
        let mut session = session(&pipe);
        session.defaults = small().max_area(64 * 64).conform(conformance);
        session.edit("winter").unwrap();
        session.save(folder.path()).unwrap();
        let files = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|file| file.unwrap().path());
        let latents = files
            .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
            .collect::<Vec<_>>();
        assert_eq!(latents.len(), 1);
        let header = String::from_utf8_lossy(&std::fs::read(&latents[0]).unwrap()).into_owned();
        assert!(header.contains(&format!("\"dtype\":\"{dtype}\"")), "{header:.99}");
        let mut restored = pipe.restore_session(folder.path()).unwrap();
        assert_eq!(restored.current().latents, session.current().latents);
        assert_eq!(
            restored.edit("night").unwrap().image,
            session.edit("night").unwrap().image
        );
    }
}

#[test]
fn a_folder_that_holds_no_session_is_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    full(&PIPE).save(folder.path()).unwrap();
    let path = folder.path().join("session.json");
    let saved = std::fs::read_to_string(&path).unwrap();
    let error = |change: &dyn Fn(String) -> String| {
        std::fs::write(&path, change(saved.clone())).unwrap();
        let error = PIPE.restore_session(folder.path()).unwrap_err();
        format!("{:#}", anyhow::Error::from(error))
    };
    let refused = |from: &str, to: &str, words: &str| {
        let error = error(&|text: String| {
            assert!(text.contains(from), "{from}: {text}");
            text.replacen(from, to, 1)
        });
        assert!(error.contains(words), "{error}");
    };
    refused(
        "\"format\": 2",
        "\"format\": 3",
        "this version reads 1 to 2: update kontext",
    );
    refused("\"current\": 3", "\"current\": 9", "its turns are no tree");
    refused("\"parent\": 0", "\"parent\": 7", "its turns are no tree");
    refused("\"picture\": \"", "\"picture\": \"../", "is no file of this folder");
    refused("\"picture\": \"", "\"picture\": \"no-", "there is no such file");
    refused("\"width\": 80", "\"width\": 96", "this model's are");
    refused("\"reencode\"", "\"reencoded\"", "unknown field `reencoded`");
    assert!(error(&|text| text[..text.len() / 2].to_owned()).contains("session.json"));
    let nothing = PIPE.restore_session(folder.path().join("nothing")).unwrap_err();
    assert!(format!("{:#}", anyhow::Error::from(nothing)).contains("there is no such file"));
}

/// Counts the pixels of a kept turn: kept, blended, and the edit's.
fn shares(map: &GrayImage) -> [usize; 3] {
    let count = |matches: fn(u8) -> bool| map.pixels().filter(|p| matches(p.0[0])).count();
    [count(|m| m == 0), count(|m| m > 0 && m < 255), count(|m| m == 255)]
}

#[test]
fn bytes_outside_the_map_are_those_of_the_source() {
    let (mut plain, mut kept) = (emoji(), emoji());
    kept.keep_unchanged = Some(KeepUnchanged::default());
    for prompt in ["give him red hair", "make the skin dark"] {
        let source = kept.current().image.clone();
        let turn = kept.edit(prompt).unwrap();
        let result = &plain.edit(prompt).unwrap().image;
        let map = turn.changed.as_ref().unwrap();
        let [outside, between, inside] = shares(map);
        assert!(
            outside > 1000 && between > 50 && inside > 500,
            "{outside} {between} {inside}"
        );
        let pixels = map.pixels().zip(turn.image.pixels()).zip(source.pixels());
        assert!(
            pixels
                .filter(|((map, _), _)| map.0[0] == 0)
                .all(|((_, turn), source)| turn == source)
        );
        // Without the map they differ.
        let untouched = map
            .pixels()
            .zip(result.pixels())
            .zip(source.pixels())
            .filter(|((map, _), _)| map.0[0] == 0);
        assert!(untouched.filter(|((_, result), source)| result != source).count() > 100);
        plain.undo();
        plain.replace(turn.image.clone());
    }
}

#[test]
fn a_mask_of_the_users_decides_alone_and_exactly() {
    let mut session = emoji();
    let size = session.current().image.dimensions();
    let mask = GrayImage::from_fn(size.0, size.1, |x, y| Luma([if x > 40 && y < 90 { 255 } else { 0 }]));
    session.keep_unchanged = Some(KeepUnchanged::Mask(mask.clone()));
    let source = session.current().image.clone();
    let kept = session.edit("make it sepia").unwrap().image.clone();
    let result = emoji().edit("make it sepia").unwrap().image.clone();
    for (x, y, pixel) in kept.enumerate_pixels() {
        let from = if mask.get_pixel(x, y).0[0] == 255 {
            &result
        } else {
            &source
        };
        assert_eq!(pixel, from.get_pixel(x, y));
    }
    session.keep_unchanged = Some(KeepUnchanged::Mask(GrayImage::new(3, 3)));
    let error = session.edit("make it sepia").unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "invalid mask: expected the image's size, {}x{}, got 3x3",
            size.0, size.1
        )
    );
}

#[test]
fn kept_latents_are_the_first_images_where_nothing_changed() {
    let mut session = session(&PIPE);
    let mut first = None;
    let observe = |event: Event<'_>| {
        if let Event::Reference { latents, .. } = event {
            first = Some(kontext::crates::kontext_sampler::pack(latents).unwrap());
        }
        ControlFlow::Continue(())
    };
    // Only the first of five token columns (16 pixels each, stretched from 70 to 80) may change.
    let mask = GrayImage::from_fn(70, 50, |x, _| Luma([if x < 14 { 255 } else { 0 }]));
    session.keep_unchanged = Some(KeepUnchanged::Mask(mask));
    session.run_with(&request("winter"), observe).unwrap();
    session.edit("night").unwrap();
    let first = kontext::crates::kontext_core::array::to_array(&first.unwrap()).unwrap();
    let latents = session.current().latents.clone().unwrap();
    for token in 0..15 {
        let same = (0..64).all(|c| latents[[0, token, c]] == first[[0, token, c]]);
        assert_eq!(same, token % 5 != 0, "token {token}");
    }
}

#[test]
fn a_result_that_is_not_in_the_images_place_cannot_be_kept() {
    let mut session = session(&PIPE);
    session.keep_unchanged = Some(KeepUnchanged::Difference(DifferenceMap::default()));
    for request in [
        request("night").native_size(),
        request("night").size(64, 96),
        request("night").conform(Conformance::Diffusers),
        request("night").reference(image(70, 50)).references(References::Stitch),
    ] {
        let error = session.run(&request).unwrap_err().to_string();
        assert!(
            error.starts_with("invalid request under keep_unchanged: expected a result in the place"),
            "{error}"
        );
    }
    assert_eq!(session.turns().len(), 1);
}

#[test]
fn latents_of_another_size_are_refused_before_any_work() {
    let run = PIPE.run(&request("winter").reference(image(64, 64))).unwrap();
    assert_eq!(run.plan.target.size(), Size::new(64, 64));
    let edit = |image: &RgbImage| request("night").reference(image).image_latents(run.latents.clone());
    assert!(PIPE.plan(&edit(&image(64, 64))).is_ok());
    let error = PIPE.plan(&edit(&image(70, 50))).unwrap_err().to_string();
    assert!(
        error.contains("shape of image_latents: expected [1, 15, 64]") && error.ends_with("got [1, 16, 64]"),
        "{error}"
    );
    let joined = edit(&image(64, 64))
        .reference(image(64, 64))
        .references(References::Stitch);
    assert!(PIPE.plan(&joined).is_err());
    assert!(PIPE.plan(&request("night").image_latents(run.latents.clone())).is_err());
}
