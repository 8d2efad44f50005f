//! Feature distances against those of the lpips package.
//!
//! Fixture: `tests/reference/parts/metrics.py`, with synthetic weights. Networks compute in f32; another
//! order of sums over up to 4608 products changes a distance in its sixth digit.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod fixture;

use std::path::{Path, PathBuf};

use fixture::{WEIGHTS_SEED, drawn, pairs, values};
use image::RgbImage;
use kontext_bench::metrics::{Backbone, Embedder, Features, Perceptual, identity};
use kontext_core::{Device, Kind, Tensor, array};
use kontext_nn::Weights;

const BOUND: f64 = 1e-5;
const BACKBONES: [Backbone; 3] = [Backbone::AlexNet, Backbone::Vgg16, Backbone::SqueezeNet11];

fn features(backbone: Backbone) -> Features {
    Features::new(backbone, &Weights::synthetic(WEIGHTS_SEED), Device::Cpu).unwrap()
}

/// Returns the generator's heads, by the names of the lpips package.
fn heads(backbone: Backbone) -> Vec<(String, Tensor)> {
    let synthetic = Weights::synthetic(0);
    let head = |(n, channels): (usize, &i64)| {
        let name = format!("lin{n}.model.1.weight");
        let head = synthetic.tensor(&name, &[1, *channels, 1, 1]).unwrap().abs();
        (name, head)
    };
    backbone.channels().iter().enumerate().map(head).collect()
}

/// Returns all tensors of a network by torchvision's names, as in a file.
fn network(backbone: Backbone) -> Vec<(String, Tensor)> {
    let synthetic = Weights::synthetic(WEIGHTS_SEED);
    Features::new(backbone, &synthetic, Device::Cpu).unwrap();
    let tensor = |(name, shape): (String, Vec<i64>)| {
        let value = synthetic.tensor(&name, &shape).unwrap();
        (name, value)
    };
    synthetic.shapes().into_iter().map(tensor).collect()
}

/// Returns distances of the fixture of `tests/reference/parts/pdist.py`.
fn pdist(name: &str) -> Vec<f32> {
    let file = Weights::open(kontext_fixtures::reference("pdist.safetensors")).unwrap();
    array::to_vec(&file.raw(name).unwrap()).unwrap()
}

fn close(what: &str, ours: &[f64], expected: &[f32]) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    for (ours, expected) in ours.iter().zip(expected) {
        let expected = f64::from(*expected);
        assert!(
            (ours - expected).abs() < BOUND * expected.abs().max(0.01),
            "{what}: {ours}, expected {expected}"
        );
    }
}

fn distances(perceptual: &Perceptual) -> Vec<f64> {
    let pairs = pairs();
    let pairs: Vec<(&RgbImage, &RgbImage)> = pairs.iter().map(|(a, b)| (a, b)).collect();
    perceptual.distance(&pairs).unwrap()
}

#[test]
fn unweighted_distances_equal_those_of_lpips_with_all_three_networks() {
    for backbone in BACKBONES {
        let perceptual = Perceptual::new(features(backbone), None).unwrap();
        assert_eq!(perceptual.name(), format!("pdist-{backbone}"));
        close(
            perceptual.name(),
            &distances(&perceptual),
            &values(&format!("{backbone}.pdist")),
        );
    }
}

#[test]
fn distances_by_cosines_equal_those_of_latent_diffusion_with_weights_in_f32_and_f16() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vgg16.safetensors");
    for (kind, name) in [(Kind::Float, "vgg16.cosine"), (Kind::Half, "vgg16.cosine_f16")] {
        let tensors = network(Backbone::Vgg16).into_iter();
        let tensors: Vec<_> = tensors.map(|(name, tensor)| (name, tensor.to_kind(kind))).collect();
        kontext_formats::save(&file, &tensors, None).unwrap();
        let perceptual = Perceptual::cosine(Features::open(&file, Device::Cpu).unwrap());
        assert_eq!(perceptual.name(), "cosine-vgg16");
        close(name, &distances(&perceptual), &pdist(name));
    }
    // The f16 weights are other weights.
    assert_ne!(pdist("vgg16.cosine"), pdist("vgg16.cosine_f16"));
}

