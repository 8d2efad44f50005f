//! Fuzzing of recipes: each broken recipe is accepted or refused, in time, and for no more memory than its size
//! explains. See `kontext_fixtures::fuzz` for a long run.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use kontext_core::Error;
use kontext_fixtures::fuzz::{Counting, Draw, Taken, Target, change_bytes, change_json, long, short};
use kontext_train::Recipe;
use serde_json::Value;

#[global_allocator]
static COUNTING: Counting = Counting;

/// Recipes with every field, of both methods.
const SOUND: [&str; 3] = [
    "model = 'm'\nout = 'o'\nsteps = 10\n[data]\nfolder = 'd'\n",
    r"
model = 'm'
out = 'o'
steps = 1000
seed = 7
device = 'cpu'
clip = 1.0
ema = 0.99
recompute = true
[method]
kind = 'lora'
rank = 8
alpha = 4.0
dora = true
targets = ['double_blocks.*.*_attn.qkv', 'single_blocks.*.linear1']
[data]
folder = 'd'
cache = 'c'
batch = 4
accumulate = 2
sizes = [[64, 64], [96, 48]]
split = 'train'
validation = 'test'
validation_items = 8
weights = { local = 2.0, 'global/style' = 0.5 }
[objective]
density = { kind = 'logit-normal', mean = 0.5, std = 1.0 }
resolution_shift = true
stratified = false
weighting = 'cosmap'
guidance = 2.5
drop_prompt = 0.1
drop_context = 0.1
[optimizer]
beta1 = 0.9
beta2 = 0.99
eps = 1e-8
weight_decay = 0.01
[rate]
peak = 1e-3
warmup = 10
floor = 0.1
[every]
save = 100
validate = 50
sample = 0
",
    "\
model = 'm'
out = 'o'
steps = 1000
[data]
folder = 'd'
[objective]
kind = 'adversarial'
levels = [1.0, 0.5]
shares = [0.5, 0.5]
warmup_shares = [0.0, 1.0]
warmup = 10
critic_density = { kind = 'logit-normal', mean = -2.0, std = 1.0 }
blocks = [0, 2]
pairing = 'hinge'
real = { kind = 'teacher', guidance = 2.5, steps = 4 }
mse_weight = 0.2
student_every = 2
",
];

/// The recipes.
struct Recipes {
    seeds: Vec<Value>,
}

impl Recipes {
    fn new() -> Self {
        let value = |text: &str| serde_json::to_value(toml::from_str::<toml::Value>(text).unwrap()).unwrap();
        Self {
            seeds: SOUND.map(value).to_vec(),
        }
    }
}

impl Target for Recipes {
    fn sound(&self) -> Vec<Vec<u8>> {
        SOUND.map(|text| text.as_bytes().to_vec()).to_vec()
    }

    fn file(&self, draw: &mut Draw) -> Vec<u8> {
        let mut json = draw.pick(&self.seeds).clone();
        let (fields, bytes) = *draw.pick(&[(1, 0), (1, 0), (2, 0), (4, 0), (0, 1), (0, 3), (1, 1)]);
        (0..fields).for_each(|_| change_json(&mut json, draw));
        // TOML has no null and no numbers above i64.
        let text = toml::to_string(&json).unwrap_or_else(|_| (*draw.pick::<&str>(&SOUND)).to_owned());
        let mut file = text.into_bytes();
        (0..bytes).for_each(|_| change_bytes(&mut file, draw));
        file
    }

    fn allowed(&self, size: u64) -> u64 {
        200 * size + 100_000
    }

    fn explore(&self, path: &Path, _: u64) -> Taken {
        let mut taken = Taken::default();
        taken.phase("opening", || match Recipe::open(path) {
            Ok(recipe) => {
                recipe.validate().unwrap();
                let text = recipe.to_toml().unwrap();
                assert_eq!(toml::from_str::<Recipe>(&text).unwrap(), recipe);
                Some(())
            }
            Err(Error::Checkpoint { .. } | Error::InvalidArgument { .. }) => None,
            Err(error) => panic!("not an error of the recipe: {error:?}"),
        });
        taken
    }
}

#[test]
fn broken_recipes_are_accepted_or_refused_in_time_and_memory() {
    short(&Recipes::new(), env!("CARGO_TARGET_TMPDIR"), 1000);
}

#[test]
#[ignore = "it runs for half an hour: see kontext_fixtures::fuzz"]
fn broken_recipes_without_end_are_accepted_or_refused_in_time_and_memory() {
    long(&Recipes::new(), env!("CARGO_TARGET_TMPDIR"));
}
