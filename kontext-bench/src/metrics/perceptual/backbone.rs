//! The three networks for perceptual distances, as lists of layers.
//!
//! Source: torchvision 0.26 `torchvision/models/{alexnet,vgg,squeezenet}.py`, their `features`; compared
//! outputs: richzhang/PerceptualSimilarity (lpips 0.1.4) `lpips/pretrained_networks.py`.

use std::fmt;

/// An ImageNet classifier whose features are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backbone {
    /// AlexNet, five layers. The usual choice for reporting LPIPS.
    AlexNet,
    /// VGG with 16 layers, five of which are compared. The usual choice for training.
    Vgg16,
    /// SqueezeNet 1.1, seven layers.
    SqueezeNet11,
}

/// One step of a network. Indices are those of torchvision's `features`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    /// A convolution, then ReLU.
    Conv {
        index: u8,
        input: i64,
        output: i64,
        kernel: i64,
        stride: i64,
        padding: i64,
    },
    /// Max pooling over squares, with stride 2.
    Pool { kernel: i64, ceil: bool },
    /// SqueezeNet's module: a 1x1 convolution to `squeeze` channels, then 1x1 and 3x3 convolutions to
    /// `expand` channels each.
    Fire {
        index: u8,
        input: i64,
        squeeze: i64,
        expand: i64,
    },
    /// Comparison of the current features.
    Compare,
}

use Step::{Compare, Fire, Pool};

const fn conv(index: u8, input: i64, output: i64, kernel: i64) -> Step {
    Step::Conv {
        index,
        input,
        output,
        kernel,
        stride: 1,
        padding: kernel / 2,
    }
}

const HALVE: Step = Pool { kernel: 2, ceil: false };
const POOL: Step = Pool { kernel: 3, ceil: false };
const POOL_UP: Step = Pool { kernel: 3, ceil: true };

const ALEXNET: &[Step] = &[
    Step::Conv {
        index: 0,
        input: 3,
        output: 64,
        kernel: 11,
        stride: 4,
        padding: 2,
    },
    Compare,
    POOL,
    conv(3, 64, 192, 5),
    Compare,
    POOL,
    conv(6, 192, 384, 3),
    Compare,
    conv(8, 384, 256, 3),
    Compare,
    conv(10, 256, 256, 3),
    Compare,
];

const VGG16: &[Step] = &[
    conv(0, 3, 64, 3),
    conv(2, 64, 64, 3),
    Compare,
    HALVE,
    conv(5, 64, 128, 3),
    conv(7, 128, 128, 3),
    Compare,
    HALVE,
    conv(10, 128, 256, 3),
    conv(12, 256, 256, 3),
    conv(14, 256, 256, 3),
    Compare,
    HALVE,
    conv(17, 256, 512, 3),
    conv(19, 512, 512, 3),
    conv(21, 512, 512, 3),
    Compare,
    HALVE,
    conv(24, 512, 512, 3),
    conv(26, 512, 512, 3),
    conv(28, 512, 512, 3),
    Compare,
];

const SQUEEZENET: &[Step] = &[
    Step::Conv {
        index: 0,
        input: 3,
        output: 64,
        kernel: 3,
        stride: 2,
        padding: 0,
    },
    Compare,
    POOL_UP,
    Fire {
        index: 3,
        input: 64,
        squeeze: 16,
        expand: 64,
    },
    Fire {
        index: 4,
        input: 128,
        squeeze: 16,
        expand: 64,
    },
    Compare,
    POOL_UP,
    Fire {
        index: 6,
        input: 128,
        squeeze: 32,
        expand: 128,
    },
    Fire {
        index: 7,
        input: 256,
        squeeze: 32,
        expand: 128,
    },
    Compare,
    POOL_UP,
    Fire {
        index: 9,
        input: 256,
        squeeze: 48,
        expand: 192,
    },
    Compare,
    Fire {
        index: 10,
        input: 384,
        squeeze: 48,
        expand: 192,
    },
    Compare,
    Fire {
        index: 11,
        input: 384,
        squeeze: 64,
        expand: 256,
    },
    Compare,
    Fire {
        index: 12,
        input: 512,
        squeeze: 64,
        expand: 256,
    },
    Compare,
];

impl Backbone {
    pub(super) fn steps(self) -> &'static [Step] {
        match self {
            Backbone::AlexNet => ALEXNET,
            Backbone::Vgg16 => VGG16,
            Backbone::SqueezeNet11 => SQUEEZENET,
        }
    }

    /// Returns the channels of the compared features, layer by layer.
    #[must_use]
    pub fn channels(self) -> &'static [i64] {
        match self {
            Backbone::AlexNet => &[64, 192, 384, 256, 256],
            Backbone::Vgg16 => &[64, 128, 256, 512, 512],
            Backbone::SqueezeNet11 => &[64, 128, 256, 384, 384, 512, 512],
        }
    }

    /// Returns the shortest side of an image, in pixels, for which the last layer still has an output.
    #[must_use]
    pub fn least_side(self) -> usize {
        match self {
            Backbone::AlexNet => 31,
            Backbone::Vgg16 => 16,
            Backbone::SqueezeNet11 => 17,
        }
    }
}

/// Formats the name in lower case, as in reports.
impl fmt::Display for Backbone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backbone::AlexNet => "alexnet",
            Backbone::Vgg16 => "vgg16",
            Backbone::SqueezeNet11 => "squeezenet1.1",
        })
    }
}
