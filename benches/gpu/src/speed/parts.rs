//! The parts of a model individually.

use std::rc::Rc;

use kontext::Kind;

use super::shared::{NEW_SIZE, Shared, WORKS, Work};
use super::timing::{launches, peak, timed};
use crate::device;
use crate::row::Outcome;
use crate::suite::Case;

/// Time limit in seconds for building the model of the published size.
const MAKING: f64 = 20.0;

/// Builds a case that measures one aspect of the shared model.
fn case(
    shared: &Rc<Shared>,
    name: impl Into<String>,
    work: impl Fn(&Shared) -> anyhow::Result<Outcome> + 'static,
) -> Case<'static> {
    let shared = Rc::clone(shared);
    Case::new(name, move || work(&shared))
}

pub(super) fn cases(shared: &Rc<Shared>) -> Vec<Case<'static>> {
    let [edit, ..] = WORKS;
    let mut cases = vec![case(shared, "load/random model on the device", made)];
    for (own, kernels) in [("kontext", true), ("kontext, unfused", false)] {
        cases.extend(WORKS.map(|work| {
            case(shared, format!("{}/{own}", work.name), move |shared| {
                step(shared, work, kernels)
            })
        }));
    }
    cases.push(case(shared, format!("{}/kontext", NEW_SIZE.name), |shared| {
        step(shared, NEW_SIZE, true)
    }));
    cases.push(case(shared, format!("{}/kontext, prepare", edit.name), move |shared| {
        prepare(shared, edit)
    }));
    cases.push(case(shared, "text encoders/kontext", texts));
    for (name, kind, fused) in [
        ("bf16", Kind::BFloat16, true),
        ("bf16, unfused", Kind::BFloat16, false),
        ("f32", Kind::Float, false),
    ] {
        for (work, encode) in [("vae encode 1024", true), ("vae decode 1024", false)] {
            cases.push(case(shared, format!("{work}/kontext, {name}"), move |shared| {
                coded(shared, kind, fused, encode)
            }));
        }
    }
    cases
}

pub(super) fn traced(shared: &Rc<Shared>) -> Vec<Case<'static>> {
    let mut cases = Vec::new();
    for (own, fused) in [("kontext, kernels", true), ("kontext, kernels unfused", false)] {
        cases.extend(WORKS.map(|work| {
            case(shared, format!("{}/{own}", work.name), move |shared| {
                kernels(shared, work, fused)
            })
        }));
    }
    cases
}

fn made(shared: &Shared) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let seconds = shared.make()?;
    outcome.at_most("seconds", seconds, MAKING);
    outcome.value("parameters in the transformer, 1e9", parameters(shared)? as f64 / 1e9);
    peak(shared.device, &mut outcome)?;
    Ok(outcome)
}

fn parameters(shared: &Shared) -> anyhow::Result<i64> {
    let blank = kontext::Weights::blank();
    kontext::Dit::new(&blank, &shared.scale.sizes.dit, |_| ())?;
    Ok(blank.shapes().values().map(|shape| shape.iter().product::<i64>()).sum())
}

/// Times a step, with own kernels or without, and the peak of memory without the other parts.
fn step(shared: &Shared, work: Work, fused: bool) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    if let Some(seconds) = shared.use_kernels(fused)? {
        outcome.value("compile_s", seconds);
    } else if fused {
        outcome.note("computed in f32, for which there are no kernels");
    }
    let before = device::account(shared.device)?;
    let (parts, entrance) = (shared.parts()?, shared.entrance(work)?);
    let run = entrance.prepare(&parts.dit)?;
    timed(shared.device, &mut outcome, || {
        Ok(parts.dit.forward(&run, 0, &entrance.target)?)
    })?;
    outcome.value("tokens", entrance.tokens());
    if let (Some(before), Some(after)) = (before, device::account(shared.device)?) {
        let transformer = parameters(shared)? as u64 * shared.kind.elt_size_in_bytes() as u64;
        let others = before.allocated.saturating_sub(transformer);
        outcome.value("step_peak_gb", (after.peak - others) as f64 / 1e9);
    }
    let velocity = parts.dit.forward(&run, 0, &entrance.target)?;
    kontext_core::check::finite(kontext_core::Stage::Forward, &velocity)?;
    Ok(outcome)
}

fn kernels(shared: &Shared, work: Work, fused: bool) -> anyhow::Result<Outcome> {
    if !shared.device.is_cuda() {
        return Ok(Outcome::skipped("kernels are counted on a CUDA device"));
    }
    let mut outcome = Outcome::default();
    shared.use_kernels(fused)?;
    let (parts, entrance) = (shared.parts()?, shared.entrance(work)?);
    let run = entrance.prepare(&parts.dit)?;
    launches(shared.device, &mut outcome, || {
        Ok(parts.dit.forward(&run, 0, &entrance.target)?)
    })?;
    Ok(outcome)
}

/// Times the preparation that a run performs once for all steps.
fn prepare(shared: &Shared, work: Work) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    shared.use_kernels(true)?;
    let (parts, entrance) = (shared.parts()?, shared.entrance(work)?);
    timed(shared.device, &mut outcome, || entrance.prepare(&parts.dit))?;
    outcome.value("steps", shared.scale.steps);
    Ok(outcome)
}

fn texts(shared: &Shared) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let parts = shared.parts()?;
    timed(shared.device, &mut outcome, || {
        Ok(parts.text.encode("make it winter, with snow on the roofs")?)
    })?;
    outcome.value("tokens", parts.text.sequence_length());
    Ok(outcome)
}

/// Times the autoencoder, with own kernels or without.
fn coded(shared: &Shared, kind: Kind, fused: bool, encode: bool) -> anyhow::Result<Outcome> {
    let kind = device::computed_in(shared.device, kind);
    let mut outcome = Outcome::default();
    shared.use_kernels(fused)?;
    let parts = shared.parts()?;
    let side = i64::from(shared.scale.side(1024));
    if encode {
        let image = shared.draw(&[1, 3, side, side], 1)?.f_tanh()?.f_to_kind(kind)?;
        timed(shared.device, &mut outcome, || Ok(parts.vae.encode_latents(&image)?))?;
    } else {
        let down = parts.vae.downscale();
        let latents = shared
            .draw(&[1, parts.vae.latent_channels(), side / down, side / down], 2)?
            .f_to_kind(kind)?;
        timed(shared.device, &mut outcome, || Ok(parts.vae.decode(&latents)?))?;
    }
    outcome.value("computed in", format!("{kind:?}"));
    let (convolutions, products) = device::tf32()?;
    outcome.value("tf32 in convolutions", convolutions);
    outcome.value("tf32 in products", products);
    Ok(outcome)
}
