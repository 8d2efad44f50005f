//! LoRAs by request: runs with different LoRAs on one pipeline, at the same time and while its LoRAs change.
//! Everything is compared byte by byte with a pipeline that was loaded with these LoRAs.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use common::loras::{Model, cat, image};
use kontext::{Device, Event, LoraScale, LoraUse, Pipeline, Placement, Request, image::RgbImage};

/// A change of a pipeline's LoRAs.
type Change = fn(&Pipeline);

/// Returns the image's bytes.
fn bytes(pipe: &Pipeline, request: &Request) -> Vec<u8> {
    pipe.run(request).unwrap().image.into_raw()
}

/// Loads all LoRAs without activating them.
fn inactive(model: &Model, placement: Placement) -> Pipeline {
    let text = model.text_lora();
    let builder = Pipeline::builder().device(Device::Cpu).placement(placement);
    let files = [model.lora("red"), model.lora("blue"), text];
    let builder = files
        .into_iter()
        .fold(builder, |builder, file| builder.use_lora(LoraUse::new(file).inactive()));
    builder.load(model.path()).unwrap()
}

/// A point that threads leave together. A barrier that fails instead of waiting for ever.
#[derive(Default)]
struct Meeting {
    arrived: Mutex<usize>,
    changed: Condvar,
}

impl Meeting {
    fn wait(&self, threads: usize) {
        let mut arrived = self.arrived.lock().unwrap();
        *arrived += 1;
        let round = (*arrived).div_ceil(threads) * threads;
        self.changed.notify_all();
        let limit = Duration::from_secs(120);
        let (_guard, waited) = self
            .changed
            .wait_timeout_while(arrived, limit, |arrived| *arrived < round)
            .unwrap();
        assert!(!waited.timed_out(), "the other runs do not go on");
    }
}

/// Runs requests on a thread each, which wait for each other at every event.
fn together(pipe: &Pipeline, requests: &[Request]) -> Vec<Vec<u8>> {
    let meeting = Meeting::default();
    let run = |request| {
        let observe = |_: Event<'_>| {
            meeting.wait(requests.len());
            ControlFlow::Continue(())
        };
        pipe.run_with(request, observe).unwrap().image.into_raw()
    };
    thread::scope(|threads| {
        let runs: Vec<_> = requests.iter().map(|request| threads.spawn(|| run(request))).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    })
}

#[test]
fn requests_with_different_loras_run_at_the_same_time() {
    let model = Model::new();
    let fresh = |loras: &[(&str, f64)]| image(&model.load(loras));
    for placement in [Placement::Resident, Placement::Staged, Placement::Streamed] {
        let pipe = inactive(&model, placement);
        let requests = [
            cat().lora("red", 0.5),
            cat().lora("blue", 1.0).lora("red", -0.7),
            cat().lora("text", 1.0),
            cat(),
        ];
        let expected = [
            fresh(&[("red", 0.5)]),
            fresh(&[("blue", 1.0), ("red", -0.7)]),
            fresh(&[("text", 1.0)]),
            fresh(&[]),
        ];
        for (index, image) in expected.iter().enumerate() {
            assert!(!expected[..index].contains(image));
        }
        assert!(together(&pipe, &requests) == expected, "together, {placement}");
        // The second time, adapters of a resident part come from the cache.
        assert!(together(&pipe, &requests) == expected, "again, {placement}");
        let serial: Vec<_> = requests.iter().map(|request| bytes(&pipe, request)).collect();
        assert!(serial == expected, "serial, {placement}");
    }
}

#[test]
fn active_loras_apply_to_requests_that_name_none() {
    let model = Model::new();
    let pipe = inactive(&model, Placement::Resident);
    let plain = image(&pipe);
    pipe.set_lora_scale("red", 0.5).unwrap();
    let scales: Vec<f64> = pipe.loras().iter().map(kontext::LoadedLora::scale).collect();
    assert_eq!(scales, [0.5, 0.0, 0.0]);
    assert_eq!(image(&pipe), image(&model.load(&[("red", 0.5)])));
    assert_eq!(bytes(&pipe, &cat().without_loras()), plain);
    assert_eq!(bytes(&pipe, &cat().lora("red", 0.0)), plain);
    assert_eq!(
        bytes(&pipe, &cat().lora("blue", 1.0)),
        image(&model.load(&[("blue", 1.0)]))
    );
}

