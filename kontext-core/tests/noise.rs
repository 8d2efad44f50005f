//! Noise compared with PyTorch's, bit for bit.
//!
//! Fixture: `tests/reference/parts/noise.py`, made by torch 2.11 on an x86-64 CPU with AVX2.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use kontext_core::{Device, Kind, Tensor, noise};
use kontext_fixtures::Fixture;

fn fixture() -> Fixture {
    Fixture::open("noise.safetensors")
}

fn kind(name: &str) -> Kind {
    match name {
        "f32" => Kind::Float,
        "bf16" => Kind::BFloat16,
        _ => Kind::Half,
    }
}

#[test]
fn draws_of_every_size_seed_and_dtype_are_those_of_torch() {
    let fixture = fixture();
    let mut seen = 0;
    for name in fixture.names() {
        let Some((dtype, rest)) = name.split_once(".seed") else {
            continue;
        };
        let Some((seed, size)) = rest.split_once(".n") else {
            continue;
        };
        let Ok(size) = size.parse::<i64>() else { continue };
        let expected = fixture.tensor(&name);
        let draw = noise::randn(&[size], seed.parse().unwrap(), kind(dtype), Device::Cpu).unwrap();
        assert!(draw.equal(&expected), "{name}: {draw:?} against {expected:?}");
        seen += 1;
    }
    assert!(seen > 70, "only {seen} draws in the fixture");
}

#[test]
fn draws_in_turn_are_those_of_one_generator_of_torch() {
    let fixture = fixture();
    for dtype in ["f32", "bf16", "f16"] {
        let mut generator = noise::Generator::new(7);
        let mut seen = 0;
        for index in 0.. {
            let name = format!("sequence.{dtype}.{index}");
            if !fixture.contains(&name) {
                break;
            }
            let expected = fixture.tensor(&name);
            let draw = generator.randn(&expected.size(), kind(dtype), Device::Cpu).unwrap();
            assert!(draw.equal(&expected), "{name}: {draw:?} against {expected:?}");
            seen += 1;
        }
        assert_eq!(seen, 7);
    }
    // A run in bf16 draws its first noise in bf16, and that of its steps in f32.
    let fixture = Fixture::open("samplers.safetensors");
    let mut generator = noise::Generator::new(7);
    for (name, kind) in [("draw.0", Kind::BFloat16), ("draw.1", Kind::Float)] {
        let expected = fixture.tensor(name);
        let draw = generator.randn(&expected.size(), kind, Device::Cpu).unwrap();
        assert!(draw.equal(&expected), "{name}: {draw:?} against {expected:?}");
    }
}

#[test]
fn a_quarter_of_a_million_draws_have_the_same_bytes() {
    let fixture = fixture();
    for dtype in ["f32", "bf16", "f16"] {
        let draw = noise::randn(&[1, 16, 128, 128], 7, kind(dtype), Device::Cpu).unwrap();
        let bytes = draw.reshape([-1]).view_dtype(Kind::Uint8);
        let mut buffer = vec![0_u8; bytes.numel()];
        let count = buffer.len();
        bytes.copy_data(&mut buffer, count);
        let expected = fixture.tensor(&format!("long.{dtype}.crc32")).int64_value(&[0]);
        assert_eq!(i64::from(crc32fast::hash(&buffer)), expected, "{dtype}");
    }
}

#[test]
fn draws_from_many_threads_are_those_of_one_and_leave_the_global_generator_alone() {
    tch::manual_seed(3);
    let untouched = Tensor::randn([64], (Kind::Float, Device::Cpu));
    tch::manual_seed(3);
    let alone: Vec<Tensor> = (0..8)
        .map(|s| noise::randn(&[1000], s, Kind::Float, Device::Cpu).unwrap())
        .collect();
    std::thread::scope(|scope| {
        let draws: Vec<_> = (0..8)
            .map(|s| scope.spawn(move || noise::randn(&[1000], s, Kind::Float, Device::Cpu).unwrap()))
            .collect();
        for (draw, expected) in draws.into_iter().zip(&alone) {
            assert!(draw.join().unwrap().equal(expected));
        }
    });
    assert!(Tensor::randn([64], (Kind::Float, Device::Cpu)).equal(&untouched));
}
