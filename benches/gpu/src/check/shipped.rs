//! The small emoji model: the same image on every device.

use kontext::image::RgbImage;
use kontext::{Device, Kind, Pipeline, Request};
use kontext_bench::metrics::psnr;

use super::world::World;
use crate::row::Outcome;
use crate::suite::Case;

const PROMPT: &str = "turn him into a cook";
const SEED: u64 = 1;
/// Minimum PSNR in dB of an image against the CPU's; the error is then below half a level of 255 on average.
const NEAR: f64 = 45.0;

pub(super) fn cases(world: &World) -> Vec<Case<'_>> {
    let case = |name: &'static str, kind| Case::new(format!("shipped model/{name}"), move || edited(world, name, kind));
    vec![case("f32", Kind::Float), case("bf16", Kind::BFloat16)]
}

fn edited(world: &World, name: &str, kind: Kind) -> anyhow::Result<Outcome> {
    if !world.shipped.is_dir() {
        return Ok(Outcome::skipped(format!(
            "{} is not there; name the model's folder by --model",
            world.shipped.display()
        )));
    }
    let source = kontext::open_image(world.inputs.join("emoji-source.png"))?;
    let on = |device: Device, kind: Kind| -> anyhow::Result<RgbImage> {
        let pipe = Pipeline::builder().device(device).dtype(kind).load(&world.shipped)?;
        Ok(pipe.run(&Request::edit(&source, PROMPT).seed(SEED))?.image)
    };
    let (got, expected) = (on(world.device, kind)?, on(Device::Cpu, Kind::Float)?);
    let mut outcome = Outcome::default();
    outcome.at_least("PSNR dB", psnr(&got, &expected)?, NEAR);
    // A model that ignored its prompt would be close, too.
    outcome.at_least("changed, dB below the source", 40.0 - psnr(&got, &source)?, 0.0);
    if let Some(out) = &world.out {
        kontext::io::save_image(
            &strip(&[&source, &expected, &got]),
            out.join(format!("shipped-{name}.png")),
            &[],
        )?;
    }
    Ok(outcome)
}

/// Concatenates images of one height horizontally: the source, the CPU's, the device's.
fn strip(images: &[&RgbImage]) -> RgbImage {
    let width = images.iter().map(|image| image.width()).sum();
    let height = images.iter().map(|image| image.height()).max().unwrap_or(0);
    let (mut strip, mut x) = (RgbImage::new(width, height), 0);
    for image in images {
        kontext::image::imageops::replace(&mut strip, *image, x, 0);
        x += i64::from(image.width());
    }
    strip
}
