//! Placements: a part loaded on demand, or streamed through the prefetch ring, must compute the same bits as
//! a resident one.

use kontext::{Kind, PipelineBuilder, Placement, Quantize};

use super::distance::Trace;
use super::forms::packed_file;
use super::world::{KINDS, World, edit};
use crate::row::Outcome;
use crate::suite::Case;

/// Transformer files: the model's own, and quantised ones.
const FILES: [(&str, Option<(Quantize, &str)>); 3] = [
    ("", None),
    (" of Q4_0", Some((Quantize::Q4_0, "q4.gguf"))),
    (" of fp8", Some((Quantize::Fp8, "fp8.safetensors"))),
];

pub(super) fn cases(world: &World) -> Vec<Case<'_>> {
    let mut cases = Vec::new();
    for (prefix, kind) in KINDS {
        for (file, packed) in FILES {
            for placement in [Placement::Staged, Placement::Streamed] {
                let name = format!("placement/{placement}{file}, {prefix}");
                cases.push(Case::new(name, move || equal(world, kind, packed, placement)));
            }
        }
    }
    cases
}

fn equal(world: &World, kind: Kind, packed: Option<(Quantize, &str)>, placement: Placement) -> anyhow::Result<Outcome> {
    // Files in the run's dtype: on a CPU, offloaded weights of a wider file would not be rounded to it.
    let (folder, model) = (tempfile::tempdir()?, world.stored_in(kind)?);
    let builder = |placement: Placement| -> anyhow::Result<PipelineBuilder> {
        let builder = World::builder(world.device, kind).placement(placement);
        let Some((to, name)) = packed else { return Ok(builder) };
        let path = folder.path().join(name);
        if !path.exists() {
            packed_file(world, to, &path)?;
        }
        Ok(builder.transformer(path))
    };
    let resident = Trace::of(&builder(Placement::Resident)?.load(&model)?, &edit())?;
    let pipe = builder(placement)?.load(&model)?;
    let mut outcome = Outcome::default();
    Trace::of(&pipe, &edit())?.equal(&resident, &mut outcome);
    if world.device.is_cuda() && placement == Placement::Streamed {
        // If the ring fails, plain copies replace it and its thread ends.
        outcome.holds(has_thread("prefetch")?, || {
            "weights are not copied ahead: the ring has failed".to_owned()
        });
    }
    // The second run reuses buffers and caches of the first.
    Trace::of(&pipe, &edit())?.equal(&resident, &mut outcome);
    Ok(outcome)
}

/// Returns `true` if a thread of this process has this name.
fn has_thread(name: &str) -> anyhow::Result<bool> {
    for thread in std::fs::read_dir("/proc/self/task")? {
        // A thread that has just ended has no name.
        let own = std::fs::read_to_string(thread?.path().join("comm")).unwrap_or_default();
        if own.trim() == name {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_found_by_its_name_as_long_as_it_lives() {
        let (begin, begun) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        // A thread gets its name when it starts.
        let work = move || {
            let _ = begin.send(());
            let _ = ended.recv();
        };
        let thread = std::thread::Builder::new().name("to-be-found".to_owned()).spawn(work);
        begun.recv().expect("begun");
        assert!(has_thread("to-be-found").expect("told"));
        drop(end);
        let _ = thread.expect("started").join();
        // The system may take a moment to forget it.
        let gone = (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            !has_thread("to-be-found").expect("told")
        });
        assert!(gone);
    }
}