/// The bound is the rounding of the cosines in f32, about 1e-7 of 1 in each of up to seven layers.
#[test]
fn squared_differences_of_unit_vectors_are_twice_the_distance_by_cosines() {
    for backbone in BACKBONES {
        let squares = distances(&Perceptual::new(features(backbone), None).unwrap());
        let cosines = distances(&Perceptual::cosine(features(backbone)));
        for (squares, cosine) in squares.iter().zip(cosines) {
            assert!((squares - 2.0 * cosine).abs() < 2e-6, "{backbone}: {squares}, {cosine}");
        }
    }
    let expected = pdist("vgg16.squares");
    close(
        "squares",
        &distances(&Perceptual::new(features(Backbone::Vgg16), None).unwrap()),
        &expected,
    );
}

#[test]
fn weighted_distances_equal_those_of_lpips_with_all_three_networks() {
    for backbone in BACKBONES {
        let heads = Weights::from_tensors(heads(backbone));
        let perceptual = Perceptual::new(features(backbone), Some(&heads)).unwrap();
        assert_eq!(perceptual.name(), format!("lpips-{backbone}"));
        close(
            perceptual.name(),
            &distances(&perceptual),
            &values(&format!("{backbone}.lpips")),
        );
    }
}

#[test]
fn pooled_features_are_those_of_the_last_layer() {
    for backbone in BACKBONES {
        let embedded = features(backbone).embed(&[&pairs()[0].0]).unwrap();
        let first: Vec<f64> = embedded[0].iter().take(64).map(|value| f64::from(*value)).collect();
        assert_eq!(embedded[0].len() as i64, *backbone.channels().last().unwrap());
        close("pooled", &first, &values(&format!("{backbone}.pooled")));
    }
}

#[test]
fn a_file_tells_its_network_by_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let (file, heads_file) = (
        folder.path().join("network.safetensors"),
        folder.path().join("heads.safetensors"),
    );
    for backbone in [Backbone::AlexNet, Backbone::SqueezeNet11] {
        let mut tensors = network(backbone);
        tensors.push((
            "classifier.1.weight".to_owned(),
            Tensor::zeros([2, 2], (Kind::Float, Device::Cpu)),
        ));
        kontext_formats::save(&file, &tensors, None).unwrap();
        let perceptual = Perceptual::open(&file, None, Device::Cpu).unwrap();
        assert_eq!(perceptual.features().backbone(), backbone);
        close("file", &distances(&perceptual), &values(&format!("{backbone}.pdist")));

        // State of the lpips package's model: one file for both, with each head named twice.
        let mut whole: Vec<(String, Tensor)> = tensors
            .iter()
            .filter_map(|(name, value)| Some((format!("net.slice1.{}", name.strip_prefix("features.")?), value.copy())))
            .collect();
        for (n, (name, head)) in heads(backbone).into_iter().enumerate() {
            whole.push((format!("lins.{n}.model.1.weight"), head.copy()));
            whole.push((name, head));
        }
        whole.push((
            "scaling_layer.shift".to_owned(),
            Tensor::zeros([1, 3, 1, 1], (Kind::Float, Device::Cpu)),
        ));
        kontext_formats::save(&heads_file, &whole, None).unwrap();
        let perceptual = Perceptual::open(&heads_file, Some(&heads_file), Device::Cpu).unwrap();
        assert_eq!(perceptual.name(), format!("lpips-{backbone}"));
        close(
            "whole model",
            &distances(&perceptual),
            &values(&format!("{backbone}.lpips")),
        );
    }
}

