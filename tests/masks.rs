//! Masks and outpainting in this library's conventions: bytes outside of the feather, crops, contexts, and refusals.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::ops::ControlFlow;
use std::sync::LazyLock;

use image::{GrayImage, Luma, Rgb, RgbImage};
use kontext::session::KeepUnchanged;
use kontext::{
    Conformance, Device, Event, Layout, Mask, MaskContext, ModelDefaults, Outpaint, OutpaintFill, Pipeline, References,
    Region, Request, Sampler, Session, Size, Warning, random_model,
};
use std::sync::Arc;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    random_model(folder.path(), 7, Layout::Diffusers).unwrap();
    let defaults = ModelDefaults {
        sizes: Some(vec![[64, 96], [64, 64], [96, 64]]),
        steps: Some(2),
        ..ModelDefaults::default()
    };
    defaults.save(folder.path()).unwrap();
    folder
});

static PIPE: LazyLock<Arc<Pipeline>> =
    LazyLock::new(|| Arc::new(Pipeline::builder().device(Device::Cpu).load(FOLDER.path()).unwrap()));

fn photo(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([(x * 7 + y) as u8, (y * 5 + 3 * x) as u8, (x ^ y) as u8])
    })
}

fn rectangle(size: [u32; 2], rectangle: [u32; 4]) -> Mask {
    Mask::rectangle(Size::new(size[0], size[1]), rectangle).unwrap()
}

/// Checks that bytes are the source's where the share is 0, and returns the number of changed pixels elsewhere.
fn kept(source: &RgbImage, result: &RgbImage, shares: &GrayImage) -> usize {
    assert_eq!(
        (result.dimensions(), shares.dimensions()),
        (source.dimensions(), source.dimensions())
    );
    let mut changed = 0;
    for (x, y, share) in shares.enumerate_pixels() {
        if share.0[0] == 0 {
            assert_eq!(result.get_pixel(x, y), source.get_pixel(x, y), "({x}, {y})");
        } else {
            changed += usize::from(result.get_pixel(x, y) != source.get_pixel(x, y));
        }
    }
    changed
}

#[test]
fn pixels_beyond_the_feather_keep_their_bytes_with_every_sampler_and_in_a_batch() {
    let source = photo(101, 67);
    for sampler in Sampler::ALL {
        let mask = rectangle([101, 67], [30, 20, 25, 18]).grow(2.0).feather(5.0);
        let request = Request::edit(&source, "a door")
            .mask(mask)
            .sampler(sampler)
            .seed(3)
            .batch(2);
        let output = PIPE.run(&request).unwrap();
        let shares = output.changed.as_ref().unwrap();
        assert_eq!(
            (shares.get_pixel(29, 20).0[0], shares.get_pixel(27, 20).0[0]),
            (255, 204)
        );
        assert_eq!((shares.get_pixel(23, 25).0[0], shares.get_pixel(61, 25).0[0]), (0, 0));
        for image in &output.images {
            assert!(kept(&source, image, shares) > 700, "{sampler}");
        }
        assert_ne!(output.images[0], output.images[1]);
    }
}

#[test]
fn outside_of_the_mask_the_latents_are_the_sources_to_the_bit() {
    let source = photo(96, 64);
    let mask = rectangle([96, 64], [48, 0, 48, 64]).feather(0.0);
    let (mut first, mut steps) = (None, Vec::new());
    let request = Request::edit(&source, "a door").mask(mask).seed(3).steps(3);
    let run = PIPE.run_with(&request, |event| {
        match event {
            Event::Reference { latents, .. } => first = Some(latents.copy()),
            Event::Step { latents, .. } => steps.push(latents.copy()),
            _ => {}
        }
        ControlFlow::Continue(())
    });
    run.unwrap();
    let source = kontext::crates::kontext_sampler::pack(&first.unwrap()).unwrap();
    // 4 rows of 6 tokens, of which the left 3 are kept.
    let left = |tokens: &kontext::Tensor| tokens.reshape([1, 4, 6, -1]).narrow(2, 0, 3);
    assert!(left(steps.last().unwrap()).equal(&left(&source)));
    assert!(!left(&steps[0]).equal(&left(&source)));
}

#[test]
fn a_full_mask_is_the_edit_without_one_and_a_thin_line_is_not_lost() {
    let source = photo(96, 64);
    let edit = || Request::edit(&source, "a door").seed(3);
    let plain = PIPE.run(&edit()).unwrap();
    let full = PIPE
        .run(&edit().mask(GrayImage::from_pixel(96, 64, Luma([255]))))
        .unwrap();
    assert_eq!(full.image, plain.image);
    assert_eq!(full.latents, plain.latents);
    let line = GrayImage::from_fn(96, 64, |x, y| Luma([if x == 41 && y > 8 { 255 } else { 0 }]));
    let thin = PIPE.run(&edit().mask(Mask::new(line).feather(0.0))).unwrap();
    let changed = kept(&source, &thin.image, thin.changed.as_ref().unwrap());
    assert!(changed > 45, "{changed} of 55 pixels");
}

