//! Tests of calls through libtorch's dispatcher, next to tch's own: values of each type, and errors.
#![cfg(unix)]
#![allow(clippy::panic, clippy::unwrap_used)]

use std::path::Path;

use kontext_core::{Device, Error, Kind, Tensor, noise};
use kontext_device::dispatcher::{Argument, Operator, Output};
use kontext_device::libtorch;

use Argument::{Bool, Float, Int, Tensor as Of};

/// Schemas of libtorch 2.11, as it registers them.
const SCHEMAS: [&str; 12] = [
    "aten::nan_to_num(Tensor self, float? nan=None, float? posinf=None, float? neginf=None) -> Tensor",
    "aten::argmax(Tensor self, int? dim=None, bool keepdim=False) -> Tensor",
    "aten::clamp.Tensor(Tensor self, Tensor? min=None, Tensor? max=None) -> Tensor",
    "aten::max.dim(Tensor self, int dim, bool keepdim=False) -> (Tensor values, Tensor indices)",
    "aten::var_mean(Tensor self, bool unbiased=True) -> (Tensor, Tensor)",
    "aten::sym_size.int(Tensor self, int dim) -> SymInt",
    "aten::equal(Tensor self, Tensor other) -> bool",
    "aten::q_scale(Tensor self) -> float",
    "aten::mul.Tensor(Tensor self, Tensor other) -> Tensor",
    "aten::mm(Tensor self, Tensor mat2) -> Tensor",
    "aten::native_batch_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, \
     bool training, float momentum, float eps) -> (Tensor, Tensor, Tensor)",
    "aten::_scaled_dot_product_flash_attention_for_cpu(Tensor query, Tensor key, Tensor value, float dropout_p=0., bool \
     is_causal=False, *, Tensor? attn_mask=None, float? scale=None) -> (Tensor output, Tensor logsumexp)",
];

#[allow(unsafe_code)]
fn operator(name: &str) -> Operator {
    let schema = SCHEMAS
        .iter()
        .find(|schema| schema.starts_with(&format!("aten::{name}(")));
    // SAFETY: the schemas are compared with libtorch's own below.
    unsafe { Operator::new(schema.unwrap()) }.unwrap()
}

fn tensors(outputs: Vec<Output>) -> Vec<Tensor> {
    let tensor = |output| match output {
        Output::Tensor(tensor) => tensor,
        other => panic!("{other:?}"),
    };
    outputs.into_iter().map(tensor).collect()
}

fn draw(shape: &[i64], seed: u64) -> Tensor {
    noise::randn(shape, seed, Kind::Float, Device::Cpu).unwrap()
}

/// The schemas of `SCHEMAS` are texts of libtorch's file, from which it parses its own.
#[test]
fn the_schemas_are_those_of_libtorch() {
    let Some(file) = libtorch::loaded(libtorch::CPU_LIBRARY) else {
        println!("skipped: the file of libtorch is known on Linux only");
        return;
    };
    let bytes = std::fs::read(Path::new(&file)).unwrap();
    let mut wanted: Vec<String> = SCHEMAS
        .iter()
        .map(|schema| schema.replace("aten::", "").replace("dropout_p=0.,", "dropout_p=0.0,"))
        .collect();
    // The texts are surrounded by zero bytes.
    for text in bytes.split(|byte| *byte == 0) {
        wanted.retain(|schema| schema.as_bytes() != text);
    }
    assert_eq!(wanted, Vec::<String>::new());
}