#[test]
fn a_requests_scale_multiplies_those_of_layers() {
    let model = Model::new();
    let block = || {
        LoraUse::new(model.lora("red"))
            .layer_scale("*", 0.0)
            .layer_scale("single_blocks.1.*", 0.5)
    };
    let pipe = model.load(&[]);
    pipe.set_loras([block().scale(0.8)]).unwrap();
    let expected = image(&pipe);
    pipe.set_loras([block().scale(3.0)]).unwrap();
    assert_ne!(image(&pipe), expected);
    assert_eq!(bytes(&pipe, &cat().lora("red", 0.8)), expected);
}

#[test]
fn a_run_keeps_the_loras_that_it_began_with() {
    let model = Model::new();
    let changes: [(&str, Change); 3] = [
        ("scale", |pipe| pipe.set_lora_scale("red", -1.0).unwrap()),
        ("remove", |pipe| pipe.remove_lora("red").unwrap()),
        ("replace", |pipe| pipe.set_loras([]).unwrap()),
    ];
    let all = || {
        [
            LoraUse::new(model.lora("red")).scale(0.5),
            LoraUse::new(model.text_lora()).scale(0.7),
        ]
    };
    for placement in [Placement::Resident, Placement::Staged] {
        let pipe = inactive(&model, placement);
        pipe.set_loras(all()).unwrap();
        let named = cat().lora("red", 0.5).lora("text", 0.7);
        let expected = image(&pipe);
        assert_eq!(bytes(&pipe, &named), expected);
        for (name, change) in changes {
            for request in [&cat(), &named] {
                // Before the text is encoded, before the transformer is leased, and between two steps.
                for moment in 0..3 {
                    pipe.set_loras(all()).unwrap();
                    let mut changed = false;
                    let observe = |event: Event<'_>| {
                        let now = match event {
                            Event::Planned { .. } => moment == 0,
                            Event::Noise { .. } => moment == 1,
                            Event::Step { done, .. } => moment == 2 && done == 1,
                            _ => false,
                        };
                        if now {
                            change(&pipe);
                            changed = true;
                        }
                        ControlFlow::Continue(())
                    };
                    let image = pipe.run_with(request, observe).unwrap().image.into_raw();
                    assert!(changed && image == expected, "{name} at {moment}, {placement}");
                }
            }
            assert_ne!(image(&pipe), expected, "{name}, {placement}");
        }
    }
}

#[test]
fn a_pattern_of_layers_without_effect_is_refused_with_every_placement() {
    let model = Model::new();
    let (red, text) = (model.lora("red"), model.text_lora());
    let red = || LoraUse::new(&red);
    let text = || LoraUse::new(&text);
    for placement in [Placement::Resident, Placement::Staged, Placement::Streamed] {
        let builder = || Pipeline::builder().device(Device::Cpu).placement(placement);
        let pipe = builder().load(model.path()).unwrap();
        let changes = "expected a pattern of layers that ";
        for (lora, words) in [
            (
                red().layer_scale("singel_blocks.*", 0.5),
                [changes, "`red` changes, as `", "got `singel_blocks.*`"],
            ),
            // Layers of the model that the LoRA does not change.
            (red().layer_scale("t5.*", 0.5), [changes, "`red` changes", "got `t5.*`"]),
            (
                text().layer_scale("double_blocks.*", 0.5),
                [
                    changes,
                    "`text` changes, as `clip.encoder.layers.0.mlp.fc1`",
                    "got `double_blocks.*`",
                ],
            ),
            // A later pattern decides for all of its layers.
            (
                red()
                    .layer_scale("single_blocks.1.*", 0.5)
                    .layer_scale("single_blocks.*", 0.0),
                [
                    "the last match counts",
                    "from the general to the special",
                    "got `single_blocks.1.*`",
                ],
            ),
        ] {
            let added = pipe.add_lora(lora.clone()).unwrap_err().to_string();
            let loaded = builder()
                .use_lora(lora.inactive())
                .load(model.path())
                .unwrap_err()
                .to_string();
            for error in [added, loaded] {
                assert!(error.starts_with("invalid layer_scale: expected "), "{error}");
                assert!(words.iter().all(|words| error.contains(words)), "{placement}: {error}");
            }
            assert!(pipe.loras().is_empty());
        }
    }
}

