//! Tests of the choice of the attention's kernel: reported before a run, used in it, and each pipeline's own.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use common::model;
use kontext::crates::kontext_nn::AttentionBackend;
use kontext::{
    Attention, AttentionKernel, Device, Error, Kind, Layout, ModelSizes, Output, Pipeline, PipelineBuilder, Request,
};

fn builder() -> PipelineBuilder {
    Pipeline::builder().device(Device::Cpu)
}

fn request() -> Request {
    Request::generate("a hat").size(64, 64).steps(2).seed(3)
}

fn random(attention: Attention) -> Pipeline {
    builder().attention(attention).random(&ModelSizes::small(), 7).unwrap()
}

/// Returns the largest difference of two results.
fn difference(a: &Output, b: &Output) -> f32 {
    let pairs = a.latents.iter().zip(&b.latents);
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn a_plan_reports_the_kernel_before_and_after_loading() {
    let folder = model(Layout::SingleFiles);
    for (choice, kernel) in [
        (Attention::Automatic, AttentionKernel::Flash),
        (Attention::Flash, AttentionKernel::Flash),
        (Attention::Math, AttentionKernel::Math),
    ] {
        let builder = builder().attention(choice);
        let planned = builder.plan(&folder, &request()).unwrap();
        assert_eq!(planned.attention, Some(kernel));
        assert!(
            planned.to_string().contains(&format!("\nattention:   {kernel}\n")),
            "{planned}"
        );
        assert_eq!(builder.load(&folder).unwrap().plan(&request()).unwrap(), planned);
    }
    let there = builder().device(Device::Cuda(99));
    assert_eq!(there.plan(&folder, &request()).unwrap().attention, None);
    let chosen = there.attention(Attention::CuDnn).plan(&folder, &request()).unwrap();
    assert_eq!(chosen.attention, Some(AttentionKernel::CuDnn));
}

#[test]
fn pipelines_with_different_kernels_run_at_the_same_time() {
    let (flash, math) = (random(Attention::Automatic), random(Attention::Math));
    let run = |pipe: &Pipeline| pipe.run(&request()).unwrap();
    let alone = [run(&flash), run(&math)];
    let off = difference(&alone[0], &alone[1]);
    assert!(off > 0.0 && off < 1e-4, "{off}");
    assert_eq!(run(&random(Attention::Flash)).latents, alone[0].latents);
    std::thread::scope(|threads| {
        let others = [&flash, &math].map(|pipe| threads.spawn(move || [run(pipe), run(pipe)]));
        for (other, alone) in others.into_iter().zip(&alone) {
            for output in other.join().unwrap() {
                assert_eq!(output.latents, alone.latents);
            }
        }
    });
}

#[test]
fn a_kernel_that_cannot_act_is_refused_before_any_work() {
    let folder = model(Layout::SingleFiles);
    let expected = "invalid attention: expected auto, flash or math on a CPU, got flash3=absent.so";
    let library = "absent.so".into();
    let builder = builder().attention(Attention::Flash3 { library });
    let refused: [Result<(), Error>; 3] = [
        builder.plan(&folder, &request()).map(drop),
        builder.load(&folder).map(drop),
        builder.random(&ModelSizes::small(), 7).map(drop),
    ];
    for result in refused {
        assert_eq!(result.unwrap_err().to_string(), expected);
    }
}

#[test]
fn the_kernel_of_bf16_on_a_cpu_is_reported_for_runs_in_bf16_only() {
    let sizes = ModelSizes::small();
    let plan = |builder: PipelineBuilder| {
        let pipe = builder.random(&sizes, 7).unwrap();
        pipe.plan(&request()).unwrap().attention
    };
    assert_eq!(plan(builder().compute(Kind::Float)), Some(AttentionKernel::Flash));
    // Which one it is depends on the CPU and on the width of the heads.
    let backend = AttentionBackend::open(&Attention::Automatic, Device::Cpu, Kind::Float).unwrap();
    let parts = builder().random_parts(&sizes, 7).unwrap();
    let config = parts.dit.config();
    let expected = backend
        .kernel_in(Kind::BFloat16, config.heads, config.head_dim)
        .unwrap();
    let bf16 = builder().compute(Kind::BFloat16);
    assert_eq!(plan(bf16.clone()), Some(expected));
    assert_eq!(plan(bf16.attention(Attention::Math)), Some(AttentionKernel::Math));
}
