//! Folders of sessions that were damaged, exchanged or made to do harm, and what a save promises.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use common::model;
use image::{GrayImage, Luma, Rgb, RgbImage};
use kontext::crates::kontext_formats::save;
use kontext::ndarray::ArrayD;
use kontext::session::{DifferenceMap, KeepUnchanged};
use kontext::{Device, Layout, Pipeline, Request, Result, Session, Tensor};
use serde_json::{Value, json};
use tempfile::TempDir;

static PIPE: LazyLock<Arc<Pipeline>> = LazyLock::new(|| {
    let builder = Pipeline::builder().device(Device::Cpu).max_sequence_length(32);
    Arc::new(builder.load(model(Layout::Diffusers)).unwrap())
});

fn image(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 7) as u8, (y * 5) as u8, (x + y) as u8]))
}

/// A session of two edits, with a reference, noise, a mask in the first turn and a map of changes in the
/// second.
fn session() -> Session {
    let mut session = PIPE.session(image(64, 64));
    session.defaults = Request::default().max_area(64 * 64).steps(1).seed(3);
    session.keep_unchanged = Some(KeepUnchanged::Mask(GrayImage::from_pixel(64, 64, Luma([255]))));
    let request = session.defaults.clone().prompt("winter").reference(image(20, 30));
    session.run(&request.noise(ArrayD::zeros(vec![1, 16, 64]))).unwrap();
    session.keep_unchanged = Some(KeepUnchanged::default());
    session.edit("night").unwrap();
    session
}

/// A saved session, of which each test damages a copy.
static SAVED: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    session().save(folder.path()).unwrap();
    folder
});

fn copy() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(SAVED.path()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn index(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("session.json")).unwrap()).unwrap()
}

fn set_index(folder: &Path, index: &Value) {
    fs::write(folder.join("session.json"), index.to_string()).unwrap();
}

/// Returns the only file whose name starts and ends so.
fn file(folder: &Path, start: &str, end: &str) -> PathBuf {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let digest = name.strip_prefix(start).and_then(|rest| rest.strip_suffix(end));
        digest.is_some_and(|digest| digest.len() == 32)
    };
    let found: Vec<PathBuf> = names.filter(is).collect();
    assert_eq!(found.len(), 1, "{start}…{end}: {found:?}");
    found[0].clone()
}

fn words<T>(result: Result<T>) -> String {
    format!("{:#}", anyhow::Error::from(result.err().unwrap()))
}

/// Restores a folder; if it is restored, the next edit must run. Returns the error in words.
fn use_it(folder: &Path) -> Option<String> {
    match PIPE.restore_session(folder) {
        Ok(mut session) => {
            session.edit("snow").unwrap();
            None
        }
        Err(error) => Some(words::<()>(Err(error))),
    }
}

#[test]
fn a_number_at_the_extremes_is_refused_or_the_next_edit_runs() {
    // Every number of `session.json`, by its path.
    fn numbers(value: &Value, at: &str, all: &mut Vec<String>) {
        match value {
            Value::Number(_) => all.push(at.to_owned()),
            Value::Array(items) => (0..)
                .zip(items)
                .for_each(|(i, item): (usize, _)| numbers(item, &format!("{at}/{i}"), all)),
            Value::Object(fields) => fields
                .iter()
                .for_each(|(key, field)| numbers(field, &format!("{at}/{key}"), all)),
            _ => {}
        }
    }
    let mut whole = index(SAVED.path());
    // Those that a request leaves to the defaults.
    for request in ["/defaults/request", "/turns/1/edit/asked/request"] {
        let request = whole.pointer_mut(request).unwrap();
        for (key, value) in [("width", json!(64)), ("height", json!(64)), ("guidance", json!(2.5))] {
            assert!(request[key].is_null());
            request[key] = value;
        }
        request["sigmas"] = json!([1.0, 0.5]);
        request["loras"] = json!([]);
        request["max_area"] = Value::Null;
    }
    let folder = copy();
    let (mut all, mut edited) = (Vec::new(), BTreeSet::new());
    numbers(&whole, "", &mut all);
    assert!(all.len() > 30, "{all:?}");
    for (at, extreme) in all.iter().flat_map(|at| {
        let extremes = ["-1", "0", "1e-45", "1e308", "1e999", "18446744073709551615"];
        extremes.map(|extreme| (at, extreme))
    }) {
        let mut changed = whole.clone();
        *changed.pointer_mut(at).unwrap() = json!("EXTREME");
        let text = changed.to_string().replace("\"EXTREME\"", extreme);
        fs::write(folder.path().join("session.json"), text).unwrap();
        let restored = PIPE.restore_session(folder.path());
        // An edit for each number, and for each value of those that an edit uses.
        if let Ok(mut session) = restored
            && (edited.insert(at) || at.contains("keep_unchanged"))
        {
            // Its own request may be one of many steps, or refused; this one runs.
            let request = Request::default().prompt("snow").max_area(64 * 64).steps(1);
            session
                .run(&request)
                .unwrap_or_else(|error| panic!("{at} = {extreme}: {error}"));
        }
    }
}

