//! Weights in every stored form: the device must dequantise them to the same values as the program that
//! defines the form.

use std::path::Path;

use anyhow::{Context, bail};
use kontext::{Device, Kind, Quantize, Tensor, Weights, quantize};
use kontext_core::check::relative_l2;
use kontext_core::noise;
use kontext_nn::Linear;
use safetensors::{SafeTensors, tensor::TensorView};

use super::distance::{Bounds, Trace};
use super::runs;
use super::world::{World, edit};
use crate::device::computed_in;
use crate::row::Outcome;
use crate::suite::Case;

/// Bound for int8: bitsandbytes multiplies by a row's absmax and then by 1/127, while here their product is a
/// single scale; each side rounds twice.
const INT8: f64 = 2.384_185_791_015_625e-7;

/// A linear layer as another program stored it (`tests/reference/parts/forms.py`).
struct Form {
    /// Program or format and its setting: "gguf.Q4_K", "bnb.nf4-double".
    name: String,
    /// Contents of the whole file.
    file: Vec<u8>,
    /// Weight as read by that program, f32 [out, in].
    weight: Tensor,
}

pub(super) fn cases(world: &World) -> Vec<Case<'_>> {
    let mut cases: Vec<Case<'_>> = Vec::new();
    match forms(world).with_context(|| world.inputs.join("forms.safetensors").display().to_string()) {
        Ok(forms) => cases.extend(
            forms
                .into_iter()
                .map(|form| Case::new(format!("stored form/{}", form.name), move || layer(world, &form))),
        ),
        // The other cases do not need the file.
        Err(error) => cases.push(Case::new("stored form", move || bail!("{error:#}"))),
    }
    for to in Quantize::ALL {
        cases.push(Case::new(format!("packed model/{to}"), move || {
            packed(world, to, Kind::Float)
        }));
    }
    for to in [Quantize::Q4_0, Quantize::Fp8] {
        cases.push(Case::new(format!("packed model/{to}, bf16"), move || {
            packed(world, to, Kind::BFloat16)
        }));
    }
    for (name, kind) in [("bf16", Kind::BFloat16), ("f16", Kind::Half)] {
        cases.push(Case::new(format!("plain model/{name}"), move || plain(world, kind)));
    }
    cases
}

fn forms(world: &World) -> anyhow::Result<Vec<Form>> {
    let bytes = std::fs::read(world.inputs.join("forms.safetensors"))?;
    let fixture = SafeTensors::deserialize(&bytes)?;
    let form = |(key, view): (String, TensorView<'_>)| {
        let name = key.strip_suffix(".file")?.to_owned();
        let weight = fixture.tensor(&format!("{name}.weight")).ok()?;
        let values: Vec<f32> = weight
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        let shape = [weight.shape()[0] as i64, weight.shape()[1] as i64];
        Some(Form {
            name,
            file: view.data().to_vec(),
            weight: Tensor::from_slice(&values).reshape(shape),
        })
    };
    let mut forms: Vec<Form> = fixture.tensors().into_iter().filter_map(form).collect();
    forms.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(forms)
}

/// Checks a layer by its product with the identity, which is its weight: sums of one product and zeros are
/// exact.
fn layer(world: &World, form: &Form) -> anyhow::Result<Outcome> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("model.weights");
    std::fs::write(&path, &form.file)?;
    let name = if form.name.starts_with("float8") {
        "double_blocks.0.img_attn.proj"
    } else {
        "layer"
    };
    let (output, input) = form.weight.size2()?;
    let linear = |device: Device, kind: Kind| -> anyhow::Result<Linear> {
        let weights = Weights::open(&path)?.at_most(kind).device(device).at(name);
        Ok(Linear::without_bias(&weights, input, output)?)
    };
    let mut outcome = Outcome::default();
    let identity = Tensor::f_eye(input, (Kind::Float, world.device))?;
    let got = linear(world.device, Kind::Float)?
        .forward(&identity)?
        .f_transpose(0, 1)?
        .f_to_device(Device::Cpu)?;
    if form.name == "bnb.int8" {
        outcome.at_most("relative L2", relative_l2(&got, &form.weight)?, INT8);
    } else {
        outcome.holds(got.f_equal(&form.weight)?, || {
            "other values than the form's own program reads".to_owned()
        });
        outcome.value("relative L2", relative_l2(&got, &form.weight)?);
    }
    let x = noise::randn(&[3, input], 1, Kind::Float, Device::Cpu)?;
    let expected = x.f_matmul(&form.weight.f_transpose(0, 1)?)?;
    for (what, kind) in [("f32", Kind::Float), ("bf16", Kind::BFloat16)] {
        let kind = computed_in(world.device, kind);
        let y = linear(world.device, kind)?.forward(&x.f_to_device(world.device)?.f_to_kind(kind)?)?;
        let y = y.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
        outcome.at_most(
            format!("product in {what}, relative L2"),
            relative_l2(&y, &expected)?,
            Bounds::of(kind).stage,
        );
    }
    Ok(outcome)
}

/// Checks a whole run with the transformer's blocks and T5 quantised at load.
fn packed(world: &World, to: Quantize, kind: Kind) -> anyhow::Result<Outcome> {
    let run = |device: Device| -> anyhow::Result<Trace> {
        Trace::of(
            &World::builder(device, kind)
                .quantize(to)
                .quantize_t5(to)
                .load(world.model())?,
            &edit(),
        )
    };
    let mut outcome = Outcome::default();
    let expected = world.expected(&format!("packed {to} {kind:?}"), || run(Device::Cpu))?;
    run(world.device)?.compare(&expected, Bounds::of(kind), &mut outcome)?;
    // A changed result shows that the quantisation took place.
    let changes = expected.differs(&*runs::plain_edit(world, kind)?)?;
    outcome.holds(changes, || "the packed model's run is that of the plain one".to_owned());
    Ok(outcome)
}

/// Checks a whole run of a model with files in bf16 or f16, computed in that dtype.
fn plain(world: &World, kind: Kind) -> anyhow::Result<Outcome> {
    let folder = world.stored_in(kind)?;
    let run = |device: Device| Trace::of(&World::builder(device, kind).load(&folder)?, &edit());
    let mut outcome = Outcome::default();
    run(world.device)?.compare(&run(Device::Cpu)?, Bounds::of(kind), &mut outcome)?;
    Ok(outcome)
}

/// Writes the quantised transformer to a file.
pub(super) fn packed_file(world: &World, to: Quantize, out: &Path) -> anyhow::Result<()> {
    Ok(quantize::transformer(
        &kontext::Checkpoint::find(world.model())?,
        to,
        out,
    )?)
}