#[test]
fn optional_numbers_and_defaults_are_those_of_tch() {
    let x = Tensor::from_slice(&[1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY]);
    let call = |arguments: &[(&str, Argument<'_>)]| tensors(operator("nan_to_num").call(arguments).unwrap()).remove(0);
    let all = call(&[
        ("neginf", Float(-0.125)),
        ("self", Of(&x)),
        ("nan", Float(1e-300)),
        ("posinf", Float(2.5)),
    ]);
    assert!(all.equal(&Tensor::from_slice(&[1.0, 1e-300, 2.5, -0.125])));
    let one = call(&[("self", Of(&x)), ("posinf", Float(3.0)), ("nan", Argument::None)]);
    assert!(one.equal(&x.nan_to_num(None, Some(3.0), None)));
    let x = draw(&[3, 4], 0);
    let argmax = |arguments: &[(&str, Argument<'_>)]| tensors(operator("argmax").call(arguments).unwrap()).remove(0);
    assert!(argmax(&[("self", Of(&x))]).equal(&x.argmax(None, false)));
    let kept = argmax(&[("self", Of(&x)), ("dim", Int(-1)), ("keepdim", Bool(true))]);
    assert!(kept.equal(&x.argmax(-1, true)) && kept.size() == [3, 1]);
}

#[test]
fn optional_tensors_and_several_results_are_those_of_tch() {
    let (x, low) = (draw(&[5, 7], 0), draw(&[7], 1));
    let clamped = operator("clamp.Tensor").call(&[("self", Of(&x)), ("min", Of(&low))]);
    assert!(tensors(clamped.unwrap())[0].equal(&x.clamp_tensor(Some(&low), None::<&Tensor>)));
    let most = tensors(operator("max.dim").call(&[("self", Of(&x)), ("dim", Int(1))]).unwrap());
    let (values, indices) = x.max_dim(1, false);
    assert!(most[0].equal(&values) && most[1].equal(&indices) && most.len() == 2);
    let moments = tensors(
        operator("var_mean")
            .call(&[("self", Of(&x)), ("unbiased", Bool(false))])
            .unwrap(),
    );
    let (variance, mean) = x.var_mean(false);
    assert!(moments[0].equal(&variance) && moments[1].equal(&mean));
    let (images, weight, bias) = (draw(&[2, 3, 4, 4], 2), draw(&[3], 3), draw(&[3], 4));
    let arguments = [
        ("input", Of(&images)),
        ("weight", Of(&weight)),
        ("bias", Of(&bias)),
        ("running_mean", Argument::None),
        ("running_var", Argument::None),
        ("training", Bool(true)),
        ("momentum", Float(0.1)),
        ("eps", Float(1e-3)),
    ];
    let normed = tensors(operator("native_batch_norm").call(&arguments).unwrap());
    let (expected, mean, inverse) = Tensor::native_batch_norm(
        &images,
        Some(&weight),
        Some(&bias),
        None::<&Tensor>,
        None::<&Tensor>,
        true,
        0.1,
        1e-3,
    );
    assert!(normed[0].equal(&expected) && normed[1].equal(&mean) && normed[2].equal(&inverse));
}

#[test]
fn attention_is_that_of_tch_with_each_optional_argument() {
    let [q, k, v] = [0, 1, 2].map(|seed| draw(&[2, 3, 8, 16], seed));
    let mask = draw(&[8, 8], 3);
    for (scale, mask, causal) in [(None, None, true), (Some(0.3), Some(&mask), false)] {
        let arguments = [
            ("query", Of(&q)),
            ("key", Of(&k)),
            ("value", Of(&v)),
            ("is_causal", Bool(causal)),
            ("attn_mask", mask.map_or(Argument::None, Of)),
            ("scale", scale.map_or(Argument::None, Float)),
        ];
        let out = tensors(
            operator("_scaled_dot_product_flash_attention_for_cpu")
                .call(&arguments)
                .unwrap(),
        );
        let (expected, sums) =
            Tensor::internal_scaled_dot_product_flash_attention_for_cpu(&q, &k, &v, 0.0, causal, mask, scale);
        assert!(out[0].equal(&expected) && out[1].equal(&sums));
    }
}

#[test]
fn results_that_are_no_tensors_keep_their_values() {
    let x = draw(&[3, 70_000], 0);
    let size = operator("sym_size.int").call(&[("self", Of(&x)), ("dim", Int(-1))]);
    assert!(matches!(size.unwrap()[..], [Output::Int(70_000)]));
    for (other, expected) in [(&x, true), (&(&x + 1.0), false)] {
        let same = operator("equal")
            .call(&[("self", Of(&x)), ("other", Of(other))])
            .unwrap();
        assert!(matches!(same[..], [Output::Bool(same)] if same == expected));
    }
    let quantised = x.quantize_per_tensor(0.0625, 3, Kind::QInt8);
    let scale = operator("q_scale").call(&[("self", Of(&quantised))]).unwrap();
    assert!(matches!(scale[..], [Output::Float(scale)] if scale == 0.0625));
}

#[test]
fn gradients_are_recorded() {
    let (x, y) = (draw(&[4], 0).set_requires_grad(true), draw(&[4], 1));
    let product = operator("mul.Tensor").call(&[("self", Of(&x)), ("other", Of(&y))]);
    tensors(product.unwrap())[0].sum(Kind::Float).backward();
    assert!(x.grad().equal(&y));
}

#[test]
fn failures_of_libtorch_are_errors() {
    let (x, y) = (draw(&[2, 2], 0), draw(&[2, 2], 1).to_kind(Kind::Double));
    let error = operator("mm").call(&[("self", Of(&x)), ("mat2", Of(&y))]).unwrap_err();
    assert!(matches!(error, Error::Torch { .. }), "{error:?}");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(
        source,
        "`aten::mm` was refused; libtorch has written the cause to the program's standard error"
    );
    // SAFETY: libtorch has no operator of this name.
    #[allow(unsafe_code)]
    let absent = unsafe { Operator::new("kontext_absent::fwd(Tensor x) -> Tensor") }.unwrap();
    assert!(matches!(absent.call(&[("x", Of(&x))]), Err(Error::Torch { .. })));
}

#[test]
fn wrong_arguments_are_found_before_the_call() {
    let x = draw(&[2, 2], 0);
    let of = |arguments: &[(&str, Argument<'_>)]| operator("max.dim").call(arguments).unwrap_err();
    let missing: [(&str, Argument<'_>); 1] = [("self", Of(&x))];
    for (arguments, words) in [
        (&missing[..], "`dim` is missing"),
        (&[("self", Of(&x)), ("dim", Float(1.0))], "`dim` of another type"),
        (&[("self", Argument::None), ("dim", Int(1))], "`self` of another type"),
        (&[("self", Of(&x)), ("dims", Int(1))], "no parameter `dims`"),
        (&[("dim", Int(1)), ("self", Of(&x)), ("dim", Int(1))], "`dim` twice"),
    ] {
        let error = of(arguments);
        assert!(error.is_bug() && error.to_string().contains(words), "{error}");
    }
}
