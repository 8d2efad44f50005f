//! A test that calls through libtorch's dispatcher free what they take. Its program has no other test, whose memory
//! would count.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use kontext_core::{Device, Kind, Tensor, noise};
use kontext_device::dispatcher::{Argument, Operator};

use Argument::{Float, Tensor as Of};

#[allow(unsafe_code)]
fn operator(schema: &str) -> Operator {
    // SAFETY: the schemas are those of libtorch 2.11, as tests/dispatcher.rs compares them.
    unsafe { Operator::new(schema) }.unwrap()
}

/// Returns the bytes of memory that this program has.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    4096 * pages
}

/// Each call that kept its memory would keep at least a word, 32 bytes of the allocator, or a tensor of 1 MB.
#[test]
fn calls_keep_no_memory() {
    let small = Tensor::from_slice(&[1.0_f64]);
    let words =
        operator("aten::nan_to_num(Tensor self, float? nan=None, float? posinf=None, float? neginf=None) -> Tensor");
    let optional = || {
        let arguments = [("self", Of(&small)), ("nan", Float(0.0)), ("posinf", Float(1.0))];
        words.call(&arguments).unwrap();
    };
    let clamp = operator("aten::clamp.Tensor(Tensor self, Tensor? min=None, Tensor? max=None) -> Tensor");
    let product = operator("aten::mm(Tensor self, Tensor mat2) -> Tensor");
    let large = || {
        let (x, low) = (
            noise::randn(&[512, 512], 0, Kind::Float, Device::Cpu).unwrap(),
            Tensor::zeros([512], (Kind::Float, Device::Cpu)),
        );
        clamp.call(&[("self", Of(&x)), ("min", Of(&low))]).unwrap();
        let double = low.to_kind(Kind::Double).expand([512, 512], false).contiguous();
        product.call(&[("self", Of(&x)), ("mat2", Of(&double))]).unwrap_err();
        // A parameter that is missing after one that was packed.
        clamp.call(&[("min", Of(&double))]).unwrap_err();
        product.call(&[("self", Of(&double))]).unwrap_err();
    };
    for _ in 0..100 {
        optional();
    }
    for _ in 0..3 {
        large();
    }
    // A leak shows in every round, a heap that the allocator takes anew in some.
    let rounds = (0..4).map(|_| {
        let before = resident();
        for _ in 0..300_000 {
            optional();
        }
        for _ in 0..10 {
            large();
        }
        resident().saturating_sub(before)
    });
    let grown = rounds.min().unwrap();
    assert!(grown < 6 << 20, "{grown} bytes more in each round");
}
