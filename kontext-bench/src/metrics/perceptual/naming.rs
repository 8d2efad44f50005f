//! Detection of a file's network and tensor names.

use kontext_core::{Error, Result};
use kontext_formats::TensorMap;
use kontext_nn::Weights;

use super::backbone::Backbone;

/// Naming convention of the tensors in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    /// `features.3.squeeze.weight`
    Torchvision,
    /// `net.slice2.3.squeeze.weight`: the number after the slice is torchvision's.
    Lpips,
    /// `fire2.squeeze1x1.weight`
    Caffe,
}

/// Caffe's numbers of SqueezeNet's modules, each with torchvision's.
const FIRES: [(&str, &str); 8] = [
    ("2", "3"),
    ("3", "4"),
    ("4", "6"),
    ("5", "7"),
    ("6", "9"),
    ("7", "10"),
    ("8", "11"),
    ("9", "12"),
];

/// Detects the network and the naming convention of a file.
pub(super) fn detect(weights: &Weights) -> Result<(Backbone, Naming)> {
    if weights.contains("conv1.weight") && weights.contains("fire2.squeeze1x1.weight") {
        return Ok((Backbone::SqueezeNet11, Naming::Caffe));
    }
    let namings = [Naming::Torchvision, Naming::Lpips];
    let known = |naming: Naming| {
        let weights = naming.apply(weights.clone());
        let first = weights.shape_of("features.0.weight")?;
        let has = |name| weights.contains(name);
        match first.as_slice() {
            [64, 3, 11, 11] => Some((Backbone::AlexNet, naming)),
            [64, 3, 3, 3] if has("features.3.squeeze.weight") => Some((Backbone::SqueezeNet11, naming)),
            // SqueezeNet 1.0 begins with 96 channels; VGG with 11 or 13 layers lacks the last of these.
            [64, 3, 3, 3] if has("features.2.weight") && has("features.28.weight") => Some((Backbone::Vgg16, naming)),
            _ => None,
        }
    };
    namings.into_iter().find_map(known).ok_or_else(|| unknown(weights))
}

fn unknown(weights: &Weights) -> Error {
    let reason = "it is none of AlexNet, VGG16 and SqueezeNet 1.1 in the names of torchvision (`features.0.weight`), \
                  lpips (`net.slice1.0.weight`) or Caffe (`fire2.squeeze1x1.weight`, SqueezeNet alone); \
                  save one of them as safetensors";
    Error::config(weights.path(), reason)
}

impl Naming {
    /// Maps the weights to torchvision's names.
    pub(super) fn apply(self, weights: Weights) -> Weights {
        match self {
            Naming::Torchvision => weights,
            Naming::Lpips => weights.renamed(|name| Some(from_lpips(name).unwrap_or_else(|| name.to_owned()))),
            Naming::Caffe => weights.named(to_caffe),
        }
    }
}

/// Maps `net.slice2.3.bias` to `features.3.bias`.
fn from_lpips(name: &str) -> Option<String> {
    let (_, layer) = name.strip_prefix("net.slice")?.split_once('.')?;
    Some(format!("features.{layer}"))
}

/// Maps `features.3.squeeze.bias` to `fire2.squeeze1x1.bias`.
fn to_caffe(name: &str) -> TensorMap {
    let translated = || {
        let rest = name.strip_prefix("features.")?;
        if let Some(first) = rest.strip_prefix("0.") {
            return Some(format!("conv1.{first}"));
        }
        let (index, rest) = rest.split_once('.')?;
        let (fire, _) = FIRES.iter().find(|(_, torchvision)| *torchvision == index)?;
        Some(format!("fire{fire}.{}", rest.replace("squeeze.", "squeeze1x1.")))
    };
    TensorMap::Name(translated().unwrap_or_else(|| name.to_owned()))
}

/// Returns `true` for tensors other than the features: the classifiers, and LPIPS's heads and colours.
pub(super) fn is_beside(name: &str) -> bool {
    const BESIDE: [&str; 5] = ["classifier.", "conv10.", "lin", "scaling_layer.", "avgpool."];
    BESIDE.iter().any(|beginning| name.starts_with(beginning))
}

/// Returns the possible names of a head: with and without dropout before it, as a list item or a field.
pub(super) fn head(layer: usize) -> [String; 4] {
    [
        format!("lin{layer}.model.1.weight"),
        format!("lins.{layer}.model.1.weight"),
        format!("lin{layer}.model.0.weight"),
        format!("lins.{layer}.model.0.weight"),
    ]
}

#[cfg(test)]
mod tests {
    use kontext_core::{Device, Kind, Tensor};

    use super::*;

    #[test]
    fn the_three_namings_mean_the_same_layers() {
        assert_eq!(
            from_lpips("net.slice4.9.squeeze.bias").as_deref(),
            Some("features.9.squeeze.bias")
        );
        assert_eq!(
            to_caffe("features.9.squeeze.bias"),
            TensorMap::Name("fire6.squeeze1x1.bias".to_owned())
        );
        assert_eq!(
            to_caffe("features.12.expand3x3.weight"),
            TensorMap::Name("fire9.expand3x3.weight".to_owned())
        );
        assert_eq!(
            to_caffe("features.0.weight"),
            TensorMap::Name("conv1.weight".to_owned())
        );
    }
    /// Creates tensors with these names, of which the first has the given shape.
    fn file(first: &str, shape: &[i64], others: &[&str]) -> Weights {
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        let others = others.iter().map(|name| ((*name).to_owned(), zeros(&[1])));
        Weights::from_tensors(others.chain([(first.to_owned(), zeros(shape))]))
    }

    #[test]
    fn networks_are_told_by_names_and_shapes() {
        let small = [64, 3, 3, 3];
        let vgg = ["features.2.weight", "features.28.weight"];
        let fire = ["features.3.squeeze.weight"];
        let caffe = file("conv1.weight", &small, &["fire2.squeeze1x1.weight"]);
        let lpips = file(
            "net.slice1.0.weight",
            &small,
            &["net.slice1.2.weight", "net.slice5.28.weight"],
        );
        for (weights, expected) in [
            (
                file("features.0.weight", &[64, 3, 11, 11], &[]),
                (Backbone::AlexNet, Naming::Torchvision),
            ),
            (
                file("features.0.weight", &small, &vgg),
                (Backbone::Vgg16, Naming::Torchvision),
            ),
            (
                file("features.0.weight", &small, &fire),
                (Backbone::SqueezeNet11, Naming::Torchvision),
            ),
            (lpips, (Backbone::Vgg16, Naming::Lpips)),
            (caffe, (Backbone::SqueezeNet11, Naming::Caffe)),
        ] {
            assert_eq!(detect(&weights).unwrap(), expected);
        }
        // VGG11, and SqueezeNet 1.0.
        assert!(detect(&file("features.0.weight", &small, &["features.3.weight"])).is_err());
        assert!(detect(&file("features.0.weight", &[96, 3, 7, 7], &fire)).is_err());
    }
}
