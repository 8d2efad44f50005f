//! A dataset of edits with known results, and a network that compares images.

use image::{Rgb, RgbImage};
use kontext::crates::kontext_formats::save;
use kontext::{Device, Weights};
use kontext_bench::metrics::{Backbone, Features};
use serde_json::json;

use super::desk::Desk;

/// Writes a dataset, `data`, with four edits to train on and four held out; the second of each has no reference
/// image, the others one.
pub fn dataset(desk: &Desk) {
    let folder = desk.path("data");
    std::fs::create_dir(&folder).unwrap();
    let mut lines = String::new();
    for (offset, split) in [(0_u32, "test"), (4, "train")] {
        for number in offset..offset + 4 {
            let image = |level: u32| {
                RgbImage::from_fn(64, 64, |x, y| {
                    Rgb([(x * number * 3 % 200) as u8, (y * level % 90) as u8, (level * 40) as u8])
                })
            };
            image(1).save(folder.join(format!("{number}-a.png"))).unwrap();
            image(5).save(folder.join(format!("{number}-b.png"))).unwrap();
            let source = if number == offset + 1 {
                json!([])
            } else {
                json!([format!("{number}-a.png")])
            };
            let line = json!({"source": source, "target": format!("{number}-b.png"), "instruction": "make it blue", "category": "c", "split": split});
            lines.push_str(&format!("{line}\n"));
        }
    }
    std::fs::write(folder.join("metadata.jsonl"), lines).unwrap();
}

/// Writes a random SqueezeNet, `net.safetensors`.
pub fn network(desk: &Desk) {
    let synthetic = Weights::synthetic(5);
    Features::new(Backbone::SqueezeNet11, &synthetic, Device::Cpu).unwrap();
    let tensor = |(name, shape): (String, Vec<i64>)| {
        let value = synthetic.tensor(&name, &shape).unwrap();
        (name, value)
    };
    let tensors: Vec<_> = synthetic.shapes().into_iter().map(tensor).collect();
    save(desk.path("net.safetensors"), &tensors, None).unwrap();
}
