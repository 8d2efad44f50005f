//! Plans for a CUDA device, computed without one.

mod extremes;
mod reuse;

use image::RgbImage;
use kontext_core::{Error, Tensor};
use kontext_dit::DitConfig;
use kontext_nn::Offload;
use kontext_nn::footprint::{MatrixBytes as Matrix, WeightBytes as Part};
use kontext_sampler::Shift;
use kontext_text::T5Config;

use super::*;
use crate::placement::Arrangement;
use crate::plan::ModelFacts;
use crate::{Checkpoint, Compute, Layout, ModelDefaults, Plan, Request, random_model};

const GB: u64 = 1_000_000_000;
const CPU: Machine = Machine {
    device: Device::Cpu,
    built: Kind::Float,
    stored: Kind::Float,
};
const CUDA: Machine = Machine {
    device: Device::Cuda(1),
    built: Kind::BFloat16,
    stored: Kind::BFloat16,
};

/// Returns the footprint of the published FLUX.1 Kontext in bf16, with sizes from the headers of its files.
fn published(machine: Machine) -> Footprint {
    let part = |matrices: u64, rest: u64, largest: u64| Part {
        matrices,
        stored: matrices,
        rest,
        largest: Matrix {
            elements: largest,
            stored: 2 * largest,
        },
        largest_packed: Matrix::default(),
    };
    Footprint {
        machine,
        text: part(9_524_000_000, 247_000_000, 10_240 * 4096),
        dit: part(17_308_000_000, 3_000_000, 21_504 * 3072),
        modulation: part(6_491_000_000, 2_000_000, 18_432 * 3072),
        vae: 335_000_000,
        t5: T5Config::xxl(),
        config: DitConfig::kontext_dev(),
        vae_channels: 128,
        tiling: None,
    }
}

fn plan(request: &Request) -> Plan {
    Plan::new(
        request,
        &ModelFacts::new(&DitConfig::kontext_dev(), Shift::dev(), 512, ModelDefaults::default()),
    )
    .unwrap()
}

/// Plans an edit in the kind of arithmetic that text encoders are built for.
fn edit(machine: Machine, side: u32) -> Plan {
    Plan {
        compute: Compute::all(machine.built),
        ..plan(&Request::edit(RgbImage::new(side, side), "").size(side, side))
    }
}

const HELD: Arrangement = Arrangement {
    placement: Placement::Resident,
    left: Offload::None,
};
const RESIDENT: Arrangement = Arrangement {
    placement: Placement::Resident,
    left: Offload::Once,
};
const STAGED: Arrangement = Arrangement {
    placement: Placement::Staged,
    left: Offload::Once,
};
const STREAMED: Arrangement = Arrangement {
    placement: Placement::Streamed,
    left: Offload::All,
};

/// Returns the arrangement that `Placement::Auto` resolves to with `free` GB.
fn chosen(footprint: &Footprint, free: u64) -> Arrangement {
    let all = Placement::Auto.arrangements(footprint.machine.device);
    footprint
        .first_that_fits(&edit(footprint.machine, 1024), &all, free * GB)
        .unwrap()
}

#[test]
fn the_published_model_is_resident_on_48_and_32_gb_staged_on_24_and_streamed_on_12() {
    let footprint = published(CUDA);
    let on = |free: u64| chosen(&footprint, free);
    assert_eq!([on(48), on(32), on(24), on(12)], [HELD, RESIDENT, STAGED, STREAMED]);
    // On a CPU the modulation is never held.
    assert_eq!(chosen(&published(CPU), 999), RESIDENT);
    // Widened to f32 it is twice as large.
    let wide = Part {
        matrices: 2 * 17_308_000_000,
        ..footprint.dit
    };
    let machine = Machine {
        built: Kind::Float,
        stored: Kind::Float,
        ..CUDA
    };
    let wide = Footprint {
        dit: wide,
        machine,
        ..footprint
    };
    assert_eq!(chosen(&wide, 32), STREAMED);
}

