//! The published tiny autoencoders, run through the table of autoencoders if their files are available.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // In helper functions of a test.

use std::path::PathBuf;

use kontext::crates::kontext_core::images::{Rounding, from_tensor, to_tensor};
use kontext::image::RgbImage;
use kontext::{Autoencoder, Device, Kind};
use kontext_bench::reconstruction::{Distances, ImageSize, Records, Subject, Table};

/// PSNR of diffusers' AutoencoderTiny in f32, in dB: file, then on astronaut and on coffee.
const REACHED: [(&str, f64, f64); 4] = [
    ("taef1", 27.46, 26.44),
    ("taesd3", 29.75, 27.52),
    ("taesd", 25.24, 24.88),
    ("taesdxl", 25.16, 24.66),
];

/// The values above have two decimals, and a level may round differently.
const TOLERANCE: f64 = 0.05;

/// Returns a file of the shared assets, which are not part of the repository.
fn asset(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(format!("{}/../shared/assets/{name}", env!("CARGO_MANIFEST_DIR")));
    if !path.is_file() {
        println!("skipped: there is no {}", path.display());
        return None;
    }
    Some(path)
}

fn reconstructed(vae: &Autoencoder, image: &RgbImage) -> RgbImage {
    let pixels = to_tensor(image, Kind::Float, Device::Cpu).unwrap();
    let decoded = vae.decode(&vae.encode_latents(&pixels).unwrap()).unwrap();
    from_tensor(&decoded, Rounding::Nearest).unwrap().remove(0)
}

#[test]
fn the_table_of_tiny_autoencoders_holds_the_psnr_that_they_reach_in_diffusers() {
    let folder = tempfile::tempdir().unwrap();
    let mut records = Records::open(folder.path().join("records.jsonl")).unwrap();
    for (name, astronaut, coffee) in REACHED {
        let Some(file) = asset(&format!("tiny-autoencoders/{name}_diffusers_layout_f16.safetensors")) else {
            return;
        };
        let vae = Autoencoder::open(file, Kind::Float, Device::Cpu).unwrap();
        let subject = Subject {
            vae: name,
            setting: "published",
            perceptual: None,
            cosine: None,
        };
        let mut measurements = Vec::new();
        for (photo, expected) in [("astronaut", astronaut), ("coffee", coffee)] {
            let Some(photo_file) = asset(&format!("photos/skimage_{photo}.png")) else {
                return;
            };
            let original = ImageSize::Original
                .prepare(&kontext::open_image(photo_file).unwrap())
                .unwrap();
            let back = reconstructed(&vae, &original);
            let measured = subject.measure(photo, &original, &back, &mut records).unwrap();
            let reached = measured.psnr;
            assert!(
                (reached - expected).abs() < TOLERANCE,
                "{name} on {photo}: {reached:.3} dB, expected {expected}"
            );
            measurements.push(measured);
        }
        let table = Table::of(&measurements, Distances::default()).unwrap();
        let mean = table.rows()[0].psnr.mean;
        assert!((mean - (astronaut + coffee) / 2.0).abs() < TOLERANCE, "{table}");
    }
}
