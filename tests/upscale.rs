//! Results that an upscaler enlarges: of runs, turns and streams.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::cell::Cell;
use std::sync::Arc;

use common::model;
use kontext::crates::kontext_core::images::resize;
use kontext::image::RgbImage;
use kontext::{Device, LanczosUpscaler, Layout, Mask, Pipeline, Request, Size, upscale};

fn pipeline() -> Arc<Pipeline> {
    let builder = Pipeline::builder().device(Device::Cpu);
    Arc::new(builder.load(model(Layout::Diffusers)).unwrap())
}

fn request() -> Request {
    Request::edit(RgbImage::new(64, 48), "a hat")
        .max_area(64 * 64)
        .steps(1)
        .seed(1)
}

#[test]
fn all_images_of_a_batch_are_enlarged_and_saved_so() {
    let output = pipeline().run(&request().batch(2)).unwrap();
    let enlarged = output.clone().upscaled(&LanczosUpscaler::new(2)).unwrap();
    for (image, original) in enlarged.images.iter().zip(&output.images) {
        assert_eq!(*image, resize(original, 128, 96).unwrap());
    }
    assert_eq!(
        (enlarged.image == enlarged.images[0], enlarged.latents),
        (true, output.latents.clone())
    );
    assert_eq!(enlarged.plan, output.plan);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    let enlarged = output.upscaled(&LanczosUpscaler::new(3)).unwrap();
    enlarged.save_image(1, &path).unwrap();
    assert_eq!(kontext::open_image(&path).unwrap().dimensions(), (192, 144));
    assert!(String::from_utf8_lossy(&std::fs::read(&path).unwrap()).contains("192x144"));
}

#[test]
fn images_of_one_batch_have_one_factor() {
    let output = pipeline().run(&request().batch(2)).unwrap();
    let factor = Cell::new(1);
    let growing = |image: &RgbImage| {
        factor.set(factor.get() + 1);
        resize(image, image.width() * factor.get(), image.height() * factor.get())
    };
    let error = output.upscaled(&growing).unwrap_err().to_string();
    assert!(
        error.ends_with("expected 128x96, as of the first image, got 192x144"),
        "{error}"
    );
}

#[test]
fn masked_results_and_turns_are_enlarged() {
    let pipe = pipeline();
    let mask = Mask::rectangle(Size::new(64, 48), [8, 8, 16, 16]).unwrap();
    let output = pipe.run(&request().mask(mask)).unwrap();
    assert!(output.changed.is_some());
    assert!(output.upscaled(&LanczosUpscaler::new(2)).unwrap().changed.is_none());
    let mut session = pipe.session(RgbImage::new(64, 64));
    session.defaults = Request::default().max_area(64 * 64).steps(1);
    let turn = session.edit("a hat").unwrap();
    assert_eq!(
        upscale(&turn.image, &LanczosUpscaler::new(2)).unwrap().dimensions(),
        (128, 128)
    );
}
