//! The cache of encoded prompts and reference images that the runs of a pipeline share.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use image::{Rgb, RgbImage};
use kontext::{Device, Event, Layout, Pipeline, PipelineBuilder, Placement, Request};

fn builder() -> PipelineBuilder {
    Pipeline::builder().device(Device::Cpu).max_sequence_length(32)
}

fn load(builder: &PipelineBuilder) -> Pipeline {
    builder.load(common::model(Layout::Diffusers)).unwrap()
}

fn image() -> RgbImage {
    RgbImage::from_fn(70, 50, |x, y| Rgb([(x * 7) as u8, (y * 5) as u8, (x + y) as u8]))
}

fn edit(prompt: &str) -> Request {
    edit_of(image(), prompt)
}

fn edit_of(image: RgbImage, prompt: &str) -> Request {
    Request::edit(image, prompt).max_area(64 * 64).steps(2).seed(3)
}

/// Runs a request; returns the bytes of its image, and the numbers of prompts and images that it encoded and that it
/// found in the cache.
fn run(pipe: &Pipeline, request: &Request) -> (Vec<u8>, [usize; 4]) {
    let mut counts = [0; 4];
    let observe = |event: Event<'_>| {
        match event {
            Event::Encoded { cached, .. } => counts[if cached { 2 } else { 0 }] += 1,
            Event::Reference { cached, .. } => counts[if cached { 3 } else { 1 }] += 1,
            _ => {}
        }
        ControlFlow::Continue(())
    };
    let output = pipe.run_with(request, observe).unwrap();
    (output.image.into_raw(), counts)
}

#[test]
fn a_repeated_edit_encodes_nothing_and_has_the_same_bytes() {
    let (pipe, without) = (load(&builder()), load(&builder().encoding_cache(0)));
    // Equal pixels, each time in another allocation.
    let guided = || edit("night").true_cfg(2.0).negative_prompt("blurred");
    let (first, counts) = run(&pipe, &guided());
    assert_eq!(counts, [2, 1, 0, 0]);
    assert_eq!(run(&pipe, &guided()), (first.clone(), [0, 0, 2, 1]));
    for _ in 0..2 {
        assert_eq!(run(&without, &guided()), (first.clone(), [2, 1, 0, 0]));
    }
    // Another prompt, another image, another size of the same image.
    assert_eq!(run(&pipe, &edit("day")).1, [1, 0, 0, 1]);
    let mut pixels = image();
    pixels.put_pixel(69, 49, Rgb([0; 3]));
    assert_eq!(run(&pipe, &edit_of(pixels, "night")).1, [0, 1, 1, 0]);
    assert_eq!(run(&pipe, &edit("night").max_area(96 * 96)).1, [0, 1, 1, 0]);
}

#[test]
fn a_staged_pipeline_loads_no_encoder_for_prompts_in_the_cache() {
    let folder = common::copy(Layout::Diffusers);
    let pipe = builder().placement(Placement::Staged).load(folder.path()).unwrap();
    let (first, _) = run(&pipe, &edit("night"));
    let weights = folder.path().join("text_encoder_2/model.safetensors");
    std::fs::remove_file(&weights).unwrap();
    assert_eq!(run(&pipe, &edit("night")).0, first);
    let error = pipe.run(&edit("day")).unwrap_err().to_string();
    assert!(error.contains("text_encoder_2"), "{error}");
}

#[test]
fn a_run_from_an_image_of_another_size_than_its_reference_encodes_it_once() {
    let pipe = load(&builder());
    let from_image = edit("night").strength(0.5);
    let first = run(&pipe, &from_image);
    assert_eq!(run(&pipe, &from_image).0, first.0);
    assert_eq!(run(&load(&builder().encoding_cache(0)), &from_image), first);
}

#[test]
fn sessions_and_runs_share_the_cache_and_unloading_empties_it() {
    let pipe = Arc::new(load(&builder()));
    let (first, _) = run(&pipe, &edit("night"));
    let mut session = pipe.session(image());
    session.defaults = Request::default().max_area(64 * 64).steps(2).seed(3);
    let mut encoded = 0;
    let observe = |event: Event<'_>| {
        let fresh = matches!(
            event,
            Event::Encoded { cached: false, .. } | Event::Reference { cached: false, .. }
        );
        encoded += usize::from(fresh);
        ControlFlow::Continue(())
    };
    let request = session.request("night");
    let turn = session.run_with(&request, observe).unwrap();
    assert_eq!(turn.image.as_raw(), &first);
    assert_eq!(encoded, 0);
    assert!(pipe.unload());
    assert_eq!(run(&pipe, &edit("night")), (first, [1, 1, 0, 0]));
}

#[test]
fn the_least_recently_used_prompt_makes_room() {
    let mut elements = 0;
    let observe = |event: Event<'_>| {
        if let Event::Encoded { conditioning, .. } = event {
            elements = conditioning.prompt_embeds.numel() + conditioning.pooled.numel();
        }
        ControlFlow::Continue(())
    };
    load(&builder()).run_with(&edit("a"), observe).unwrap();
    // In f32, with a letter for each encoder; half of the capacity holds two prompts.
    let prompt = 4 * elements as u64 + 2;
    let pipe = load(&builder().encoding_cache(2 * (2 * prompt)));
    let fresh = |prompt: &str| run(&pipe, &edit(prompt)).1[0];
    assert_eq!(["a", "b", "a", "c", "a", "b"].map(fresh), [1, 1, 0, 1, 0, 1]);
}

#[test]
fn a_run_that_needs_the_memory_takes_that_of_the_cache() {
    let builder = builder().placement(Placement::Resident);
    let plans = builder
        .memory(common::model(Layout::Diffusers), &edit("night"))
        .unwrap();
    let needed = plans[0].peak().1;
    let (tight, wide) = (builder.clone().memory_budget(needed), builder.memory_budget(2 * needed));
    let (tight, wide) = (load(&tight), load(&wide));
    let (first, _) = run(&tight, &edit("night"));
    assert_eq!(run(&tight, &edit("night")), (first.clone(), [1, 1, 0, 0]));
    assert_eq!(run(&wide, &edit("night")).0, first);
    assert_eq!(run(&wide, &edit("night")), (first, [0, 0, 1, 1]));
}

#[test]
fn a_run_that_goes_on_after_unloading_leaves_nothing_in_the_cache() {
    let pipe = load(&builder());
    let mut unloaded = false;
    let observe = |event: Event<'_>| {
        // Before the reference is encoded, which is after the prompt.
        if matches!(event, Event::Encoded { .. }) {
            unloaded = pipe.unload();
        }
        ControlFlow::Continue(())
    };
    pipe.run_with(&edit("night"), observe).unwrap();
    assert!(unloaded);
    // The reference was looked for after the unloading, and the prompt before it.
    assert_eq!(run(&pipe, &edit("night")).1, [1, 0, 0, 1]);
}