#[test]
fn a_step_on_cuda_grows_with_the_tokens_and_with_the_kind_and_not_with_their_square() {
    let step = |machine: Machine, side: u32| {
        let stages = published(machine).plan(&edit(machine, side), RESIDENT).stages;
        stages
            .into_iter()
            .find(|stage| stage.stage == Stage::Denoise)
            .unwrap()
            .work
    };
    let tokens = |side: u32| edit(CUDA, side).tokens().unsigned_abs();
    // 16 tensors of all tokens by 3072, in bf16.
    let added = step(CUDA, 2048) - step(CUDA, 1024);
    assert_eq!(added, 2 * 16 * 3072 * (tokens(2048) - tokens(1024)));
    let wide = Machine {
        built: Kind::Float,
        stored: Kind::Float,
        ..CUDA
    };
    assert_eq!(step(wide, 2048) - step(wide, 1024), 2 * added);
}

#[test]
fn what_is_unpacked_or_on_its_way_counts_on_cuda() {
    let plain = published(CUDA);
    let packed = Matrix {
        elements: 21_504 * 3072,
        stored: 21_504 * 3072 / 2,
    };
    let packed = Footprint {
        dit: Part {
            largest_packed: packed,
            ..plain.dit
        },
        ..plain.clone()
    };
    let work = |footprint: &Footprint, placement| {
        let stages = footprint.plan(&edit(footprint.machine, 1024), placement).stages;
        stages
            .into_iter()
            .find(|stage| stage.stage == Stage::Denoise)
            .unwrap()
            .work
    };
    let elements = 21_504 * 3072;
    // The bf16 copy and the work space of four-bit dequantisation.
    assert_eq!(work(&packed, RESIDENT) - work(&plain, RESIDENT), 8 * elements);
    // The matrix as stored, too.
    assert_eq!(work(&plain, STREAMED) - work(&plain, RESIDENT), 10 * elements);
}

#[test]
fn a_plan_says_whose_memory_it_means() {
    let on = |machine| published(machine).plan(&edit(machine, 1024), STAGED).to_string();
    assert!(
        on(CUDA).contains(" of cuda:1's memory while denoising, and up to "),
        "{}",
        on(CUDA)
    );
    assert!(
        on(CPU).starts_with("staged: ") && !on(CPU).contains("cuda"),
        "{}",
        on(CPU)
    );
}

#[test]
fn headers_tell_what_is_held_in_bf16_on_cuda_and_in_f32_on_a_cpu() {
    let folder = tempfile::tempdir().unwrap();
    random_model(folder.path(), 7, Layout::Diffusers).unwrap();
    let model = Checkpoint::find(folder.path()).unwrap();
    let (weights, config) = model.open_transformer().unwrap();
    let footprint = |machine| Footprint::of(&model, &weights, &config, machine, None, None, None).unwrap();
    let (host, device) = (footprint(CPU), footprint(CUDA));
    // The model is stored in f32, and bf16 takes half; the autoencoder stays wide.
    for (host, device) in [
        (host.text, device.text),
        (host.dit, device.dit),
        (host.modulation, device.modulation),
    ] {
        assert_eq!((host.matrices, host.rest), (2 * device.matrices, 2 * device.rest));
        assert_eq!((host.stored, host.largest), (device.stored, device.largest));
    }
    assert_eq!(host.vae, device.vae);
    // In f16, T5's `wo` is wide.
    let half = footprint(Machine {
        built: Kind::Half,
        stored: Kind::Half,
        ..CUDA
    });
    assert!(half.text.matrices > device.text.matrices && half.dit.matrices == device.dit.matrices);
}

