//! Weighted words in the prompts of runs.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::ops::ControlFlow;

use common::model;
use kontext::image::RgbImage;
use kontext::{CfgMode, Conformance, Device, Event, Layout, Output, Pipeline, Request, Tensor, Warning};

fn pipeline() -> Pipeline {
    let builder = Pipeline::builder().device(Device::Cpu);
    builder.load(model(Layout::Diffusers)).unwrap()
}

fn request(prompt: &str) -> Request {
    Request::generate(prompt).max_area(64 * 64).steps(1).seed(1)
}

fn weighted(prompt: &str) -> Request {
    request(prompt).prompt_weights(true)
}

fn latents(pipe: &Pipeline, request: &Request) -> Output {
    pipe.run(request).unwrap()
}

/// Returns T5's states and CLIP's vector of each prompt of a run, and if they were in the cache.
fn encoded(pipe: &Pipeline, request: &Request) -> Vec<(Tensor, Tensor, bool)> {
    let mut all = Vec::new();
    let run = pipe.run_with(request, |event| {
        if let Event::Encoded {
            conditioning, cached, ..
        } = event
        {
            let copies = (conditioning.prompt_embeds.copy(), conditioning.pooled.copy());
            all.push((copies.0, copies.1, cached));
        }
        ControlFlow::Continue(())
    });
    run.unwrap();
    all
}

#[test]
fn parentheses_are_text_unless_they_weigh_words() {
    let pipe = pipeline();
    let plain = latents(&pipe, &request("a red hat"));
    assert_eq!(latents(&pipe, &weighted("a red hat")).latents, plain.latents);
    assert_eq!(latents(&pipe, &weighted("(a red hat:1)")).latents, plain.latents);
    assert_eq!(
        latents(&pipe, &weighted(r"a \(red\) hat")).latents,
        latents(&pipe, &request("a (red) hat")).latents
    );
    let heavy = latents(&pipe, &weighted("a (red:1.5) hat"));
    assert_ne!(heavy.latents, plain.latents);
    assert_ne!(heavy.latents, latents(&pipe, &request("a (red:1.5) hat")).latents);
    // The plan and the file say so.
    assert!(heavy.plan.prompt_weights && heavy.plan.to_string().contains("parentheses weigh words"));
    let text = |output: &Output| String::from_utf8_lossy(&output.to_png().unwrap()).contains("prompt_weights");
    assert!(text(&heavy) && !text(&plain));
}

#[test]
fn the_cache_tells_both_readings_of_a_prompt_apart() {
    let pipe = pipeline();
    let prompt = "a (red:1.5) hat";
    let cached = |request: &Request| encoded(&pipe, request)[0].2;
    assert!(!cached(&request(prompt)) && !cached(&weighted(prompt)));
    assert!(cached(&request(prompt)) && cached(&weighted(prompt)));
    let (plain, heavy) = (encoded(&pipe, &request(prompt)), encoded(&pipe, &weighted(prompt)));
    assert_ne!(plain[0].0, heavy[0].0);
}

#[test]
fn weights_act_in_each_prompt_of_both_encoders_and_on_t5_only() {
    let pipe = pipeline();
    let both = |prompt: &str, negative: &str, mode| {
        let request = weighted("a (cup:3)").prompt_2(prompt).negative_prompt("(dull:2)");
        let request = request.negative_prompt_2(negative).true_cfg(2.0).cfg_mode(mode);
        encoded(&pipe, &request)
    };
    for mode in [CfgMode::Sequential, CfgMode::Batched] {
        let (plain, heavy) = (both("a red hat", "blue", mode), both("a (red) hat", "(blue:0)", mode));
        for (plain, heavy) in plain.iter().zip(&heavy) {
            assert_ne!(plain.0, heavy.0);
            assert_eq!(plain.1, heavy.1);
        }
    }
    let plain = encoded(&pipe, &request("a cup"));
    assert_eq!(both("a", "b", CfgMode::Sequential)[0].1, plain[0].1);
}

#[test]
fn the_unseen_is_reported_of_weighted_prompts() {
    let pipe = pipeline();
    for _ in 0..2 {
        let unseen = latents(&pipe, &weighted("a (漢字:1.2) cup")).unseen;
        assert!(unseen.unknown.iter().all(|unknown| unknown.texts == ["漢字"]) && !unseen.is_empty());
        let unseen = latents(&pipe, &weighted(&format!("{}(end:1.2)", "word ".repeat(1000)))).unseen;
        assert!(unseen.truncated.len() == 2 && unseen.truncated.iter().all(|cut| cut.text.ends_with("word end")));
    }
}

#[test]
fn other_conventions_read_parentheses_as_text_and_bad_weights_are_refused_before_any_work() {
    let pipe = pipeline();
    for conformance in [Conformance::Diffusers, Conformance::Bfl] {
        let base = Request::edit(RgbImage::new(64, 64), "a (red:1.5) hat")
            .size(64, 64)
            .steps(1)
            .seed(1);
        let base = base.conform(conformance);
        let output = latents(&pipe, &base.clone().prompt_weights(true));
        assert_eq!(output.latents, latents(&pipe, &base).latents, "{conformance:?}");
        assert!(
            output
                .plan
                .warnings
                .contains(&Warning::PromptWeightsIgnored { conformance })
        );
    }
    for bad in ["(a:1e9)".to_owned(), format!("{}{}", "(".repeat(65), ")".repeat(65))] {
        for request in [
            weighted(&bad),
            weighted("").prompt_2(&bad),
            weighted("").negative_prompt(&bad),
        ] {
            let error = pipe.plan(&request).unwrap_err().to_string();
            assert!(error.contains("weight"), "{error}");
        }
        pipe.plan(&request(&bad)).unwrap();
    }
}
