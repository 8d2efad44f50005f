//! Any images and options give a plan that the model can run, or an error; never a panic.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::sync::{Arc, LazyLock};

use image::RgbImage;
use kontext::crates::kontext_sampler::geometry::{
    LARGEST_SIDE, PREFERRED_SIZES, TOKEN_PIXELS, diffusers_target, preferred_size,
};
use kontext::crates::kontext_sampler::ids::Origin;
use kontext::{CfgMode, Conformance, Device, Error, Grid, Layout, Pipeline, Plan, References, Request, Size, Warning};
use proptest::prelude::*;

static PIPE: LazyLock<Pipeline> = LazyLock::new(|| {
    Pipeline::builder()
        .device(Device::Cpu)
        .load(common::model(Layout::Diffusers))
        .unwrap()
});

const MODES: [Conformance; 3] = [Conformance::Native, Conformance::Diffusers, Conformance::Bfl];
const REFERENCES: [References; 3] = [References::Offset, References::Index, References::Stitch];

/// Limit on the pixels of a test image; its memory pages are never touched.
const MOST_PIXELS: u32 = 1 << 25;

/// Generates an image with sides from 1 to 20,000, including long thin ones.
fn image() -> impl Strategy<Value = RgbImage> {
    let side = || prop_oneof![1..40_u32, 1..2000_u32, 1..=20_000_u32];
    (side(), side(), any::<bool>()).prop_map(|(long, short, lying)| {
        let short = short.min(MOST_PIXELS / long);
        if lying {
            RgbImage::new(long, short)
        } else {
            RgbImage::new(short, long)
        }
    })
}

/// Generates values that a careless program passes.
fn number() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => 0.0..1.0,
        2 => -2.0..20.0,
        1 => prop::sample::select(vec![0.0, 1.0, -0.0, f64::NAN, f64::INFINITY, f64::MIN_POSITIVE, 1e300]),
    ]
}

fn side() -> impl Strategy<Value = Option<u32>> {
    prop_oneof![
        4 => Just(None),
        3 => (1..=64_u32).prop_map(|tokens| Some(tokens * TOKEN_PIXELS)),
        1 => (1..=LARGEST_SIDE / TOKEN_PIXELS).prop_map(|tokens| Some(tokens * TOKEN_PIXELS)),
        1 => any::<u32>().prop_map(Some),
        1 => (0..3000_u32).prop_map(Some),
    ]
}

fn area() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![4 => Just(None), 3 => (256..5_000_000_u64).prop_map(Some), 1 => any::<u64>().prop_map(Some)]
}

fn request() -> impl Strategy<Value = Request> {
    let images = prop::collection::vec(image(), 0..4);
    let steps = prop_oneof![3 => Just(None), 3 => (0..60_usize).prop_map(Some), 1 => any::<usize>().prop_map(Some)];
    let value = || prop_oneof![Just(0.0_f32), Just(1.0), Just(f32::NAN), Just(1e-45), -0.1..1.1_f32];
    let sigmas = prop_oneof![
        4 => Just(None),
        1 => prop::collection::vec(value(), 0..5).prop_map(|mut sigmas| {
            sigmas.sort_by(|a, b| b.total_cmp(a));
            Some(sigmas)
        }),
    ];
    let strength = prop_oneof![3 => Just(1.0), 1 => number()];
    let guidance = prop_oneof![3 => Just(None), 1 => number().prop_map(Some)];
    (
        images,
        side(),
        side(),
        area(),
        any::<bool>(),
        steps,
        sigmas,
        strength,
        (guidance, number(), any::<bool>(), [any::<bool>(), any::<bool>()]),
        (0..3_usize, 0..3_usize),
    )
        .prop_map(
            |(
                images,
                width,
                height,
                area,
                native,
                steps,
                sigmas,
                strength,
                (guidance, cfg, batched, negative),
                (mode, references),
            )| {
                let mut request = Request::generate("x").strength(strength).true_cfg(cfg);
                request.cfg_mode = if batched { CfgMode::Batched } else { CfgMode::default() };
                let texts = negative.map(|given| given.then(|| "y".to_owned()));
                [request.negative_prompt, request.negative_prompt_2] = texts;
                (request.images, request.width, request.height, request.max_area) =
                    (images.into_iter().map(Arc::new).collect(), width, height, area);
                (request.native_size, request.steps, request.sigmas, request.guidance) =
                    (native, steps, sigmas, guidance);
                request.conform(MODES[mode]).references(REFERENCES[references])
            },
        )
}

fn fits(grid: Grid) -> bool {
    let most = i64::from(LARGEST_SIDE / TOKEN_PIXELS);
    (1..=most).contains(&grid.rows) && (1..=most).contains(&grid.cols) && grid.size().grid().is_ok_and(|g| g == grid)
}