#[test]
fn a_crop_is_a_region_around_the_mask_in_a_preferred_ratio_and_the_rest_is_untouched() {
    let source = photo(900, 700);
    let mask = rectangle([900, 700], [500, 300, 60, 80]).feather(10.0).crop(30);
    let request = Request::edit(&source, "a door").mask(mask).seed(3);
    let plan = PIPE.plan(&request).unwrap();
    // 60 + 2 * 40 wide, and the height 160 in the ratio of 64x64.
    let region = Region {
        left: 450,
        top: 260,
        size: Size::new(160, 160),
    };
    assert_eq!(plan.mask.unwrap().region, region);
    assert_eq!(
        (plan.references[0].input, plan.target.size()),
        (region.size, Size::new(64, 64))
    );
    assert_eq!(plan.output, Size::new(900, 700));
    assert!(
        plan.to_string()
            .contains("mask:        in 160x160 at (450, 260) of 900x700, next to itself"),
        "{plan}"
    );
    let output = PIPE.run(&request).unwrap();
    assert!(kept(&source, &output.image, output.changed.as_ref().unwrap()) > 60 * 80);
    // At the image's corner the region moves inside.
    let corner = rectangle([900, 700], [0, 690, 10, 10]).feather(0.0).crop(5);
    let plan = PIPE.plan(&Request::edit(&source, "").mask(corner)).unwrap();
    assert_eq!(
        plan.mask.unwrap().region,
        Region {
            left: 0,
            top: 685,
            size: Size::new(15, 15)
        }
    );
}

#[test]
fn the_model_sees_the_images_of_the_context() {
    let (source, other) = (photo(96, 64), photo(64, 96));
    let mask = |context| rectangle([96, 64], [10, 10, 30, 30]).context(context);
    let edit = |context| {
        Request::edit(&source, "a door")
            .reference(&other)
            .mask(mask(context))
            .seed(3)
    };
    let mut images = Vec::new();
    for (context, sizes) in [
        (MaskContext::Source, vec![Size::new(96, 64)]),
        (MaskContext::References, vec![Size::new(64, 96)]),
        (MaskContext::Both, vec![Size::new(96, 64), Size::new(64, 96)]),
    ] {
        let plan = PIPE.plan(&edit(context)).unwrap();
        assert_eq!(plan.references.iter().map(|r| r.fitted).collect::<Vec<_>>(), sizes);
        assert_eq!(
            (plan.target.size(), plan.output),
            (Size::new(96, 64), Size::new(96, 64))
        );
        assert_eq!(plan.references[0].origin.t, 1);
        let output = PIPE.run(&edit(context)).unwrap();
        assert!(kept(&source, &output.image, output.changed.as_ref().unwrap()) > 0);
        images.push(output.image);
    }
    assert!(images[0] != images[1] && images[1] != images[2] && images[0] != images[2]);
    // All of them are the default.
    let all = Request::edit(&source, "a door").reference(&other).seed(3);
    let all = PIPE.run(&all.mask(rectangle([96, 64], [10, 10, 30, 30]))).unwrap();
    assert_eq!(all.image, images[2]);
}

#[test]
fn outpainting_keeps_the_old_bytes_beyond_its_feather() {
    let source = photo(90, 61);
    for (outpaint, size, [left, top]) in [
        (Outpaint::sides(20, 0, 7, 3), Size::new(117, 64), [20, 0]),
        (Outpaint::ratio(1, 1), Size::new(90, 90), [0, 14]),
        (
            Outpaint::ratio(2, 1).feather(9).fill(OutpaintFill::Edge),
            Size::new(122, 61),
            [16, 0],
        ),
        (
            Outpaint::sides(0, 0, 40, 0).feather(0).crop(10),
            Size::new(130, 61),
            [0, 0],
        ),
    ] {
        let request = Request::edit(&source, "more").outpaint(outpaint).seed(3);
        let output = PIPE.run(&request).unwrap();
        assert_eq!(
            (output.plan.output, output.image.dimensions()),
            (size, (size.width, size.height))
        );
        let shares = output.changed.as_ref().unwrap();
        let mut kept = 0;
        for (x, y, pixel) in source.enumerate_pixels() {
            if shares.get_pixel(left + x, top + y).0[0] == 0 {
                assert_eq!(output.image.get_pixel(left + x, top + y), pixel);
                kept += 1;
            }
        }
        assert!(kept > 90 * 61 / 3, "{outpaint:?}: {kept}");
        let feather = outpaint.feather.unwrap_or(61 / 8);
        assert_eq!(kept == 90 * 61, feather == 0, "{outpaint:?}");
    }
    // Together with a mask, both are repainted.
    let mask = rectangle([90, 61], [40, 30, 4, 4]).feather(0.0);
    let both = Request::edit(&source, "more")
        .outpaint(Outpaint::sides(20, 0, 0, 0))
        .mask(mask);
    let shares = PIPE.run(&both).unwrap().changed.unwrap();
    assert_eq!(shares.get_pixel(62, 31).0[0], 255);
    assert_eq!((shares.get_pixel(59, 31).0[0], shares.get_pixel(5, 5).0[0]), (0, 255));
}

