//! Runs whose transformer multiplies in fp8, on a CPU with the same roundings.
#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use image::RgbImage;
use kontext::{
    Checkpoint, Conformance, Device, Fp8Products, Kind, Layout, Pipeline, PipelineBuilder, Placement, Quantize,
    Request, quantize, random_model,
};
use kontext_bench::metrics::psnr;

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    random_model(folder.path(), 7, Layout::SingleFiles).unwrap();
    folder
});

fn builder(products: Fp8Products) -> PipelineBuilder {
    Pipeline::builder().device(Device::Cpu).fp8_products(products)
}

fn edit() -> Request {
    let image = RgbImage::from_fn(64, 64, |x, y| image::Rgb([(4 * x) as u8, (4 * y) as u8, 90]));
    Request::edit(image, "a red hat").size(64, 64).steps(2).seed(3)
}

fn run(builder: &PipelineBuilder, request: &Request) -> RgbImage {
    builder.load(FOLDER.path()).unwrap().run(request).unwrap().image
}

fn fp8(builder: &PipelineBuilder, request: &Request) -> bool {
    let planned = builder.plan(FOLDER.path(), request).unwrap();
    let loaded = builder.load(FOLDER.path()).unwrap().plan(request).unwrap();
    assert_eq!(planned, loaded);
    assert!(planned.warnings.is_empty(), "{:?}", planned.warnings);
    assert_eq!(
        planned.to_string().contains("products of the blocks in fp8"),
        planned.fp8
    );
    planned.fp8
}

#[test]
fn weights_quantised_at_load_multiply_in_fp8_where_that_is_chosen() {
    let of = |products| builder(products).quantize(Quantize::Fp8);
    assert!(fp8(&of(Fp8Products::Always), &edit()));
    assert!(!fp8(&of(Fp8Products::Automatic), &edit()) && !fp8(&of(Fp8Products::Never), &edit()));
    let (always, never) = (
        run(&of(Fp8Products::Always), &edit()),
        run(&of(Fp8Products::Never), &edit()),
    );
    assert_eq!(run(&of(Fp8Products::Automatic), &edit()), never);
    let plain = run(&builder(Fp8Products::Automatic), &edit());
    let (products, weights) = (psnr(&always, &plain).unwrap(), psnr(&never, &plain).unwrap());
    // The rounding of the activations adds to that of the weights.
    assert!(products < weights && products > 20.0, "{products} {weights}");
}

#[test]
fn a_scaled_file_multiplies_in_fp8_in_memory_and_from_its_file_in_either_arithmetic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flux.safetensors");
    quantize::transformer(&Checkpoint::find(FOLDER.path()).unwrap(), Quantize::Fp8, &path).unwrap();
    let of = |products| builder(products).transformer(&path);
    assert!(fp8(&of(Fp8Products::Always), &edit()));
    let always = run(&of(Fp8Products::Always), &edit());
    let streamed = of(Fp8Products::Always).placement(Placement::Streamed);
    assert!(fp8(&streamed, &edit()));
    assert_eq!(run(&streamed, &edit()), always);
    let never = run(&of(Fp8Products::Never), &edit());
    let near = psnr(&always, &never).unwrap();
    assert!(near > 20.0 && near < 80.0, "{near}");
    let narrow = run(&of(Fp8Products::Always).compute(Kind::BFloat16), &edit());
    assert!(psnr(&narrow, &always).unwrap() > 20.0);
}

#[test]
fn runs_that_follow_another_program_multiply_as_the_plan_says() {
    let request = || {
        Request::generate("a red hat")
            .size(64, 64)
            .steps(2)
            .seed(3)
            .conform(Conformance::Bfl)
    };
    let of = |products| builder(products).quantize(Quantize::Fp8);
    assert!(fp8(&of(Fp8Products::Always), &request()));
    assert_ne!(
        run(&of(Fp8Products::Always), &request()),
        run(&of(Fp8Products::Never), &request())
    );
}

#[test]
fn weights_that_are_not_in_fp8_are_multiplied_as_ever() {
    let always = builder(Fp8Products::Always);
    let plan = always.plan(FOLDER.path(), &edit()).unwrap();
    assert!(!plan.fp8 && plan.warnings.len() == 1, "{:?}", plan.warnings);
    assert_eq!(run(&always, &edit()), run(&builder(Fp8Products::Never), &edit()));
    // Streamed weights are not quantised.
    let streamed = always.quantize(Quantize::Fp8).placement(Placement::Streamed);
    assert!(!streamed.plan(FOLDER.path(), &edit()).unwrap().fp8);
}

#[test]
fn products_in_fp8_count_in_the_plan_of_memory() {
    let work = |products| {
        let builder = builder(products).quantize(Quantize::Fp8).placement(Placement::Resident);
        let plans = builder.memory(FOLDER.path(), &edit().size(512, 512)).unwrap();
        plans[0].stages.iter().map(|stage| stage.work).sum::<u64>()
    };
    assert!(work(Fp8Products::Always) > work(Fp8Products::Never));
}
