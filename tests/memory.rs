//! Placements, quantisation at load and in files, and their memory use.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

#[path = "../kontext-bench/tests/common/same_files.rs"]
mod same_files;

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::thread;

use image::{Rgb, RgbImage};
use kontext::{
    Checkpoint, Device, Error, Event, Kind, Layout, ModelSizes, Pipeline, PipelineBuilder, Placement, Quantize,
    Request, Stage, Tensor, Weights, quantize, random_model,
};
use kontext_bench::metrics::psnr;
use same_files::assert_same_files;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    random_model(folder.path(), 7, Layout::Diffusers).unwrap();
    folder
});

fn builder() -> PipelineBuilder {
    Pipeline::builder().device(Device::Cpu).max_sequence_length(32)
}

fn edit() -> Request {
    let image = RgbImage::from_fn(70, 50, |x, y| Rgb([(x * 3) as u8, (y * 5) as u8, (x + y) as u8]));
    Request::edit(&image, "make it red").max_area(64 * 64).steps(2).seed(3)
}

fn run(builder: &PipelineBuilder) -> RgbImage {
    builder.load(FOLDER.path()).unwrap().run(&edit()).unwrap().image
}

#[test]
fn every_placement_gives_the_same_bytes_run_after_run() {
    let expected = run(&builder().placement(Placement::Resident));
    for placement in [Placement::Auto, Placement::Staged, Placement::Streamed] {
        let pipe = builder().placement(placement).load(FOLDER.path()).unwrap();
        for _ in 0..2 {
            assert_eq!(pipe.run(&edit()).unwrap().image, expected, "{placement}");
        }
    }
}

#[test]
fn a_panic_in_a_callback_leaves_the_pipeline_usable() {
    let expected = run(&builder().placement(Placement::Resident));
    for placement in Placement::ALL {
        let pipe = builder().placement(placement).load(FOLDER.path()).unwrap();
        let mut events = 0;
        let count = |_: Event<'_>| {
            events += 1;
            ControlFlow::Continue(())
        };
        pipe.run_with(&edit(), count).unwrap();
        // Planned, a warning, the prompt, the reference, the noise, two steps, the image.
        assert_eq!(events, 8);
        for at in 0..events {
            let mut seen = 0;
            let panicking = || {
                pipe.run_with(&edit(), |_| {
                    assert_ne!(seen, at, "the callback's own");
                    seen += 1;
                    ControlFlow::Continue(())
                })
            };
            let panic = catch_unwind(AssertUnwindSafe(panicking)).unwrap_err();
            assert!(panic.downcast_ref::<String>().unwrap().contains("the callback's own"));
        }
        assert_eq!(pipe.run(&edit()).unwrap().image, expected, "{placement}");
    }
}

#[test]
fn an_unloaded_pipeline_loads_its_parts_again_and_gives_the_same_bytes() {
    for placement in Placement::ALL {
        let pipe = Arc::new(builder().placement(placement).load(FOLDER.path()).unwrap());
        let kept = placement != Placement::Staged;
        let expected = pipe.run(&edit()).unwrap().image;
        for _ in 0..2 {
            assert_eq!(pipe.is_loaded(), kept, "{placement}");
            assert!(pipe.unload() && !pipe.is_loaded(), "{placement}");
            assert_eq!(pipe.run(&edit()).unwrap().image, expected, "{placement}");
        }
        // While runs are under way: they finish, and the next ones load the parts again.
        pipe.unload();
        thread::scope(|scope| {
            let runs = [(); 3].map(|()| scope.spawn(|| pipe.run(&edit()).unwrap().image));
            for run in runs {
                pipe.unload();
                assert_eq!(run.join().unwrap(), expected, "{placement}");
            }
        });
    }
}

#[test]
fn a_session_goes_on_after_its_pipeline_was_unloaded() {
    let pipe = Arc::new(builder().load(FOLDER.path()).unwrap());
    let turns = |unload: bool| {
        let mut session = pipe.session(RgbImage::new(70, 50));
        session.defaults = Request::default().max_area(64 * 64).steps(2).seed(3);
        ["winter", "night"].map(|prompt| {
            assert!(!unload || pipe.unload());
            session.edit(prompt).unwrap().image.clone()
        })
    };
    assert_eq!(turns(true), turns(false));
}

#[test]
fn a_pipeline_of_given_parts_cannot_be_unloaded() {
    let pipe = builder().random(&ModelSizes::small(), 7).unwrap();
    assert!(!pipe.unload() && pipe.is_loaded());
    pipe.run(&edit()).unwrap();
}