#[test]
fn smoothing_that_would_take_for_ever_is_refused_when_a_session_is_restored() {
    let folder = copy();
    for smooth in [1e5, 1e7, 1e9, 1e12, 1e19, 3e38] {
        let mut changed = index(folder.path());
        changed["keep_unchanged"]["difference"]["smooth"] = json!(smooth);
        set_index(folder.path(), &changed);
        let error = use_it(folder.path()).unwrap();
        assert!(
            error.contains("invalid smooth: expected a number from 0 to 8192"),
            "{error}"
        );
    }
}

#[test]
fn a_file_with_another_content_is_refused_and_saving_again_repairs_it() {
    let (live, folder) = (session(), copy());
    // The copy is of another session with the same turns.
    fs::remove_file(folder.path().join("session.json")).unwrap();
    live.save(folder.path()).unwrap();
    let other = fs::read(file(folder.path(), "turn-1-", ".png")).unwrap();
    let latents = fs::read(file(folder.path(), "turn-1-latents-", ".safetensors")).unwrap();
    for (start, end, content) in [
        ("turn-0-", ".png", Vec::new()),
        ("turn-0-", ".png", other.clone()),
        ("turn-2-", ".png", other[..other.len() / 2].to_vec()),
        ("turn-2-changed-", ".png", other),
        ("turn-2-latents-", ".safetensors", latents.clone()),
        ("turn-2-latents-", ".safetensors", latents[..99].to_vec()),
        ("turn-1-noise-", ".safetensors", latents),
        ("turn-1-reference-0-", ".png", vec![0; 99]),
    ] {
        let path = file(folder.path(), start, end);
        fs::write(&path, content).unwrap();
        let error = use_it(folder.path()).unwrap();
        assert!(error.contains("its content is not the one that was saved"), "{error}");
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        fs::remove_file(path).unwrap();
        assert!(use_it(folder.path()).unwrap().contains("there is no such file"));
        live.save(folder.path()).unwrap();
        assert_eq!(use_it(folder.path()), None);
    }
    for damaged in [
        Vec::new(),
        vec![0; 4096],
        fs::read(folder.path().join("session.json")).unwrap()[..400].to_vec(),
    ] {
        fs::write(folder.path().join("session.json"), damaged).unwrap();
        assert!(use_it(folder.path()).unwrap().contains("session.json"));
        live.save(folder.path()).unwrap();
        assert_eq!(use_it(folder.path()), None);
    }
}

#[test]
fn a_session_that_could_not_be_restored_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("new");
    let change = |change: &dyn Fn(&mut Session)| {
        let mut session = PIPE.session(image(8, 8));
        change(&mut session);
        let error = session.save(&folder).unwrap_err().to_string();
        assert!(!folder.exists());
        error
    };
    let request = |set: &dyn Fn(Request) -> Request| change(&|session| session.defaults = set(Request::default()));
    let map = |map: DifferenceMap| change(&|session| session.keep_unchanged = Some(KeepUnchanged::Difference(map)));
    for (error, name) in [
        (request(&|r| r.true_cfg(f64::NAN)), "true_cfg"),
        (request(&|r| r.true_cfg(f64::INFINITY)), "true_cfg"),
        (request(&|r| r.guidance(f64::NAN)), "guidance"),
        (request(&|r| r.strength(f64::NAN)), "strength"),
        (request(&|r| r.sigmas([1.0, f32::NAN])), "sigmas"),
        (request(&|r| r.sigmas([f32::INFINITY])), "sigmas"),
        (request(&|r| r.lora("a", f64::NEG_INFINITY)), "scale of a LoRA"),
        (
            request(&|r| r.noise(ArrayD::from_elem(vec![1, 1, 64], f32::NAN))),
            "noise",
        ),
        (
            request(&|r| r.image_latents(ArrayD::zeros(vec![1, 1, 64]))),
            "image_latents",
        ),
        (
            map(DifferenceMap {
                threshold: f32::INFINITY,
                ..DifferenceMap::default()
            }),
            "threshold",
        ),
        (
            map(DifferenceMap {
                feather: f32::NAN,
                ..DifferenceMap::default()
            }),
            "feather",
        ),
        (
            change(&|session| {
                session.replace(RgbImage::new(0, 0));
            }),
            "pixels of an image",
        ),
        (
            // More than are opened, and fewer than 2^28.
            change(&|session| session.keep_unchanged = Some(KeepUnchanged::Mask(GrayImage::new(16_384, 10_923)))),
            "pixels of an image",
        ),
    ] {
        assert!(error.starts_with(&format!("invalid {name}: ")), "{name}: {error}");
    }
}

