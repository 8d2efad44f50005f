//! Runs with a step cache: what they compute, and how far their results are from exact ones on the shipped model.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use kontext::crates::kontext_sampler::CfgMode;
use kontext::image::{RgbImage, imageops};
use kontext::{Conformance, Device, Event, ModelSizes, Output, Pipeline, Request, StepCache, StepWork, open_image};
use kontext_bench::metrics::psnr;

static MODEL: LazyLock<PathBuf> = LazyLock::new(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("models/kontext-emoji"));

/// Held-out edits of the model's card: their strips, which begin with the source at twice its size, and instructions.
const EDITS: [(&str, &str); 8] = [
    ("character-occupation", "make her a health worker"),
    ("compound-background", "make the background pink in flat style"),
    ("compound-letter", "change the text to ab in high contrast style"),
    ("global-invert", "invert the colours"),
    ("local-colour", "make the square brown"),
    ("local-hair", "give them white hair"),
    ("local-moon", "make it a waxing crescent moon"),
    ("text-keycap", "change the number to 4"),
];

/// Modes of step cache and of reuse of references, and the least PSNR to the exact run of 28 steps, in dB: of the mean
/// squared error of all edits, and of the worst edit.
const BOUNDS: [(&str, Option<&str>, [f64; 2]); 11] = [
    ("magcache", None, [43.0, 40.0]),
    ("magcache:threshold=0.03", None, [50.0, 46.0]),
    ("taylor", None, [45.0, 41.0]),
    ("taylor:interval=2,first=6", None, [53.0, 50.0]),
    ("first-block", None, [50.0, 45.0]),
    ("teacache", None, [39.0, 36.0]),
    ("off", Some("references"), [0.0, 0.0]),
    ("off", Some("references:every=7"), [0.0, 0.0]),
    ("magcache", Some("references"), [0.0, 0.0]),
    ("taylor", Some("references"), [0.0, 0.0]),
    ("off", Some("region"), [0.0, 0.0]),
];

fn shipped() -> Pipeline {
    Pipeline::builder().device(Device::Cpu).load(&*MODEL).unwrap()
}

fn source(name: &str) -> RgbImage {
    let strip = open_image(MODEL.join(format!("pictures/{name}.png"))).unwrap();
    let twice = imageops::crop_imm(&strip, 0, 0, 128, 128).to_image();
    imageops::resize(&twice, 64, 64, imageops::FilterType::Nearest)
}

fn cache(text: &str) -> StepCache {
    text.parse().unwrap()
}

fn computed(work: &[StepWork]) -> Vec<usize> {
    (0..work.len())
        .filter(|step| work[*step] == StepWork::Computed)
        .collect()
}