#[test]
fn a_pattern_of_clip_needs_no_prefix_and_a_repeated_one_replaces_its_scale() {
    let model = Model::new();
    let pipe = model.load(&[]);
    let plain = image(&pipe);
    let text = || LoraUse::new(model.text_lora());
    let with = |lora: LoraUse| {
        pipe.set_loras([lora]).unwrap();
        image(&pipe)
    };
    let full = with(text());
    assert_ne!(full, plain);
    for pattern in ["clip.encoder.*", "clip.text_model.encoder.*", "clip.*.fc1", "*"] {
        assert!(with(text().layer_scale(pattern, 0.0)) == plain, "{pattern}");
        assert!(
            with(text().layer_scale(pattern, 0.0).layer_scale(pattern, 1.0)) == full,
            "{pattern}"
        );
    }
}

#[test]
fn a_run_in_the_callback_of_another_has_its_own_loras() {
    let model = Model::new();
    let pipe = inactive(&model, Placement::Resident);
    let [red, blue] = ["red", "blue"].map(|name| cat().lora(name, 1.0));
    let (outer, inner) = (bytes(&pipe, &red), bytes(&pipe, &blue));
    let observe = |event: Event<'_>| {
        if matches!(event, Event::Step { .. }) {
            assert_eq!(bytes(&pipe, &blue), inner);
        }
        ControlFlow::Continue(())
    };
    assert_eq!(pipe.run_with(&red, observe).unwrap().image.into_raw(), outer);
}

#[test]
fn a_run_that_panics_leaves_no_adapters_in_use() {
    let model = Model::new();
    let pipe = inactive(&model, Placement::Resident);
    let plain = image(&pipe);
    let panicking = || {
        pipe.run_with(&cat().lora("red", 1.0), |event| match event {
            Event::Step { .. } => panic!("in a callback"),
            _ => ControlFlow::Continue(()),
        })
    };
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panicking)).is_err());
    assert_eq!(image(&pipe), plain);
}

#[test]
fn names_and_scales_are_checked_before_any_work() {
    let model = Model::new();
    let refused = |pipe: &Pipeline, request: &Request| {
        let observe = |_: Event<'_>| -> ControlFlow<()> { panic!("the run began") };
        let error = pipe.run_with(request, observe).unwrap_err().to_string();
        assert_eq!(pipe.plan(request).unwrap_err().to_string(), error);
        error
    };
    let pipe = inactive(&model, Placement::Resident);
    assert_eq!(
        refused(&pipe, &cat().lora("green", 1.0)),
        "invalid name of a LoRA: expected `red`, `blue`, `text`, got `green`"
    );
    assert_eq!(
        refused(&pipe, &cat().lora("red", 1.0).lora("red", 0.5)),
        "invalid names of LoRAs: expected each once in a request, got `red` twice"
    );
    assert_eq!(
        refused(&pipe, &cat().lora("red", f64::INFINITY)),
        "invalid scale of a LoRA: expected a number in the range of f32, got inf"
    );
    let builder = Pipeline::builder().device(Device::Cpu).lora(model.lora("red"), 1.0);
    let fused = builder.fuse_loras(true).load(model.path()).unwrap();
    for request in [cat().lora("red", 1.0), cat().without_loras()] {
        let error = fused.plan(&request).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("load the model again without `fuse_loras`"), "{cause}");
        refused(&fused, &request);
    }
}

#[test]
fn an_inactive_lora_that_does_not_fit_is_refused_when_it_is_added() {
    let model = Model::new();
    let path = model.text_lora();
    let wide = |(name, t): (String, kontext::Tensor)| {
        let t = if name.contains("down") {
            kontext::Tensor::cat(&[&t, &t], 1)
        } else {
            t
        };
        (name, t)
    };
    let tensors: Vec<_> = common::tensors(&path).into_iter().map(wide).collect();
    kontext_formats::save(&path, &tensors, None).unwrap();
    let pipe = model.load(&[]);
    let refused = |added: kontext::Result<()>| {
        let error = added.unwrap_err();
        std::error::Error::source(&error).unwrap().to_string()
    };
    // Neither too wide nor with too few rows, which an encoder's fused layers would have room for.
    let error = refused(pipe.add_lora(LoraUse::new(&path).inactive()));
    assert!(
        error.starts_with("tensor `adapter of text_model.encoder.layers.0.mlp.fc1` has shape"),
        "{error}"
    );
    let path = model.text_lora();
    let short = |(name, t): (String, kontext::Tensor)| {
        let t = if name.contains("up") { t.narrow(0, 0, 1) } else { t };
        (name, t)
    };
    let tensors: Vec<_> = common::tensors(&path).into_iter().map(short).collect();
    kontext_formats::save(&path, &tensors, None).unwrap();
    let error = refused(pipe.add_lora(LoraUse::new(&path).inactive()));
    assert!(error.contains("fc1` has shape [1, "), "{error}");
    assert!(pipe.loras().is_empty());
}