#[test]
fn another_session_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (mut first, mut second) = (session(), session());
    first.save(folder.path()).unwrap();
    let error = second.save(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("remove its session.json, got ") && error.ends_with("which holds another session, of 3 turns"),
        "{error}"
    );
    // A copy of the session goes on in the folder, and the first then would lose a turn.
    let mut copy = PIPE.restore_session(folder.path()).unwrap();
    copy.edit("snow").unwrap();
    copy.save(folder.path()).unwrap();
    let error = first.save(folder.path()).unwrap_err().to_string();
    assert!(
        error.ends_with("4 turns of this session, of which 1 were added elsewhere"),
        "{error}"
    );
    first.edit("rain").unwrap();
    let error = first.save(folder.path()).unwrap_err().to_string();
    assert!(
        error.ends_with("another turn 3 of this session, added elsewhere"),
        "{error}"
    );
    assert_eq!(PIPE.restore_session(folder.path()).unwrap().current().prompt(), "snow");
    // Nor is what is no session; the owner may remove it.
    for other in ["{}", "[]", "notes", "{\"format\": 9}"] {
        fs::write(folder.path().join("session.json"), other).unwrap();
        let error = second.save(folder.path()).unwrap_err().to_string();
        assert!(error.contains("no session that can be read"), "{error}");
    }
    fs::remove_file(folder.path().join("session.json")).unwrap();
    second.edit("fog").unwrap();
    second.save(folder.path()).unwrap();
    assert_eq!(PIPE.restore_session(folder.path()).unwrap().current().prompt(), "fog");
}

#[test]
fn a_folder_of_the_first_format_opens_and_is_saved_again() {
    let folder = copy();
    let mut old = index(folder.path());
    old["format"] = json!(1);
    old.as_object_mut().unwrap().remove("id");
    // Names with the hash of that format.
    let mut text = old.to_string();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if let Some((start, digest)) = name.split_once('.').and_then(|(stem, _)| stem.rsplit_once('-')) {
            let new = name.replace(digest, "0123456789abcdef");
            assert!(!start.is_empty());
            text = text.replace(name, &new);
            fs::rename(&path, path.with_file_name(new)).unwrap();
        }
    }
    fs::write(folder.path().join("session.json"), text).unwrap();
    let mut session = PIPE.restore_session(folder.path()).unwrap();
    session.edit("snow").unwrap();
    session.save(folder.path()).unwrap();
    session.save(folder.path()).unwrap();
    assert_eq!(index(folder.path())["format"], json!(2));
    assert_eq!(PIPE.restore_session(folder.path()).unwrap().turns().len(), 4);
}

#[test]
fn a_name_that_leads_out_of_the_folder_is_refused() {
    let folder = copy();
    let outside = tempfile::tempdir().unwrap();
    image(64, 64).save(outside.path().join("a.png")).unwrap();
    let whole = index(folder.path());
    let absolute = outside.path().join("a.png").to_str().unwrap().to_owned();
    let name = outside.path().file_name().unwrap().to_str().unwrap();
    for path in [
        &absolute,
        &format!("../{name}/a.png"),
        "..",
        ".",
        "",
        "/",
        "sub/../a.png",
        "a\0.png",
        &"a".repeat(300),
    ] {
        for at in [
            "/turns/0/picture",
            "/turns/2/latents",
            "/turns/2/changed",
            "/turns/1/edit/asked/references/0",
        ] {
            let mut changed = whole.clone();
            *changed.pointer_mut(at).unwrap() = json!(path);
            set_index(folder.path(), &changed);
            let error = use_it(folder.path()).unwrap();
            let words = if path.len() > 255 {
                "cannot access"
            } else {
                "is no file of this folder; correct it"
            };
            assert!(error.contains(words), "{path:?}: {error}");
        }
    }
}

