//! Sizes of damaged files, remedies, and the memory of images.

use super::*;

/// Returns the footprint of a few megabytes of weights.
fn small(machine: Machine) -> Footprint {
    let part = |megabytes: u64| Part {
        matrices: megabytes * 1_000_000,
        stored: megabytes * 1_000_000,
        ..Part::default()
    };
    Footprint {
        text: part(8),
        dit: part(12),
        modulation: part(3),
        vae: 7_000_000,
        ..published(machine)
    }
}

#[test]
fn sizes_of_damaged_files_saturate() {
    let all = u64::MAX;
    let matrix = Matrix {
        elements: all,
        stored: all,
    };
    let part = Part {
        matrices: all,
        stored: all,
        rest: all,
        largest: matrix,
        largest_packed: matrix,
    };
    for size in [i64::MIN, -1, 0, 1 << 31, 1 << 62, i64::MAX] {
        let t5 = T5Config {
            d_model: size,
            d_kv: size,
            d_ff: size,
            num_heads: size,
            ..T5Config::xxl()
        };
        let config = DitConfig {
            heads: size,
            head_dim: size,
            double_blocks: size,
            single_blocks: size,
            ..DitConfig::kontext_dev()
        };
        for machine in [CPU, CUDA] {
            let footprint = Footprint {
                machine,
                text: part,
                dit: part,
                modulation: part,
                vae: all,
                t5: t5.clone(),
                config: config.clone(),
                vae_channels: all,
                tiling: Some(kontext_vae::Tiling { tile: size, overlap: 0 }),
            };
            let plan = Plan {
                text_tokens: i64::MAX,
                ..edit(machine, 1024)
            };
            let (_, peak) = footprint.plan(&plan, RESIDENT).peak();
            assert_eq!(peak, u64::MAX, "{size}");
            let plan = Plan {
                text_tokens: 512,
                ..plan
            };
            assert!(footprint.check(&plan, STAGED, LoadedParts::ALL, GB).is_err());
        }
    }
}

/// Returns the remedy of a refused run.
fn remedy(footprint: &Footprint, plan: &Plan, arrangement: Arrangement, free: u64) -> String {
    let error = footprint.check(plan, arrangement, LoadedParts::ALL, free).unwrap_err();
    let Error::Memory { remedy, .. } = error else {
        panic!("{error}")
    };
    remedy
}

#[test]
fn a_placement_is_a_remedy_only_if_its_weights_matter() {
    const IMAGE: &str = "make the image smaller or run fewer at once";
    let request = Request::generate("").size(8192, 8192);
    let big = plan(&request);
    // Megabytes of weights, gigabytes of activations.
    assert_eq!(remedy(&small(CPU), &big, RESIDENT, GB), IMAGE);
    assert_eq!(remedy(&small(CPU), &big, STAGED, GB), IMAGE);
    // Weights that do not fit, and others that would.
    let published = published(CUDA);
    assert_eq!(
        remedy(&published, &edit(CUDA, 1024), STAGED, 12 * GB),
        format!("load with Placement::Streamed, or {IMAGE}")
    );
    // None fits, but the last takes a tenth.
    assert_eq!(
        remedy(&published, &edit(CUDA, 1024), STAGED, GB),
        format!("load with Placement::Streamed and {IMAGE}")
    );
    // Nothing is smaller than streamed; its peak is the autoencoder's.
    assert_eq!(
        remedy(&published, &edit(CUDA, 1024), STREAMED, GB),
        "make the image smaller, run fewer at once, or let the autoencoder work in tiles"
    );
}

#[test]
fn too_many_words_are_not_mended_by_a_smaller_image() {
    let words = |text_tokens| Plan {
        text_tokens,
        ..edit(CPU, 1024)
    };
    let long = words(65_536);
    assert_eq!(
        remedy(&small(CPU), &long, RESIDENT, GB),
        "set a smaller max_sequence_length"
    );
    // The text encoders fit, and the transformer has more words than pixels.
    let text = small(CPU).text_work(&words(10_000), kontext_nn::Offload::Once);
    let thin = Footprint {
        t5: T5Config {
            num_heads: 1,
            d_ff: 1,
            ..T5Config::xxl()
        },
        ..small(CPU)
    };
    assert!(thin.text_work(&words(10_000), kontext_nn::Offload::Once) < text);
    assert_eq!(
        remedy(&thin, &words(10_000), RESIDENT, GB),
        "set a smaller max_sequence_length or run fewer at once"
    );
}

#[test]
fn tiles_are_a_remedy_only_where_there_are_none() {
    let footprint = Footprint {
        vae_channels: 100_000,
        ..small(CPU)
    };
    assert_eq!(
        remedy(&footprint, &edit(CPU, 1024), RESIDENT, GB),
        "make the image smaller, run fewer at once, or let the autoencoder work in tiles"
    );
    let decoding = |footprint: &Footprint| footprint.plan(&edit(CPU, 1024), RESIDENT).peak().1;
    let tiled = Footprint {
        tiling: Some(kontext_vae::Tiling { tile: 256, overlap: 64 }),
        ..footprint.clone()
    };
    assert_eq!(
        remedy(&tiled, &edit(CPU, 1024), RESIDENT, GB),
        "make the image smaller or run fewer at once"
    );
    assert!(decoding(&tiled) < decoding(&footprint) / 10);
}

#[test]
fn images_that_a_run_makes_are_planned_on_the_host_only() {
    let picture = |side: u32| plan(&Request::edit(RgbImage::new(side, side), "").max_area(256 * 256));
    let work = |machine, plan: &Plan, stage| {
        let stages = small(machine).plan(plan, RESIDENT).stages;
        stages.into_iter().find(|planned| planned.stage == stage).unwrap().work
    };
    let growth = |machine, stage| work(machine, &picture(4096), stage) - work(machine, &picture(256), stage);
    // The result is there twice, the decoded image once before it is resized.
    let results = 2 * 3 * (4096 * 4096 - 256 * 256) + 3 * 256 * 256;
    assert_eq!(growth(CPU, Stage::Decode), results);
    assert_eq!((growth(CUDA, Stage::Decode), growth(CUDA, Stage::References)), (0, 0));
    // A reference is small when it is encoded.
    assert_eq!(growth(CPU, Stage::References), 0);
    // All images of a batch, and the joined references.
    let batch = Plan {
        batch: 3,
        ..picture(4096)
    };
    assert_eq!(
        work(CPU, &batch, Stage::Decode) - work(CPU, &picture(4096), Stage::Decode),
        2 * 3 * 4096 * 4096
    );
    let joined = Request::edit(RgbImage::new(2000, 1000), "").reference(RgbImage::new(1000, 1000));
    let joined = joined
        .max_area(256 * 256)
        .references(kontext_sampler::References::Stitch);
    assert!(work(CPU, &plan(&joined), Stage::References) > 2 * 3 * 3000 * 1000);
}