#[test]
fn what_is_no_such_network_is_refused_with_what_is_expected() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("other.safetensors");
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let message = |tensors: &[(String, Tensor)]| {
        kontext_formats::save(&file, tensors, None).unwrap();
        let error = Perceptual::open(&file, None, Device::Cpu).unwrap_err();
        std::error::Error::source(&error).unwrap().to_string()
    };
    let other = message(&[("conv1.weight".to_owned(), zeros(&[4, 3, 3, 3]))]);
    assert!(other.contains("none of AlexNet, VGG16 and SqueezeNet 1.1"), "{other}");

    let mut tensors = network(Backbone::AlexNet);
    tensors.push(("features.20.weight".to_owned(), zeros(&[1])));
    assert!(message(&tensors).contains("`features.20.weight`"));
    tensors.retain(|(name, _)| name != "features.8.bias");
    assert!(message(&tensors).contains("no tensor `features.8.bias`"));

    let heads = Weights::from_tensors(heads(Backbone::Vgg16));
    let error = Perceptual::new(features(Backbone::AlexNet), Some(&heads)).unwrap_err();
    assert!(
        std::error::Error::source(&error)
            .unwrap()
            .to_string()
            .contains("`lin1.model.1.weight` has shape")
    );
}

#[test]
fn batches_of_several_sizes_give_the_numbers_of_single_pairs() {
    let perceptual = Perceptual::new(features(Backbone::SqueezeNet11), None).unwrap();
    let sizes = [(72, 56), (72, 56), (40, 64), (72, 56)];
    let images: Vec<RgbImage> = sizes
        .iter()
        .enumerate()
        .map(|(n, size)| drawn(&format!("size{n}"), *size, 0.0))
        .collect();
    let noisy: Vec<RgbImage> = sizes
        .iter()
        .enumerate()
        .map(|(n, size)| drawn(&format!("size{n}"), *size, 20.0))
        .collect();
    let pairs: Vec<(&RgbImage, &RgbImage)> = images.iter().zip(&noisy).collect();
    let together = perceptual.distance(&pairs).unwrap();
    for (pair, together) in pairs.iter().zip(together) {
        let alone = perceptual.distance(&[*pair]).unwrap()[0];
        assert!(
            (alone - together).abs() < 1e-6 * alone && alone > 0.01,
            "{alone} {together}"
        );
    }
    assert_eq!(perceptual.distance(&[(pairs[0].0, pairs[0].0)]).unwrap(), [0.0]);
    assert!(perceptual.distance(&[]).unwrap().is_empty());
}

#[test]
fn one_subject_is_nearer_to_itself_than_to_another() {
    let features = features(Backbone::AlexNet);
    let (a, noisy, other) = (
        drawn("pair0", (72, 56), 0.0),
        drawn("pair0", (72, 56), 8.0),
        drawn("pair1", (64, 64), 0.0),
    );
    let cosines = identity(&features, &[(&a, &noisy), (&a, &other)]).unwrap();
    let [same, different] = [cosines[0].unwrap(), cosines[1].unwrap()];
    assert!(same > different && same > 0.9, "{same} {different}");
    assert_eq!(features.name(), "pooled-alexnet");
}

#[test]
fn images_that_the_network_cannot_see_are_refused() {
    for backbone in BACKBONES {
        let perceptual = Perceptual::new(features(backbone), None).unwrap();
        let least = backbone.least_side() as u32;
        let (least, small) = (RgbImage::new(least, least), RgbImage::new(least, least - 1));
        assert!(perceptual.distance(&[(&least, &least)]).is_ok(), "{backbone}");
        let error = perceptual.distance(&[(&small, &small)]).unwrap_err().to_string();
        assert!(error.starts_with("invalid images: expected at least"), "{error}");
        assert!(
            perceptual
                .distance(&[(&least, &small)])
                .unwrap_err()
                .to_string()
                .contains("two of one size")
        );
    }
}

/// Runs only if the published weights are present.
#[test]
fn caffes_squeezenet_takes_caffes_colours() {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../shared/assets/networks/squeezenet_v1.1_caffe_oihw_f32.safetensors"
    );
    let file = PathBuf::from(file);
    if !Path::is_file(&file) {
        eprintln!("skipped: there is no {}", file.display());
        return;
    }
    let perceptual = Perceptual::open(&file, None, Device::Cpu).unwrap();
    assert_eq!(perceptual.name(), "pdist-squeezenet1.1-caffe");
    assert_eq!(perceptual.features().name(), "pooled-squeezenet1.1-caffe");
    close("caffe", &distances(&perceptual), &values("caffe.pdist"));
}
