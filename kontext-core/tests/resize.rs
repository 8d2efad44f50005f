//! Resizing compared with Pillow's LANCZOS, level for level.
//!
//! Fixture: `tests/reference/parts/resize.py`.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use image::RgbImage;
use kontext_core::{Tensor, images};
use kontext_fixtures::Fixture;

fn image_of(tensor: &Tensor) -> RgbImage {
    let [height, width, _] = <[i64; 3]>::try_from(tensor.size()).unwrap();
    let mut bytes = vec![0_u8; tensor.numel()];
    let count = bytes.len();
    tensor.copy_data(&mut bytes, count);
    RgbImage::from_raw(width as u32, height as u32, bytes).unwrap()
}

#[test]
fn lanczos_agrees_with_pillow_to_the_last_level() {
    let fixture = Fixture::open("resize.safetensors");
    let names = fixture.names();
    let cases: Vec<&str> = names.iter().filter_map(|n| n.strip_suffix(".input")).collect();
    assert!(cases.len() >= 24);
    for case in cases {
        let input = image_of(&fixture.tensor(&format!("{case}.input")));
        let expected = image_of(&fixture.tensor(&format!("{case}.output")));
        let (width, height) = (expected.width(), expected.height());
        let resized = if fixture.contains(&format!("{case}.box")) {
            let source_box = Vec::<f64>::try_from(fixture.tensor(&format!("{case}.box"))).unwrap();
            images::resize_box(&input, source_box.try_into().unwrap(), width, height).unwrap()
        } else {
            images::resize(&input, width, height).unwrap()
        };
        let differing = resized
            .as_raw()
            .iter()
            .zip(expected.as_raw())
            .filter(|(a, b)| a != b)
            .count();
        assert_eq!(
            differing,
            0,
            "{case}: {differing} of {} levels differ",
            expected.as_raw().len()
        );
    }
}
