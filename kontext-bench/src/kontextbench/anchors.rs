//! Published scores of FLUX.1 Kontext [dev], as anchors for a reader of a judge's scores.

/// A score of FLUX.1 Kontext \[dev\] that others have measured, with their judge and settings.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Anchor {
    /// The benchmark.
    pub benchmark: &'static str,
    /// Name of the score.
    pub measure: &'static str,
    /// The score over the whole benchmark.
    pub value: f64,
    /// Scores of its categories, in the order of the source; for KontextBench by [`CATEGORIES`](super::CATEGORIES).
    pub parts: &'static [(&'static str, f64)],
    /// The judge and the settings of the model, as far as the source names them.
    pub conditions: &'static str,
    /// The publication of the score.
    pub source: &'static str,
}

const REGION_E: &str = "RegionE, arXiv 2510.25590";
const REGION_E_CONDITIONS: &str = "judged by GPT-4o with GEdit's code; 28 steps, guidance 2.5, H800";
const UNNAMED: &str = "as in the source";
const GPT_IMAGE_EDIT: &str = "README of wyhlovecpp/GPT-Image-Edit";
const FIRE_RED: &str = "README of FireRed";

const fn anchor(benchmark: &'static str, measure: &'static str, value: f64, source: &'static str) -> Anchor {
    Anchor {
        benchmark,
        measure,
        value,
        parts: &[],
        conditions: UNNAMED,
        source,
    }
}

/// The measurements on KontextBench, with the categories of this crate: G-SC, G-PQ and G-O. The score over the whole
/// benchmark is the mean of the five categories, not of the pairs: (5.817 + 6.380 + 6.664 + 7.295 + 6.331) / 5 = 6.497.
pub const KONTEXT_BENCH_ANCHORS: [Anchor; 3] = [
    Anchor {
        parts: &[
            ("Character Reference", 7.549),
            ("Instruction Editing - Global", 7.023),
            ("Instruction Editing - Local", 6.779),
            ("Style Reference", 6.810),
            ("Text Editing", 7.826),
        ],
        conditions: REGION_E_CONDITIONS,
        ..anchor("KontextBench", "G-SC", 7.197, REGION_E)
    },
    Anchor {
        parts: &[
            ("Character Reference", 6.642),
            ("Instruction Editing - Global", 6.798),
            ("Instruction Editing - Local", 6.909),
            ("Style Reference", 6.556),
            ("Text Editing", 7.913),
        ],
        conditions: REGION_E_CONDITIONS,
        ..anchor("KontextBench", "G-PQ", 6.963, REGION_E)
    },
    Anchor {
        parts: &[
            ("Character Reference", 6.664),
            ("Instruction Editing - Global", 6.380),
            ("Instruction Editing - Local", 5.817),
            ("Style Reference", 6.331),
            ("Text Editing", 7.295),
        ],
        conditions: REGION_E_CONDITIONS,
        ..anchor("KontextBench", "G-O", 6.497, REGION_E)
    },
];

/// The measurements on other benchmarks. The two of ImgEdit are of the same model.
pub const OTHER_ANCHORS: [Anchor; 9] = [
    Anchor {
        parts: &[
            ("background", 7.06),
            ("colour", 7.03),
            ("material", 5.52),
            ("motion", 5.62),
            ("portrait", 4.68),
            ("style", 5.55),
            ("add", 6.95),
            ("remove", 6.76),
            ("replace", 6.13),
            ("text", 6.10),
            ("tone", 7.48),
        ],
        ..anchor(
            "GEdit-EN, full set",
            "G_O",
            6.26,
            "READMEs of wyhlovecpp/GPT-Image-Edit and FireRed",
        )
    },
    anchor("ImgEdit", "overall, of 5", 3.52, GPT_IMAGE_EDIT),
    Anchor {
        parts: &[
            ("add", 3.99),
            ("adjust", 3.88),
            ("extract", 2.19),
            ("replace", 4.27),
            ("remove", 3.13),
            ("background", 3.98),
            ("style", 4.51),
            ("hybrid", 3.23),
            ("action", 4.18),
        ],
        ..anchor("ImgEdit", "overall, of 5", 3.71, FIRE_RED)
    },
    Anchor {
        parts: &[
            ("instruction following", 8.56),
            ("identity preservation", 8.39),
            ("perceptual quality", 8.51),
        ],
        ..anchor("Complex-Edit", "overall", 8.49, GPT_IMAGE_EDIT)
    },
    anchor("PICABench", "accuracy, %", 48.93, "PICABench"),
    anchor("PICABench", "consistency, dB", 24.57, "PICABench"),
    anchor("GEdit++", "overall", 5.712, "X2Edit"),
    anchor("AbstractEdit", "overall", 5.10, "AbstractEdit"),
    anchor("RealIR-Bench", "overall", 0.056, "RealIR"),
];

#[cfg(test)]
mod tests {
    use super::super::CATEGORIES;
    use super::*;

    #[test]
    fn the_whole_of_kontextbench_is_the_mean_of_its_categories() {
        for anchor in KONTEXT_BENCH_ANCHORS {
            let names: Vec<&str> = anchor.parts.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, CATEGORIES);
            let mean = anchor.parts.iter().map(|(_, value)| value).sum::<f64>() / 5.0;
            // Of five values that are rounded to a thousandth, as is the whole.
            assert!((mean - anchor.value).abs() <= 0.001 + 1e-9, "{anchor:?}: {mean}");
        }
    }

    #[test]
    fn the_whole_of_other_benchmarks_is_the_mean_of_their_parts() {
        for anchor in OTHER_ANCHORS.iter().filter(|anchor| !anchor.parts.is_empty()) {
            let mean = anchor.parts.iter().map(|(_, value)| value).sum::<f64>() / anchor.parts.len() as f64;
            // All are rounded to a hundredth.
            assert!((mean - anchor.value).abs() <= 0.01, "{anchor:?}: {mean}");
        }
    }
}
