//! Faults that are planted in the kernels' text: the emulator finds each.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{ODD, ORDERS, random, shape, weights};
use kontext_core::{Result, Tensor};
use kontext_emulator::{Emulator, FAULTS, FAULTY_SHAPE, Fault, SOURCE};
use kontext_kernels::{Kernels, NormModulation, QkWeights};

#[test]
fn the_emulators_text_is_the_devices() {
    assert_eq!(SOURCE, kontext_kernels::source());
    assert_eq!(FAULTY_SHAPE, ODD);
}

/// Calls the kernel that the fault is in.
fn call(kernels: &Kernels, fault: Fault) -> Result<()> {
    let (x, vector) = (random(&[1, 4, 576], 1, 1.0, 0.0), random(&[1, 576], 2, 1.0, 0.0));
    let norm = NormModulation {
        scale: &vector,
        shift: &vector,
    };
    match fault {
        Fault::MissingBarrier | Fault::ReusedScratch => {
            kernels.residual_norm(&x, None, &norm, &norm, 0, 1e-6).map(drop)
        }
        Fault::DivergentShuffle => {
            let weight = weights(&[64], 3);
            let weights = QkWeights {
                text_q: &weight,
                text_k: &weight,
                image_q: &weight,
                image_k: &weight,
            };
            let (qkv, rope) = (random(&[1, 4, 3 * 576], 4, 1.0, 0.0), common::weights(&[4, 64], 5));
            kernels.qk_norm_rope(&qkv, &weights, &rope, 9, 0, 1e-6)
        }
        Fault::RowTooMany => {
            let picture = random(&[1, 10, 10, 32], 6, 1.0, 0.0).permute([0, 3, 1, 2]);
            let (weight, bias) = (weights(&[32], 7), weights(&[32], 8));
            kernels
                .group_norm_silu(&picture, &weight, &bias, 8, 1e-6, true)
                .map(drop)
        }
        Fault::Misaligned => {
            let mlp: Tensor = random(&[1, 4, 1336], 9, 1.0, 0.0);
            kernels.gelu_concat_fp8(None, &mlp).map(drop)
        }
    }
}

#[test]
fn each_planted_fault_is_found_in_each_order() {
    for fault in FAULTS {
        let words = match fault {
            Fault::MissingBarrier => "has not written|a race",
            Fault::ReusedScratch => "a race",
            Fault::DivergentShuffle => "threads wait at a barrier or a shuffle that others never reach",
            Fault::RowTooMany => "bytes outside the launch's buffers",
            Fault::Misaligned => "not aligned",
        };
        for order in ORDERS {
            let run = |emulator| call(&Kernels::launched_by(Arc::new(emulator), &shape(ODD)), fault);
            run(Emulator::new(order)).unwrap();
            let error = run(Emulator::faulty(fault, order)).unwrap_err().to_string();
            assert!(
                words.split('|').any(|words| error.contains(words)),
                "{fault:?}, {order:?}: {error}"
            );
            // The kernel, the block and the thread are named.
            assert!(error.starts_with("kernel ") && error.contains("thread "), "{error}");
        }
    }
}
