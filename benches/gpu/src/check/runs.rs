//! Whole runs compared with the CPU stage by stage: one case for each path through the pipeline.

use std::rc::Rc;
use std::sync::Arc;

use kontext::{CfgMode, Device, Kind, Pipeline, References, Request};

use super::distance::{Bounds, Trace};
use super::world::{KINDS, World, edit, image};
use crate::row::Outcome;
use crate::suite::Case;

/// Returns one request for each path through a run.
fn requests() -> Vec<(&'static str, Request)> {
    let two = || edit().reference(image(60, 120));
    vec![
        ("edit", edit()),
        (
            "generate",
            Request::generate("a lighthouse at dusk")
                .size(192, 128)
                .steps(3)
                .seed(4),
        ),
        ("true cfg", edit().true_cfg(2.5).negative_prompt("blurred")),
        (
            "true cfg batched",
            edit()
                .true_cfg(2.5)
                .negative_prompt("blurred")
                .cfg_mode(CfgMode::Batched),
        ),
        ("references offset", two().references(References::Offset)),
        ("references index", two().references(References::Index)),
        ("references stitched", two().references(References::Stitch)),
        ("img2img", edit().strength(0.6).steps(5)),
        ("batch", edit().batch(3)),
    ]
}

pub(super) fn cases(world: &World) -> Vec<Case<'_>> {
    let mut cases = Vec::new();
    for (prefix, kind) in KINDS {
        for (name, request) in requests() {
            let name = format!("{prefix}/{name}");
            cases.push(Case::new(name.clone(), move || {
                against_cpu(world, &name, kind, &request)
            }));
        }
        cases.push(Case::new(format!("{prefix}/session"), move || session(world, kind)));
    }
    cases
}

fn against_cpu(world: &World, name: &str, kind: Kind, request: &Request) -> anyhow::Result<Outcome> {
    let expected = on_cpu(world, name, kind, request)?;
    let mut outcome = Outcome::default();
    Trace::of(&world.pipeline(kind)?, request)?.compare(&expected, Bounds::of(kind), &mut outcome)?;
    Ok(outcome)
}

/// Returns the run on the CPU, with weights in `kind` but computed in f32: only the device's rounding
/// differs.
fn on_cpu(world: &World, name: &str, kind: Kind, request: &Request) -> anyhow::Result<Rc<Trace>> {
    world.expected(name, || {
        Trace::of(&World::builder(Device::Cpu, kind).load(world.model())?, request)
    })
}

/// Returns the edit of the plain model on the CPU, shared with the case `…/edit`.
pub(super) fn plain_edit(world: &World, kind: Kind) -> anyhow::Result<Rc<Trace>> {
    let prefix = KINDS
        .iter()
        .find(|(_, known)| *known == kind)
        .map_or("other", |(prefix, _)| prefix);
    on_cpu(world, &format!("{prefix}/edit"), kind, &edit())
}

/// Checks a session of three turns with an undo in between; the original pixels are restored where nothing
/// changed.
fn session(world: &World, kind: Kind) -> anyhow::Result<Outcome> {
    let expected = world.expected(&format!("session {kind:?}"), || {
        turns(World::builder(Device::Cpu, kind).load(world.model())?)
    })?;
    let mut outcome = Outcome::default();
    turns(world.pipeline(kind)?)?.compare(&expected, Bounds::of(kind), &mut outcome)?;
    Ok(outcome)
}

fn turns(pipe: Pipeline) -> anyhow::Result<Trace> {
    let mut session = Arc::new(pipe).session(image(96, 96));
    session.defaults = edit().max_area(96 * 96);
    session.defaults.images.clear();
    let mut trace = Trace::empty();
    for (turn, prompt) in ["make it winter", "give her a green scarf", "give her a red scarf"]
        .into_iter()
        .enumerate()
    {
        if turn == 2 {
            session.undo();
        }
        let latents = session.edit(prompt)?.latents.clone();
        let latents = latents.ok_or_else(|| anyhow::anyhow!("a turn without latents"))?;
        trace.add(
            format!("turn {}", turn + 1),
            &kontext_core::array::from_array(&latents.view())?,
        )?;
    }
    Ok(trace)
}
