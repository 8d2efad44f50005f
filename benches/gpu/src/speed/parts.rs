//! The parts of a model individually, and a whole run.

use std::rc::Rc;
use std::time::Instant;

use anyhow::bail;
use kontext::{Kind, Pipeline};

use super::shared::{Shared, WORKS, Work, edit};
use super::timing::{launches, marked, peak, timed};
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
    cases.extend(WORKS.map(|work| {
        case(shared, format!("{}/kontext", work.name), move |shared| {
            step(shared, work)
        })
    }));
    cases.push(case(shared, format!("{}/kontext, prepare", edit.name), move |shared| {
        prepare(shared, edit)
    }));
    cases.push(case(shared, "text encoders/kontext", texts));
    for (name, kind) in [("bf16", Kind::BFloat16), ("f32", Kind::Float)] {
        for (work, encode) in [("vae encode 1024", true), ("vae decode 1024", false)] {
            cases.push(case(shared, format!("{work}/kontext, {name}"), move |shared| {
                coded(shared, kind, encode)
            }));
        }
    }
    cases
}

pub(super) fn whole(shared: &Rc<Shared>) -> Vec<Case<'static>> {
    let [edit, ..] = WORKS;
    vec![case(
        shared,
        format!("{}/kontext, whole run", edit.name),
        move |shared| run(shared, edit),
    )]
}

pub(super) fn traced(shared: &Rc<Shared>) -> Vec<Case<'static>> {
    let kernel_case = |work: Work| {
        case(shared, format!("{}/kontext, kernels", work.name), move |shared| {
            kernels(shared, work)
        })
    };
    WORKS.map(kernel_case).into()
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

fn step(shared: &Shared, work: Work) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let (parts, entrance) = (shared.parts()?, shared.entrance(work)?);
    let run = entrance.prepare(&parts.dit)?;
    timed(shared.device, &mut outcome, || {
        Ok(parts.dit.forward(&run, 0, &entrance.target)?)
    })?;
    outcome.value("tokens", entrance.tokens());
    let velocity = parts.dit.forward(&run, 0, &entrance.target)?;
    kontext_core::check::finite(kontext_core::Stage::Forward, &velocity)?;
    Ok(outcome)
}

fn kernels(shared: &Shared, work: Work) -> anyhow::Result<Outcome> {
    if !shared.device.is_cuda() {
        return Ok(Outcome::skipped("kernels are counted on a CUDA device"));
    }
    let mut outcome = Outcome::default();
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

fn coded(shared: &Shared, kind: Kind, encode: bool) -> anyhow::Result<Outcome> {
    let kind = device::computed_in(shared.device, kind);
    let mut outcome = Outcome::default();
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

/// Times an edit as a user runs it: the total in seconds, and the steps by marks recorded at its events.
fn run(shared: &Shared, work: Work) -> anyhow::Result<Outcome> {
    let on = shared.device;
    let pipe = Pipeline::builder()
        .device(on)
        .dtype(shared.kind)
        .assemble(shared.take()?)?;
    let request = edit(shared.scale.side(work.side), shared.scale.steps);
    let mut outcome = Outcome::default();
    for seconds in ["first_s", "seconds"] {
        device::reset_peak(on)?;
        let begun = Instant::now();
        let (output, marks) = marked(on, &pipe, &request)?;
        device::synchronize(on)?;
        outcome.value(seconds, begun.elapsed().as_secs_f64());
        let Some(last) = marks.last() else {
            bail!("a run without steps")
        };
        outcome.value("ms", marks[0].until(last)? / (marks.len() - 1) as f64);
        outcome.value("steps", output.plan.schedule.steps());
        outcome.value("tokens", output.plan.tokens());
    }
    peak(on, &mut outcome)?;
    Ok(outcome)
}