#[test]
fn a_run_that_does_not_fit_the_device_is_refused_with_the_next_smaller_setting() {
    let refused = |placement, free| {
        published(CUDA)
            .check(&edit(CUDA, 1024), placement, LoadedParts::ALL, free)
            .unwrap_err()
            .to_string()
    };
    let staged = refused(STAGED, 12 * GB);
    assert!(
        staged.starts_with("denoising takes ") && staged.contains(" MB of memory and 12000 MB are free; "),
        "{staged}"
    );
    assert!(staged.contains("load with Placement::Streamed"), "{staged}");
    // Weights already held are not counted again.
    published(CUDA)
        .check(&edit(CUDA, 1024), RESIDENT, LoadedParts::ALL, 4 * GB)
        .unwrap();
    assert!(refused(RESIDENT, GB).contains("load with Placement::Staged"));
    // Unless they were unloaded: then a run loads them again.
    let check = |loaded, free| published(CUDA).check(&edit(CUDA, 1024), RESIDENT, loaded, free);
    let no_dit = LoadedParts {
        dit: false,
        ..LoadedParts::ALL
    };
    assert!(check(no_dit, 20 * GB).is_err() && check(no_dit, 22 * GB).is_ok());
    let none = LoadedParts::default();
    assert!(check(none, 22 * GB).is_err() && check(none, 32 * GB).is_ok());
    // A budget covers the weights, too.
    let left = |loaded| published(CUDA).left_of(32 * GB, RESIDENT, loaded);
    assert!(left(LoadedParts::ALL) < 5 * GB && left(none) == 32 * GB);
}

/// Returns a libtorch error with this message.
fn torch(words: &str) -> Error {
    tch::TchError::Torch(words.to_owned()).into()
}

const WORDS: &str = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 23.69 GiB of which \
                     1.12 GiB is free.\nException raised from malloc at CUDACachingAllocator.cpp:1";

#[test]
fn libtorchs_shortage_becomes_ours_with_stage_need_and_remedy() {
    let footprint = published(CUDA);
    let reported = |placement, stage, free| {
        footprint
            .shortage(
                torch(WORDS),
                &edit(CUDA, 1024),
                placement,
                LoadedParts::ALL,
                stage,
                free,
            )
            .to_string()
    };
    let less = reported(STAGED, Stage::Denoise, 8 * GB);
    assert!(
        less.starts_with("denoising takes ") && less.contains("8000 MB are free; load with"),
        "{less}"
    );
    // If the plan was too small, libtorch's own message is kept.
    let more = reported(STREAMED, Stage::Decode, 23 * GB);
    assert!(
        more.contains("23000 MB are free; all the same libtorch found too little (CUDA out of memory. Tried to allocate 2.00 GiB); make"),
        "{more}"
    );
    let load = footprint.shortage_at_load(torch(WORDS), RESIDENT, 24 * GB);
    assert!(load.is_out_of_memory());
    assert!(load.to_string().starts_with("loading the model takes "), "{load}");
}

#[test]
fn other_errors_of_libtorch_stay_as_they_are() {
    let error = Tensor::from_slice(&[1.0_f32])
        .f_reshape([2])
        .map_err(Error::from)
        .unwrap_err();
    let words = error.to_string();
    let reported = published(CUDA).shortage(error, &edit(CUDA, 1024), STAGED, LoadedParts::ALL, Stage::Denoise, GB);
    assert_eq!(reported.to_string(), words);
}

#[test]
fn modulation_on_cuda_is_held_or_on_its_way_once_a_run() {
    let footprint = published(CUDA);
    let weights = |arrangement| {
        let plan = footprint.plan(&edit(footprint.machine, 1024), arrangement);
        let weights = plan.stages.iter().map(|stage| stage.weights).max().unwrap();
        (weights, plan.file_pages)
    };
    let (held, left) = (weights(HELD), weights(RESIDENT));
    assert_eq!(held.0 - left.0, footprint.modulation.matrices);
    assert_eq!((held.1, left.1), (0, footprint.modulation.stored));
    // A staged transformer holds its blocks and, of the modulation, only the vectors.
    assert_eq!(weights(STAGED).0, footprint.dit.all() + footprint.modulation.rest);
}

#[test]
fn streamed_weights_on_cuda_come_through_buffers_that_are_held() {
    let weights = |machine| {
        let plan = published(machine).plan(&edit(machine, 1024), STREAMED);
        plan.stages.iter().map(|stage| stage.weights).max().unwrap()
    };
    // Two of each model's largest matrix, in bf16: of the transformer linear1, of T5 those of its feed-forward layers.
    let (transformer, t5) = (21_504 * 3072, 10_240 * 4096);
    // And the autoencoder's copies in bf16, of those in f32.
    let copies = published(CUDA).vae / 2;
    assert_eq!(weights(CUDA) - weights(CPU), 2 * 2 * (transformer + t5) + copies);
}