#[test]
fn a_mask_that_cannot_be_meant_is_refused_before_any_work() {
    let source = photo(96, 64);
    let edit = || Request::edit(&source, "a door");
    let mask = || rectangle([96, 64], [1, 1, 9, 9]);
    let cases = [
        (edit().mask(GrayImage::new(96, 64)), "at least a pixel above 0"),
        (
            edit().mask(rectangle([95, 64], [1, 1, 9, 9])),
            "the image's size, 96x64, got 95x64",
        ),
        (edit().mask(rectangle([64, 96], [1, 1, 9, 9])), "it seems to be turned"),
        (Request::generate("").mask(mask()), "an image next to it"),
        (
            Request::generate("").outpaint(Outpaint::ratio(1, 1)),
            "an image next to it",
        ),
        (edit().mask(mask().grow(-1.0)), "grow of a mask"),
        (edit().mask(mask().feather(f32::NAN)), "feather of a mask"),
        (
            edit().mask(mask().context(MaskContext::References)),
            "another image in the request",
        ),
        (edit().mask(mask()).references(References::Stitch), "not joined"),
        (edit().outpaint(Outpaint::sides(0, 0, 0, 0)), "at least a pixel more"),
        (edit().outpaint(Outpaint::ratio(96, 64)), "at least a pixel more"),
        (edit().outpaint(Outpaint::ratio(0, 1)), "a number from 1 to 8192, got 0"),
        (
            edit().outpaint(Outpaint::ratio(8192, 1)),
            "pixels on a side of outpaint",
        ),
        (edit().mask(mask()).conform(Conformance::Bfl), "no masks"),
    ];
    for (request, words) in cases {
        let error = PIPE.run(&request).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let warnings = PIPE.plan(&edit().mask(mask()).native_size()).unwrap().warnings;
    assert_eq!(warnings, [Warning::NativeSizeMasked]);
}

#[test]
fn a_session_edits_under_masks_and_beyond_its_image() {
    let source = photo(96, 64);
    let mut session = PIPE.session(source.clone());
    session.keep_unchanged = Some(KeepUnchanged::default());
    let mask = rectangle([96, 64], [10, 10, 20, 20]).feather(3.0);
    let masked = session.request("a door").mask(mask.clone()).seed(1);
    let turn = session.run(&masked).unwrap().clone();
    assert!(kept(&source, &turn.image, turn.changed.as_ref().unwrap()) > 0);
    assert!(turn.latents.is_some());
    // A crop's latents are no context of the whole image.
    let cropped = session.request("a window").mask(mask.crop(4)).seed(2);
    let next = session.run(&cropped).unwrap().clone();
    assert!(kept(&turn.image, &next.image, next.changed.as_ref().unwrap()) > 0);
    assert!(next.latents.is_none());
    let wide = session.request("more").outpaint(Outpaint::ratio(2, 1)).seed(3);
    let wide = session.run(&wide).unwrap().clone();
    assert_eq!(wide.image.dimensions(), (128, 64));
    assert_eq!(wide.image.get_pixel(64, 32), next.image.get_pixel(48, 32));
    // And goes on without a mask.
    session.edit("winter").unwrap();
    assert_eq!(session.current().image.dimensions(), (128, 64));
    // A saved session has the masks of its turns.
    let folder = tempfile::tempdir().unwrap();
    session.save(folder.path()).unwrap();
    let restored = PIPE.restore_session(folder.path()).unwrap();
    let of = |session: &Session, turn: usize| session.turns()[turn].request().unwrap().clone();
    for turn in [1, 2] {
        let (old, new) = (of(&session, turn).mask.unwrap(), of(&restored, turn).mask.unwrap());
        assert_eq!((old.pixels, old.settings), (new.pixels, new.settings));
    }
    assert_eq!(of(&restored, 3).outpaint, Some(Outpaint::ratio(2, 1)));
    assert_eq!(restored.turns()[1].changed, turn.changed);
}