#[test]
fn loras_apply_again_after_the_parts_were_unloaded() {
    let model = Model::new();
    let pipe = inactive(&model, Placement::Resident);
    let request = |name: &str| Request::generate("a hat").size(32, 32).steps(1).seed(3).lora(name, 1.0);
    let render = |request: &Request| pipe.run(request).unwrap().image;
    let plain = render(&request("red").without_loras());
    for name in ["red", "text"] {
        let styled = render(&request(name));
        assert_ne!(styled, plain);
        assert!(pipe.unload());
        assert_eq!(render(&request(name)), styled);
        assert_eq!(render(&request(name).without_loras()), plain);
        // The active ones, too, which were prepared for the parts before.
        pipe.set_lora_scale(name, 1.0).unwrap();
        assert!(pipe.unload());
        let mut active = request(name);
        active.loras = None;
        assert_eq!(render(&active), styled);
        pipe.set_lora_scale(name, 0.0).unwrap();
    }
}

#[test]
fn a_session_encodes_a_prompt_again_for_another_lora_of_a_text_encoder() {
    let model = Model::new();
    let pipe = Arc::new(inactive(&model, Placement::Resident));
    let turn = || Request::default().max_area(32 * 32).steps(1).seed(3).prompt("a hat");
    let mut session = pipe.session(RgbImage::new(32, 32));
    let mut edit = |request: &Request| {
        let mut texts = 0;
        let observe = |event: Event<'_>| {
            texts += usize::from(matches!(event, Event::Encoded { cached: false, .. }));
            ControlFlow::Continue(())
        };
        let image = session.run_with(request, observe).unwrap().image.clone().into_raw();
        assert!(session.undo());
        (image, texts)
    };
    let text = |scale: f64| turn().lora("text", scale);
    let (plain, first) = edit(&turn());
    let (styled, second) = edit(&text(1.0));
    assert_eq!((first, second), (1, 1));
    assert_ne!(styled, plain);
    assert_eq!(edit(&text(1.0)), (styled.clone(), 0));
    assert_eq!(edit(&text(0.5)).1, 1);
    // One of the transformer only: the prompt's encoding is the same.
    let (red, third) = edit(&turn().lora("red", 1.0));
    assert!(third == 0 && red != plain);
    // Active LoRAs count as well, and so does another LoRA of the same name.
    pipe.set_lora_scale("text", 1.0).unwrap();
    assert_eq!(edit(&turn()), (styled, 0));
    pipe.remove_lora("text").unwrap();
    assert_eq!(edit(&turn()), (plain, 0));
    pipe.add_lora(model.text_lora()).unwrap();
    assert_eq!(edit(&turn()).1, 1);
}

#[test]
fn the_loras_of_a_turn_are_saved() {
    let model = Model::new();
    let pipe = Arc::new(inactive(&model, Placement::Resident));
    let mut session = pipe.session(RgbImage::new(32, 32));
    session.defaults = Request::default().max_area(32 * 32).steps(1).seed(3).lora("blue", 0.3);
    session.edit("a hat").unwrap();
    let folder = tempfile::tempdir().unwrap();
    session.save(folder.path()).unwrap();
    let mut restored = pipe.restore_session(folder.path()).unwrap();
    let expected = Some(vec![LoraScale {
        name: "blue".to_owned(),
        scale: 0.3,
    }]);
    assert_eq!(restored.current().request().unwrap().loras, expected);
    assert_eq!(restored.defaults.loras, expected);
    assert_eq!(
        restored.edit("a scarf").unwrap().image,
        session.edit("a scarf").unwrap().image
    );
    // A folder of an earlier version has no such key.
    let index = folder.path().join("session.json");
    let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(&index).unwrap()).unwrap();
    let request = value["defaults"]["request"].as_object_mut().unwrap();
    assert!(request.remove("loras").is_some());
    std::fs::write(&index, value.to_string()).unwrap();
    assert_eq!(pipe.restore_session(folder.path()).unwrap().defaults.loras, None);
}
