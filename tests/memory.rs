//! Placements, quantisation at load, and the memory that they take.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::path::Path;
use std::sync::LazyLock;

use image::{Rgb, RgbImage};
use kontext::{
    Builder, Checkpoint, Device, Error, Layout, Pipeline, Placement, Quantize, Request, quantize, random_model,
};
use kontext_bench::metrics::psnr;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    random_model(folder.path(), 7, Layout::Diffusers).unwrap();
    folder
});

fn builder() -> Builder {
    Pipeline::builder().device(Device::Cpu).max_sequence_length(32)
}

fn edit() -> Request {
    let picture = RgbImage::from_fn(70, 50, |x, y| Rgb([(x * 3) as u8, (y * 5) as u8, (x + y) as u8]));
    Request::edit(&picture, "make it red").max_area(64 * 64).steps(2).seed(3)
}

fn run(builder: &Builder) -> RgbImage {
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
fn a_small_model_is_resident_where_there_is_room() {
    assert_eq!(builder().load(FOLDER.path()).unwrap().placement(), Placement::Resident);
}

#[test]
fn quantised_at_load_is_near_the_plain_model_and_the_fewer_bits_the_farther() {
    let plain = run(&builder());
    let of = |to| psnr(&run(&builder().quantize(to).quantize_t5(to)), &plain).unwrap();
    let (q8, fp8, q4) = (of(Quantize::Q8_0), of(Quantize::Fp8), of(Quantize::Q4_0));
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
        let picture = run(&builder().transformer(path("flux")).t5(path("t5")));
        // The files pack modulation, too, and round what leads in and out to bf16.
        let near = psnr(&picture, &at_load).unwrap();
        assert!(near > if to == Quantize::Q8_0 { 30.0 } else { 15.0 }, "{to}: {near}");
    }
    let error = |to, path: &Path| quantize::transformer(&model, to, path).unwrap_err().to_string();
    let wrong = error(Quantize::Int8, &folder.path().join("a.gguf"));
    assert_eq!(wrong, "invalid format of a .gguf file: expected q8_0, q5_1, q5_0, q4_1 or q4_0, got int8");
    assert!(error(Quantize::Q4_0, &folder.path().join("a.safetensors")).contains("no .gguf: expected fp8, got q4_0"));
}

#[test]
fn the_plan_of_memory_knows_placements_and_packed_weights() {
    let of = |builder: &Builder| -> Vec<(Placement, u64)> {
        let plans = builder.memory(FOLDER.path(), &edit()).unwrap();
        plans.iter().map(|plan| (plan.placement, plan.stages.iter().map(|s| s.weights).max().unwrap())).collect()
    };
    let plain = of(&builder());
    assert_eq!(plain.iter().map(|(placement, _)| *placement).collect::<Vec<_>>(), Placement::ALL);
    let weights: Vec<u64> = plain.iter().map(|(_, weights)| *weights).collect();
    assert!(weights[0] > weights[1] && weights[0] > weights[2], "{weights:?}");
    let packed = of(&builder().quantize(Quantize::Q4_0).quantize_t5(Quantize::Q4_0).placement(Placement::Resident));
    assert_eq!(packed.len(), 1);
    // CLIP and the autoencoder stay as they are.
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
    let Error::Memory { stage, needed_mb, available_mb, .. } = &error else { panic!("{error:?}") };
    assert!(needed_mb > available_mb && *stage == "denoising");
    assert!(error.to_string().contains("load with Placement::Staged"), "{error}");
    assert_eq!(pipe.run(&edit()).unwrap().image.dimensions(), (70, 50));
}