#[test]
fn a_budget_decides_the_placement() {
    let square = Request::edit(RgbImage::new(1024, 1024), "");
    let plans = builder().memory(FOLDER.path(), &square).unwrap();
    // The smallest budget in which a peak fits next to the reserve of a twentieth.
    let budget = |placement| {
        let plan = plans.iter().find(|plan| plan.placement == placement).unwrap();
        let mut bytes = plan.peak().1;
        bytes += bytes / 20;
        while !plan.fits(bytes) {
            bytes += 1;
        }
        bytes
    };
    let placed = |bytes| builder().memory_budget(bytes).load(FOLDER.path()).unwrap().placement();
    let (resident, staged) = (budget(Placement::Resident), budget(Placement::Staged));
    assert_eq!(placed(u64::MAX), Placement::Resident);
    assert_eq!(placed(resident), Placement::Resident);
    assert_eq!(placed(resident - 1), Placement::Staged);
    assert_eq!(placed(staged), Placement::Staged);
    assert_eq!(placed(1), Placement::Streamed);
    // A placement that was asked for stays.
    let asked = builder().placement(Placement::Resident).memory_budget(1);
    assert_eq!(asked.load(FOLDER.path()).unwrap().placement(), Placement::Resident);
}

#[test]
fn a_run_above_the_budget_is_refused_before_any_work() {
    for placement in Placement::ALL {
        let builder = builder().placement(placement);
        let peak = builder.memory(FOLDER.path(), &edit()).unwrap()[0].peak().1;
        let within = builder.clone().memory_budget(peak).load(FOLDER.path()).unwrap();
        let above = builder.memory_budget(peak - 1).load(FOLDER.path()).unwrap();
        for unloaded in [false, true] {
            if unloaded {
                assert!(within.unload() && above.unload());
            }
            within.run(&edit()).unwrap();
            let mut events = 0;
            let refused = above.run_with(&edit(), |_| {
                events += 1;
                ControlFlow::Continue(())
            });
            let error = refused.unwrap_err();
            assert!(matches!(error, Error::Memory { .. }), "{error}");
            assert_eq!(events, 0);
            assert_eq!(above.is_loaded(), !unloaded && placement != Placement::Staged);
        }
    }
}

#[test]
fn a_small_model_is_resident_where_there_is_room() {
    assert_eq!(builder().load(FOLDER.path()).unwrap().placement(), Placement::Resident);
}

#[test]
fn quantised_at_load_is_near_the_plain_model_and_the_fewer_bits_the_farther() {
    let plain = run(&builder());
    let quality = |to| psnr(&run(&builder().quantize(to).quantize_t5(to)), &plain).unwrap();
    let (q8, fp8, q4) = (quality(Quantize::Q8_0), quality(Quantize::Fp8), quality(Quantize::Q4_0));
    assert!(q8 > 30.0 && q8 > fp8 && fp8 > q4 && q4 > 10.0, "{q8} {fp8} {q4}");
}

#[test]
fn quantised_files_open_in_place_of_the_parts_that_they_were_made_of() {
    let folder = tempfile::tempdir().unwrap();
    let model = Checkpoint::find(FOLDER.path()).unwrap();
    let at_load = run(&builder().quantize(Quantize::Q8_0).quantize_t5(Quantize::Q8_0));
    for (to, ending) in [(Quantize::Q8_0, "gguf"), (Quantize::Fp8, "safetensors")] {
        let path = |part: &str| folder.path().join(format!("{part}.{ending}"));
        quantize::transformer(&model, to, path("flux")).unwrap();
        quantize::t5(&model, to, path("t5")).unwrap();
        let image = run(&builder().transformer(path("flux")).t5(path("t5")));
        // The files also quantise the modulation, and round the input and output layers to bf16.
        let near = psnr(&image, &at_load).unwrap();
        assert!(near > if to == Quantize::Q8_0 { 30.0 } else { 15.0 }, "{to}: {near}");
    }
    let error = |to, path: &str| {
        quantize::transformer(&model, to, folder.path().join(path))
            .unwrap_err()
            .to_string()
    };
    let expected = "expected q8_0, q5_1, q5_0, q4_1 or q4_0 (fp8 is a .safetensors file, int8 is a folder: a path that \
                    ends in neither .gguf nor .safetensors), got int8";
    assert_eq!(
        error(Quantize::Int8, "a.gguf"),
        format!("invalid format of a .gguf file: {expected}")
    );
    assert!(error(Quantize::Int8, "a.safetensors").contains(".safetensors file: expected fp8 (int8 is a folder"));
    assert!(error(Quantize::Q4_0, "a.safetensors").contains("no .gguf: expected fp8, or int8 for a folder"));
}