#[test]
fn each_mode_keeps_its_bound_on_held_out_edits_of_the_shipped_model() {
    let pipe = shipped();
    let run = |(name, instruction): (&str, &str), cache: StepCache, reuse: Option<&str>| {
        let mut request = Request::edit(source(name), instruction)
            .steps(28)
            .seed(1)
            .step_cache(cache);
        request.reference_reuse = reuse.map(|reuse| reuse.parse().unwrap());
        pipe.run(&request).unwrap()
    };
    let exact = EDITS.map(|edit| run(edit, StepCache::Off, None));
    let mut broken = Vec::new();
    for (mode, reuse, bounds) in BOUNDS {
        let outputs = EDITS.map(|edit| run(edit, cache(mode), reuse));
        let both = outputs.iter().zip(&exact);
        let each: Vec<f64> = both.map(|(a, b)| psnr(&a.image, &b.image).unwrap()).collect();
        let error = each.iter().map(|psnr| 10.0_f64.powf(-psnr / 10.0)).sum::<f64>() / each.len() as f64;
        let got = [
            -10.0 * error.log10(),
            each.iter().copied().fold(f64::INFINITY, f64::min),
        ];
        let flops = |outputs: &[Output]| outputs.iter().map(|output| output.flops as f64).sum::<f64>();
        let times = flops(&exact) / flops(&outputs);
        let counts = outputs.each_ref().map(|output| computed(&output.work[0]).len());
        let line = format!(
            "{mode} {}: {:.1} dB, worst {:.1} dB, {times:.2} times fewer operations, all computed in {counts:?} steps",
            reuse.unwrap_or_default(),
            got[0],
            got[1],
        );
        println!("{line}");
        if got[0] < bounds[0] || got[1] < bounds[1] {
            broken.push(format!("{line}; expected {bounds:?}"));
        }
        // A mode that computes everything would keep any bound.
        assert!(times > 1.2, "{line}");
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn magcache_computes_the_published_steps_as_planned() {
    let pipe = shipped();
    let request = Request::edit(source("local-hair"), "give them white hair")
        .steps(28)
        .seed(1);
    let cached = request.clone().step_cache(cache("magcache"));
    let (plan, exact) = (pipe.plan(&cached).unwrap(), pipe.plan(&request).unwrap());
    let expected = [0, 1, 2, 3, 4, 5, 7, 10, 11, 16, 21, 24, 26, 27];
    assert_eq!(computed(plan.work.as_ref().unwrap()), expected);
    let output = pipe.run(&cached).unwrap();
    assert_eq!(output.work, [plan.work.clone().unwrap()]);
    assert_eq!(output.flops, plan.flops.most);
    assert_eq!(
        (plan.flops.least, plan.flops.exact),
        (plan.flops.most, exact.flops.exact)
    );
    let text = plan.to_string();
    assert!(
        text.contains("step cache:  magcache, computes steps 1 2 3 4 5 6 8 11 12 17 22 25 27 28; 5"),
        "{text}"
    );
    assert!(!exact.to_string().contains("step cache"));
    // The file says how it was made.
    assert!(png_has(&output, "step_cache") && png_has(&output, "magcache"));
}

#[test]
fn without_a_step_cache_all_steps_are_computed_and_nothing_is_said_of_it() {
    let pipe = random();
    let request = generation();
    let output = pipe.run(&request).unwrap();
    assert_eq!(output.work, [vec![StepWork::Computed; 6]]);
    assert_eq!(output.flops, output.plan.flops.exact);
    assert_eq!(
        (output.plan.flops.least, output.plan.flops.most),
        (output.flops, output.flops)
    );
    assert!(!png_has(&output, "step_cache"));
    let json = serde_json::to_string(&request).unwrap();
    assert!(!json.contains("step_cache"), "{json}");
    let cached = serde_json::to_string(&request.step_cache(cache("taylor:interval=3"))).unwrap();
    assert!(cached.contains("\"step_cache\":\"taylor:interval=3\""), "{cached}");
    let read: Request = serde_json::from_str(&cached).unwrap();
    assert_eq!(read.step_cache, cache("taylor:interval=3"));
}

fn png_has(output: &Output, word: &str) -> bool {
    let png = output.to_png().unwrap();
    png.windows(word.len()).any(|bytes| bytes == word.as_bytes())
}

fn random() -> Pipeline {
    let builder = Pipeline::builder().device(Device::Cpu);
    builder.random(&ModelSizes::small(), 7).unwrap()
}

fn generation() -> Request {
    Request::generate("a cat").size(64, 48).steps(6).seed(3)
}

const SKIPPING: &str = "taylor:interval=3,first=1";

#[test]
fn each_prompt_s_run_has_its_own_state_and_both_have_one_in_a_batch() {
    let pipe = random();
    let request = generation().true_cfg(2.0).negative_prompt("a dog").batch(2);
    let expected = [0, 2, 5];
    let exact = pipe.run(&request).unwrap();
    let plain = pipe
        .run(&request.clone().step_cache(cache("taylor:interval=1")))
        .unwrap();
    assert_eq!(plain.images, exact.images);
    let cached = request.step_cache(cache(SKIPPING));
    let apart = pipe.run(&cached).unwrap();
    assert_eq!(
        apart.work.iter().map(|work| computed(work)).collect::<Vec<_>>(),
        [expected, expected]
    );
    let together = pipe.run(&cached.clone().cfg_mode(CfgMode::Batched)).unwrap();
    assert_eq!(
        together.work.iter().map(|work| computed(work)).collect::<Vec<_>>(),
        [expected]
    );
    let largest = apart
        .latents
        .iter()
        .zip(&together.latents)
        .fold(0.0, |most: f32, (a, b)| most.max((a - b).abs()));
    assert!(largest < 1e-3, "{largest}");
    assert_ne!(apart.images, exact.images);
    for output in [&apart, &together] {
        assert_eq!(output.flops, output.plan.flops.most);
        assert!((output.flops as f64) < 0.7 * output.plan.flops.exact as f64);
    }
    // The modulation is computed for each prompt; in a batch of prompts, for each sample.
    assert!(apart.flops < together.flops);
}

#[test]
fn a_mode_that_decides_while_running_has_bounds_before_and_its_work_after() {
    let pipe = random();
    for mode in [
        "first-block:threshold=10,most_skips=1",
        "teacache:threshold=10,start=0,end=1,most_skips=1",
    ] {
        let request = generation().step_cache(cache(mode));
        let plan = pipe.plan(&request).unwrap();
        assert_eq!(plan.work, None);
        assert!(plan.flops.least < plan.flops.most);
        assert!(plan.to_string().contains("decides while running; "), "{plan}");
        let output = pipe.run(&request).unwrap();
        assert_eq!(computed(&output.work[0]), [0, 2, 4, 5], "{mode}");
        assert_eq!(output.flops, plan.flops.least);
        let all = pipe
            .run(&generation().step_cache(cache(&mode.replace("=10", "=0"))))
            .unwrap();
        assert_eq!(all.flops, plan.flops.most);
        assert_eq!(all.images, pipe.run(&generation()).unwrap().images);
    }
}

#[test]
fn other_conventions_streams_events_and_sessions_have_it_too() {
    let pipe = Arc::new(random());
    for conformance in [Conformance::Diffusers, Conformance::Bfl] {
        let request = Request::generate("a cat").steps(6).seed(3).conform(conformance);
        let request = match conformance {
            Conformance::Bfl => request.size(64, 48),
            _ => request.size(64, 64).max_area(64 * 64),
        };
        let output = pipe.run(&request.step_cache(cache(SKIPPING))).unwrap();
        assert_eq!(computed(&output.work[0]), [0, 2, 5]);
    }
    let mut steps = 0;
    let request = generation().step_cache(cache(SKIPPING));
    pipe.run_with(&request, |event| {
        steps += usize::from(matches!(event, Event::Step { .. }));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(steps, 6);
    let folder = tempfile::tempdir().unwrap();
    let mut session = pipe.session(RgbImage::new(64, 64));
    session.defaults = Request::default()
        .max_area(64 * 64)
        .steps(6)
        .seed(3)
        .step_cache(cache(SKIPPING));
    session.edit("a hat").unwrap();
    let image = session.current().image.clone();
    session.save(folder.path()).unwrap();
    let again = pipe.restore_session(folder.path()).unwrap();
    assert_eq!(again.current().image, image);
    assert_eq!(again.defaults.step_cache, cache(SKIPPING));
}

fn edit() -> Request {
    Request::edit(
        RgbImage::from_fn(64, 64, |x, y| kontext::image::Rgb([x as u8 * 4, y as u8 * 4, 99])),
        "a hat",
    )
    .max_area(64 * 64)
    .steps(8)
    .seed(3)
}

#[test]
fn steps_without_references_are_planned_and_done_also_between_skipped_ones() {
    use StepWork::{Computed, References, Skipped};
    let pipe = random();
    let reuse = edit().reference_reuse("references".parse().unwrap());
    let [c, r] = [Computed, References];
    for (request, expected) in [
        (reuse.clone(), [c, c, r, r, c, r, r, c]),
        (reuse.clone().true_cfg(2.0), [c, c, r, r, c, r, r, c]),
        // The step in the middle is skipped, and the next one full in its place.
        (
            reuse.clone().step_cache(cache("taylor:interval=2,first=3")),
            [c, c, r, Skipped, c, Skipped, r, c],
        ),
        (
            reuse.clone().step_cache(cache("taylor:interval=4,first=1")),
            [c, Skipped, r, Skipped, Skipped, Skipped, c, c],
        ),
    ] {
        let plan = pipe.plan(&request).unwrap();
        assert_eq!(plan.work.as_ref().unwrap(), &expected);
        let output = pipe.run(&request).unwrap();
        assert_eq!(output.work, vec![expected.to_vec(); plan.runs_per_step]);
        assert_eq!(output.flops, plan.flops.most);
        assert!(output.flops < plan.flops.exact && plan.flops.least == plan.flops.most);
        assert_eq!(output.edited_tokens, None);
        assert!(plan.to_string().contains("references:  references; "), "{plan}");
        assert!(png_has(&output, "reference_reuse"));
    }
    let together = |request: Request| pipe.run(&request.true_cfg(2.0).cfg_mode(CfgMode::Batched)).unwrap();
    let apart = pipe.run(&reuse.clone().true_cfg(2.0)).unwrap();
    let largest = apart
        .latents
        .iter()
        .zip(&together(reuse).latents)
        .fold(0.0, |most: f32, (a, b)| most.max((a - b).abs()));
    assert!(largest < 1e-3, "{largest}");
}

#[test]
fn steps_of_edited_tokens_find_them_and_count_them() {
    let pipe = random();
    // Of a random model all tokens are edited below a cosine of 1, and none below -1.
    for (mode, tokens, batch) in [
        ("region:threshold=1", 16, 1),
        ("region:threshold=-1", 0, 1),
        ("region", 16, 2),
    ] {
        let request = edit().batch(batch).reference_reuse(mode.parse().unwrap());
        let plan = pipe.plan(&request).unwrap();
        assert!(plan.flops.least < plan.flops.most && plan.flops.most < plan.flops.exact);
        let output = pipe.run(&request).unwrap();
        let edited = output.edited_tokens.unwrap();
        if batch == 1 {
            assert_eq!(edited, tokens, "{mode}");
        }
        assert!((plan.flops.least..=plan.flops.most).contains(&output.flops));
        if edited == 16 {
            assert_eq!(output.work[0], plan.work.unwrap());
            assert_eq!(output.flops, plan.flops.most);
            // All rows at each step: as without references.
            let all = pipe
                .run(&edit().batch(batch).reference_reuse("references".parse().unwrap()))
                .unwrap();
            let pairs = output.latents.iter().zip(&all.latents);
            let largest = pairs.fold(0.0, |most: f32, (a, b)| most.max((a - b).abs()));
            assert!(largest < 1e-3, "{largest}");
        } else if edited == 0 {
            assert_eq!(output.flops, plan.flops.least);
        }
    }
    let refused = |request: Request| pipe.plan(&request).unwrap_err().to_string();
    let region = || "region".parse().unwrap();
    let error = refused(edit().reference_reuse(region()).step_cache(cache("magcache")));
    assert!(
        error.contains("invalid step_cache: expected off next to reference_reuse of edited tokens"),
        "{error}"
    );
    let error = refused(Request::generate("a hat").reference_reuse(region()));
    assert!(
        error.contains("invalid reference_reuse: expected none where there is no reference image"),
        "{error}"
    );
    let error = refused(edit().size(64, 32).conform(Conformance::Bfl).reference_reuse(region()));
    assert!(error.contains("a first reference with the target's"), "{error}");
}