#[cfg(unix)]
#[test]
fn a_link_out_of_the_folder_is_neither_read_nor_written() {
    use std::os::unix::fs::symlink;

    let (live, folder) = (session(), tempfile::tempdir().unwrap());
    let outside = tempfile::tempdir().unwrap();
    live.save(folder.path()).unwrap();
    let path = file(folder.path(), "turn-0-", ".png");
    let target = outside.path().join("private.png");
    fs::copy(&path, &target).unwrap();
    fs::remove_file(&path).unwrap();
    symlink(&target, &path).unwrap();
    let error = use_it(folder.path()).unwrap();
    assert!(error.contains("is no file of this folder"), "{error}");
    fs::write(&target, "mine").unwrap();
    live.save(folder.path()).unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"mine");
    assert_eq!(use_it(folder.path()), None);
    // The index itself, and things that are no files.
    let json = folder.path().join("session.json");
    fs::rename(&json, outside.path().join("session.json")).unwrap();
    symlink(outside.path().join("session.json"), &json).unwrap();
    assert!(use_it(folder.path()).unwrap().contains("is no file of this folder"));
    assert!(live.save(folder.path()).is_err());
    fs::remove_file(&json).unwrap();
    symlink("/dev/zero", &json).unwrap();
    assert!(use_it(folder.path()).is_some() && live.save(folder.path()).is_err());
    fs::remove_file(&json).unwrap();
    fs::create_dir(&json).unwrap();
    assert!(use_it(folder.path()).unwrap().contains("is no file of this folder"));
    assert!(live.save(folder.path()).is_err());
}

#[test]
fn images_that_take_more_than_the_memory_are_refused() {
    let folder = copy();
    // Its head says 16384x16384: 268 million pixels. Nothing of it is decoded.
    let mut large = fs::read(file(folder.path(), "turn-0-", ".png")).unwrap();
    for side in [16, 20] {
        large[side..side + 4].copy_from_slice(&16_384_u32.to_be_bytes());
    }
    let sum = crc32fast::hash(&large[12..29]);
    large[29..33].copy_from_slice(&sum.to_be_bytes());
    fs::write(folder.path().join("large.png"), large).unwrap();
    let mut changed = index(folder.path());
    changed["current"] = json!(0);
    changed["turns"] = (0..10_000).map(|id| turn(id, "large.png")).collect();
    set_index(folder.path(), &changed);
    let error = use_it(folder.path()).unwrap();
    assert!(
        error.starts_with("cannot allocate 8053064 MB for the images of the session"),
        "{error}"
    );
}

/// A turn without a run.
fn turn(id: usize, image: &str) -> Value {
    json!({"parent": id.checked_sub(1), "next": null, "picture": image, "changed": null, "latents": null, "edit": null})
}

#[test]
fn latents_that_are_not_finite_are_refused_when_a_session_is_restored() {
    let folder = copy();
    let whole = index(folder.path());
    for (value, shown) in [(f64::NAN, "NaN"), (f64::INFINITY, "inf"), (1e9, "1e9")] {
        let tensor = Tensor::full([1, 16, 64], value, (kontext::Kind::Float, Device::Cpu));
        let path = folder.path().join("wrong.safetensors");
        save(&path, &[("latents".to_owned(), tensor)], None).unwrap();
        for (at, name) in [("/turns/2/latents", "latents"), ("/turns/1/edit/asked/noise", "noise")] {
            let mut changed = whole.clone();
            *changed.pointer_mut(at).unwrap() = json!("wrong.safetensors");
            set_index(folder.path(), &changed);
            let error = use_it(folder.path()).unwrap();
            let words = format!("invalid {name}: expected finite numbers from -65504 to 65504, got {shown}");
            assert!(
                error.contains("wrong.safetensors: ") && error.contains(&words),
                "{error}"
            );
        }
    }
}

#[test]
fn a_session_of_ten_thousand_turns_is_restored() {
    let folder = copy();
    image(16, 16).save(folder.path().join("small.png")).unwrap();
    let mut changed = index(folder.path());
    changed["turns"] = (0..10_000).map(|id| turn(id, "small.png")).collect();
    changed["current"] = json!(9_999);
    set_index(folder.path(), &changed);
    let mut session = PIPE.restore_session(folder.path()).unwrap();
    assert_eq!(session.history().len(), 10_000);
    session.edit("snow").unwrap();
}
