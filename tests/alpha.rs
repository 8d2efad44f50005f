//! Transparency of a source, kept in results.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use common::desk::{Desk, diffusers, small};
use common::model;
use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, Rgba, RgbaImage};
use kontext::io::{Alpha, OpenOptions, encode_transparent, save_transparent};
use kontext::{Device, Layout, Mask, Pipeline, Request, Size};

const GROUND: [u8; 3] = [0, 128, 255];

/// Returns an image with opaque, partly transparent and transparent columns.
fn logo(width: u32, height: u32) -> RgbaImage {
    RgbaImage::from_fn(width, height, |x, y| {
        let alpha = (x * 300 / width.max(1)).min(255) as u8;
        Rgba([(x * 3) as u8, (y * 5) as u8, 90, alpha])
    })
}

fn alpha_of(image: &RgbaImage) -> GrayImage {
    GrayImage::from_fn(image.width(), image.height(), |x, y| Luma([image.get_pixel(x, y).0[3]]))
}

fn pipeline() -> Pipeline {
    let builder = Pipeline::builder().device(Device::Cpu);
    builder.load(model(Layout::Diffusers)).unwrap()
}

fn opened(image: &RgbaImage) -> (image::RgbImage, Option<Alpha>) {
    let options = OpenOptions::new().ground(GROUND);
    let mut png = std::io::Cursor::new(Vec::new());
    image.write_to(&mut png, ImageFormat::Png).unwrap();
    options.decode_with_alpha(png.get_ref()).unwrap()
}

#[test]
fn alpha_is_opened_in_every_form_and_an_opaque_image_has_none() {
    let folder = tempfile::tempdir().unwrap();
    let rgba = logo(64, 48);
    let expected = alpha_of(&rgba);
    let path = |name: &str| folder.path().join(name);
    rgba.save(path("8.png")).unwrap();
    rgba.save(path("8.webp")).unwrap();
    DynamicImage::from(rgba.clone())
        .into_rgba16()
        .save(path("16.png"))
        .unwrap();
    DynamicImage::from(rgba.clone())
        .into_luma_alpha8()
        .save(path("grey.png"))
        .unwrap();
    for name in ["8.png", "8.webp", "16.png", "grey.png"] {
        let (image, alpha) = OpenOptions::new().open_with_alpha(path(name)).unwrap();
        let alpha = alpha.unwrap();
        assert_eq!((&alpha.levels, alpha.ground), (&expected, [255; 3]), "{name}");
        assert_eq!(image, kontext::open_image(path(name)).unwrap(), "{name}");
    }
    let opaque = RgbaImage::from_pixel(4, 4, Rgba([1, 2, 3, 255]));
    opaque.save(path("opaque.png")).unwrap();
    assert_eq!(OpenOptions::new().open_with_alpha(path("opaque.png")).unwrap().1, None);
    // The ground is the colour of transparent pixels, and no other's.
    let (image, _) = opened(&rgba);
    assert_eq!(image.get_pixel(0, 9), &Rgb(GROUND));
    assert_eq!(image.get_pixel(63, 9).0, [63 * 3, 45, 90]);
}

#[test]
fn alpha_has_the_source_s_bytes_and_colors_without_an_edit_are_the_source_s() {
    let source = logo(64, 64);
    let (image, alpha) = opened(&source);
    let result = alpha.unwrap().put_back(&image).unwrap();
    assert_eq!(alpha_of(&result), alpha_of(&source));
    for (source, result) in source.pixels().zip(result.pixels()) {
        let alpha = i32::from(source.0[3]);
        for channel in 0..3 {
            let apart = i32::from(source.0[channel]).abs_diff(i32::from(result.0[channel])) as i32;
            // Compositing rounds by half a level, of which the share of the colour is the alpha.
            assert!(alpha == 0 || apart * 2 * alpha <= 255 + alpha, "{source:?} {result:?}");
        }
    }
}

