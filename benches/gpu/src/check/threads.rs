//! One pipeline shared by many threads.

use kontext::image::RgbImage;
use kontext::{Kind, Pipeline};

use super::world::{World, edit};
use crate::row::Outcome;
use crate::suite::Case;

const RUNS: u64 = 10;

pub(super) fn cases(world: &World) -> Vec<Case<'_>> {
    vec![Case::new(
        "threads/ten parallel runs equal ten serial ones",
        move || parallel(world),
    )]
}

fn parallel(world: &World) -> anyhow::Result<Outcome> {
    let pipe = world.pipeline(Kind::BFloat16)?;
    let run = |pipe: &Pipeline, seed: u64| -> anyhow::Result<RgbImage> {
        Ok(pipe
            .run(&edit().seed(seed).true_cfg(2.0).negative_prompt("blurred"))?
            .image)
    };
    let serial = (0..RUNS)
        .map(|seed| run(&pipe, seed))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let parallel = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..RUNS)
            .map(|seed| {
                scope.spawn({
                    let pipe = &pipe;
                    move || run(pipe, seed)
                })
            })
            .collect();
        let joined = runs
            .into_iter()
            .map(|run| run.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked"))));
        joined.collect::<anyhow::Result<Vec<_>>>()
    })?;
    let mut outcome = Outcome::default();
    for (seed, (got, expected)) in parallel.iter().zip(&serial).enumerate() {
        outcome.holds(got == expected, || {
            format!("seed {seed} gives another image beside others")
        });
    }
    outcome.holds(serial.first() != serial.get(1), || {
        "all seeds give one image".to_owned()
    });
    Ok(outcome)
}