#[test]
fn int8_is_a_folder_in_place_of_the_part_with_the_bytes_that_packing_at_load_gives() {
    let folder = tempfile::tempdir().unwrap();
    let written = |model: &Path, to: &str| {
        let (model, path) = (Checkpoint::find(model).unwrap(), |part| {
            folder.path().join(format!("{part}-{to}"))
        });
        quantize::transformer(&model, Quantize::Int8, path("transformer")).unwrap();
        quantize::t5(&model, Quantize::Int8, path("t5")).unwrap();
        [path("transformer"), path("t5")]
    };
    let parts = written(FOLDER.path(), "a");
    // The rows of a fused tensor are quantised like the separate tensors.
    let single = folder.path().join("single");
    random_model(&single, 7, Layout::SingleFiles).unwrap();
    for (a, b) in parts.iter().zip(written(&single, "b")) {
        assert_same_files(a, &b, 0);
        assert_eq!(std::fs::read_dir(a).unwrap().count(), 2);
    }
    let wide = ["transformer", "text_encoder_2"].map(|part| FOLDER.path().join(part));
    let kept = [
        &["x_embedder", "context_embedder", "time_text_embed", "norm_out"][..],
        &["wo"],
    ];
    for ((part, wide), kept) in parts.iter().zip(&wide).zip(kept) {
        let (packed, wide) = (Weights::open(part).unwrap(), Weights::open(wide).unwrap());
        assert_eq!(packed.names(), wide.names());
        let mut narrow = 0;
        for name in wide.names() {
            let (got, value) = (packed.raw(&name).unwrap(), wide.raw(&name).unwrap());
            let plain = name.split('.').any(|module| kept.contains(&module));
            let table = name == "shared.weight" || name.contains("relative_attention_bias");
            if value.dim() < 2 || plain || table {
                let bf16 = value.dim() == 2 && !name.contains("relative_attention_bias");
                assert_eq!(got.kind(), if bf16 { Kind::BFloat16 } else { Kind::Float }, "{name}");
                assert_eq!(got, value.to_kind(got.kind()), "{name}");
                continue;
            }
            let (codes, factors) = Quantize::Int8.pack(&value).unwrap();
            let codes: Vec<f32> = codes.iter().map(|&code| f32::from(code as i8)).collect();
            let expected = Tensor::from_slice(&codes).view_as(&value) * Tensor::from_slice(&factors).unsqueeze(1);
            assert!(got.allclose(&expected, 1e-6, 0.0, false), "{name}");
            narrow += 1;
        }
        assert!(narrow >= 10, "{narrow}");
        let config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(part.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["quantization_config"]["load_in_8bit"], true);
        assert_eq!(
            config["quantization_config"]["llm_int8_skip_modules"],
            serde_json::json!(kept)
        );
    }
    let [transformer, t5] = &parts;
    let at_load = run(&builder().quantize(Quantize::Int8).quantize_t5(Quantize::Int8));
    // The folders also quantise the modulation and the last projection, but not `wo`.
    let near = psnr(&run(&builder().transformer(transformer).t5(t5)), &at_load).unwrap();
    assert!(near > 45.0, "{near}");
    let again = quantize::t5(&Checkpoint::find(FOLDER.path()).unwrap(), Quantize::Int8, t5).unwrap_err();
    assert!(
        std::error::Error::source(&again)
            .unwrap()
            .to_string()
            .contains("not empty"),
        "{again}"
    );
}

#[test]
fn the_plan_of_memory_knows_placements_and_packed_weights() {
    let estimate = |builder: &PipelineBuilder| -> Vec<(Placement, u64)> {
        let plans = builder.memory(FOLDER.path(), &edit()).unwrap();
        plans
            .iter()
            .map(|plan| (plan.placement, plan.stages.iter().map(|s| s.weights).max().unwrap()))
            .collect()
    };
    let plain = estimate(&builder());
    assert_eq!(
        plain.iter().map(|(placement, _)| *placement).collect::<Vec<_>>(),
        Placement::ALL
    );
    let weights: Vec<u64> = plain.iter().map(|(_, weights)| *weights).collect();
    assert!(weights[0] > weights[1] && weights[0] > weights[2], "{weights:?}");
    let packed = estimate(
        &builder()
            .quantize(Quantize::Q4_0)
            .quantize_t5(Quantize::Q4_0)
            .placement(Placement::Resident),
    );
    assert_eq!(packed.len(), 1);
    // CLIP and the autoencoder are unchanged.
    assert!(packed[0].1 < weights[0] * 7 / 10, "{packed:?}");
    let pipe = builder().placement(Placement::Staged).load(FOLDER.path()).unwrap();
    let plan = pipe.memory(&edit()).unwrap().unwrap();
    assert_eq!(plan.stages.len(), 4);
    assert!(plan.to_string().starts_with("staged: "), "{plan}");
}

#[test]
fn a_run_that_does_not_fit_is_refused_with_the_stage_and_a_remedy_and_the_pipeline_stays_usable() {
    let pipe = builder().placement(Placement::Resident).load(FOLDER.path()).unwrap();
    let huge = Request::generate("a cat").size(8192, 8192).steps(1).batch(200);
    let error = pipe.run(&huge).unwrap_err();
    assert!(error.is_out_of_memory(), "{error}");
    let Error::Memory {
        stage,
        needed_mb,
        available_mb,
        ..
    } = &error
    else {
        panic!("{error:?}")
    };
    assert!(needed_mb > available_mb && *stage == Stage::Denoise);
    // Another placement saves megabytes of terabytes.
    assert!(
        error
            .to_string()
            .ends_with("; make the image smaller or run fewer at once"),
        "{error}"
    );
    assert_eq!(pipe.run(&edit()).unwrap().image.dimensions(), (70, 50));
}