#[test]
fn an_edit_keeps_alpha_and_with_a_mask_the_colors_outside() {
    let source = logo(64, 64);
    let (image, alpha) = opened(&source);
    let alpha = alpha.unwrap();
    let mask = Mask::rectangle(Size::new(64, 64), [52, 20, 8, 8]).unwrap();
    let request = Request::edit(&image, "a hat")
        .mask(mask)
        .max_area(64 * 64)
        .steps(1)
        .seed(1);
    let output = pipeline().run(&request).unwrap();
    let bytes = output.encode_transparent(0, &alpha, ImageFormat::Png).unwrap();
    let result = image::load_from_memory(&bytes).unwrap().into_rgba8();
    assert_eq!(alpha_of(&result), alpha_of(&source));
    let untouched = alpha.put_back(&image).unwrap();
    let shares = output.changed.as_ref().unwrap();
    let mut outside = 0;
    for (x, y, share) in shares.enumerate_pixels().filter(|(_, _, share)| share.0[0] == 0) {
        assert_eq!(
            result.get_pixel(x, y),
            untouched.get_pixel(x, y),
            "({x}, {y}) {share:?}"
        );
        outside += 1;
    }
    assert!(outside > 1000 && result != untouched);
    // The text of the run is in the file.
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(text.contains("a hat") && text.contains("guidance"));
    let folder = tempfile::tempdir().unwrap();
    output.save_transparent(0, &alpha, folder.path().join("a.png")).unwrap();
    assert_eq!(std::fs::read(folder.path().join("a.png")).unwrap(), bytes);
}

#[test]
fn alpha_is_resized_with_the_result() {
    let source = logo(64, 64);
    let (image, alpha) = opened(&source);
    let (alpha, larger) = (
        alpha.unwrap(),
        kontext::crates::kontext_core::images::resize(&image, 128, 96).unwrap(),
    );
    let result = alpha_of(&alpha.put_back(&larger).unwrap());
    assert_eq!(result.dimensions(), (128, 96));
    let columns: Vec<u8> = (0..128).map(|x| result.get_pixel(x, 50).0[0]).collect();
    assert!(columns[0] == 0 && columns[127] == 255);
    assert!((0..128).all(|x| columns[x].abs_diff(source.get_pixel(x as u32 / 2, 5).0[3]) <= 8));
    assert!(alpha.put_back(&image::RgbImage::new(0, 5)).is_err());
}

#[test]
fn files_with_alpha_are_png_and_lossless_webp_and_jpeg_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let image = logo(33, 17);
    for (name, format) in [("a.png", ImageFormat::Png), ("a.webp", ImageFormat::WebP)] {
        let path = folder.path().join(name);
        save_transparent(&image, &path, &[("title", "logo".to_owned())]).unwrap();
        assert_eq!(image::open(&path).unwrap().into_rgba8(), image, "{name}");
        let bytes = encode_transparent(&image, format, &[("title", "logo".to_owned())]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
    let refused = [
        save_transparent(&image, folder.path().join("a.jpg"), &[]).unwrap_err(),
        encode_transparent(&image, ImageFormat::Jpeg, &[]).unwrap_err(),
    ];
    for error in refused {
        assert!(error.to_string().contains("a JPEG can have none"), "{error}");
    }
    assert!(!folder.path().join("a.jpg").exists());
}

#[test]
fn the_program_keeps_alpha_on_request() {
    let (desk, model) = (Desk::new(), diffusers());
    let source = logo(64, 64);
    source.save(desk.path("logo.png")).unwrap();
    kontext::image::RgbImage::new(64, 64)
        .save(desk.path("opaque.png"))
        .unwrap();
    let edit = [
        "--image",
        "logo.png",
        "--keep-alpha",
        "--ground",
        "0080ff",
        "--batch",
        "2",
        "--out",
        "out.webp",
    ];
    desk.good("edit", &small(&model, &edit));
    for name in ["out.webp", "out-1.webp"] {
        let result = image::open(desk.path(name)).unwrap().into_rgba8();
        assert_eq!(alpha_of(&result), alpha_of(&source), "{name}");
    }
    let plain = desk.good("edit", &small(&model, &["--image", "logo.png", "--out", "plain.png"]));
    assert!(!plain.1.contains("warning"), "{}", plain.1);
    assert!(!image::open(desk.path("plain.png")).unwrap().color().has_alpha());
    let words = desk
        .good(
            "edit",
            &small(&model, &["--image", "opaque.png", "--keep-alpha", "--out", "o.png"]),
        )
        .1;
    assert!(words.contains("warning: --keep-alpha has no effect"), "{words}");
    let jpeg = ["--image", "logo.png", "--keep-alpha", "--out", "out.jpg"];
    desk.bad("edit", &small(&model, &jpeg), "a JPEG can have none");
}