/// Returns the request without the setting that a warning calls ignored; `None` for other warnings.
fn without(request: &Request, warning: &Warning) -> Option<Request> {
    let mut request = request.clone();
    match warning {
        Warning::NegativePromptIgnored { .. } => (request.negative_prompt, request.negative_prompt_2) = (None, None),
        Warning::TrueCfgIgnored { .. } => request.true_cfg = 1.0,
        Warning::CfgModeIgnored => request.cfg_mode = CfgMode::default(),
        Warning::StepsIgnored { .. } => request.steps = None,
        Warning::MaxAreaIgnored { .. } => request.max_area = None,
        Warning::ReferencesIgnored { .. } => request.references = References::default(),
        _ => return None,
    }
    Some(request)
}

/// Returns `true` if no two grids share a position.
fn apart(plan: &Plan) -> bool {
    let target = (plan.target, Origin { t: 0, y: 0, x: 0 });
    let grids: Vec<_> = plan
        .references
        .iter()
        .map(|r| (r.grid, r.origin))
        .chain([target])
        .collect();
    let before = |(a, at): (Grid, Origin), (_, to): (Grid, Origin)| at.y + a.rows <= to.y || at.x + a.cols <= to.x;
    let apart = |a: (Grid, Origin), b: (Grid, Origin)| a.1.t != b.1.t || before(a, b) || before(b, a);
    grids
        .iter()
        .enumerate()
        .all(|(i, a)| grids.iter().skip(i + 1).all(|b| apart(*a, *b)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn a_request_gets_a_plan_that_fits_the_model_or_an_error(request in request()) {
        let plan = match PIPE.plan(&request) {
            Ok(plan) => plan,
            Err(error) => {
                let text = error.to_string();
                prop_assert!(matches!(error, Error::InvalidArgument { .. }), "{error:?}");
                prop_assert!(text.starts_with("invalid ") && text.contains(": expected ") && text.contains(", got "), "{text}");
                return Ok(());
            }
        };
        prop_assert!(fits(plan.target), "{plan}");
        let stitched = request.references == References::Stitch;
        prop_assert_eq!(plan.references.len(), if stitched { request.images.len().min(1) } else { request.images.len() });
        for reference in &plan.references {
            prop_assert!(fits(reference.grid) && reference.grid.size() == reference.fitted, "{plan}");
            prop_assert!(reference.origin.t > 0, "{plan}");
        }
        prop_assert!(apart(&plan), "{plan}");
        prop_assert!(plan.output.width > 0 && plan.output.height > 0, "{plan}");

        let sigmas = plan.schedule.sigmas();
        prop_assert_eq!(sigmas.len(), plan.schedule.steps() + 1);
        prop_assert!(sigmas.windows(2).all(|pair| pair[0] >= pair[1]), "{sigmas:?}");
        prop_assert!(sigmas[0] <= 1.0 && sigmas[sigmas.len() - 1] == 0.0, "{sigmas:?}");
        prop_assert!(request.steps.is_none_or(|steps| plan.schedule.steps() <= steps) || request.sigmas.is_some());

        // An edit without size options returns its input size.
        let first = request.images.first().map(|i| Size::new(i.width(), i.height()));
        let sized = request.width.is_some() || request.height.is_some() || request.native_size || stitched;
        if let (Some(first), Conformance::Native, false) = (first, request.conformance, sized) {
            prop_assert_eq!(plan.output, first);
            prop_assert_eq!(plan.references[0].grid, plan.target);
        }
        if let (Some(width), Some(height), Conformance::Native) = (request.width, request.height, request.conformance) {
            prop_assert_eq!(plan.target.size(), Size::new(width, height));
        }
        // Printing uses every number once more.
        prop_assert!(plan.to_string().contains("sequence:"));
        // Without an ignored setting the plan is the same, and does not warn of it.
        for warning in &plan.warnings {
            prop_assert!(plan.to_string().contains(&format!("\nwarning:     {warning}")), "{plan}");
            let Some(request) = without(&request, warning) else { continue };
            let other = PIPE.plan(&request).unwrap();
            prop_assert!(!other.warnings.contains(warning), "{warning}");
            let mut same = other.clone();
            (same.warnings, same.reference_mode) = (plan.warnings.clone(), plan.reference_mode);
            prop_assert_eq!(&same, &plan, "{}", warning);
        }
    }

    #[test]
    fn every_image_has_a_preferred_size_and_any_area_a_grid(
        width in 1..=20_000_u32, height in 1..=20_000_u32, area in 256..4_000_000_u64,
    ) {
        let image = Size::new(width, height);
        for mode in MODES {
            let preferred = preferred_size(image, &PREFERRED_SIZES, mode);
            prop_assert!(PREFERRED_SIZES.contains(&preferred));
            prop_assert!(preferred.scaled_to(area).grid().is_ok());
        }
        // An image and its transpose get transposed sizes, unless two sizes are equally near.
        let turned = preferred_size(Size::new(height, width), &PREFERRED_SIZES, Conformance::Native);
        prop_assert_eq!(
            Size::new(turned.height, turned.width),
            preferred_size(image, &PREFERRED_SIZES, Conformance::Native)
        );
        prop_assert!(image.floored().grid().is_ok() == (width <= LARGEST_SIDE + 15 && height <= LARGEST_SIDE + 15));
        let target = diffusers_target(image, area);
        prop_assert_eq!(target, target.floored());
    }
}
