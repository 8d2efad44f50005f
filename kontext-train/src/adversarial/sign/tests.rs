use super::*;
use crate::run::CriticReport;

fn points(count: u64, accuracy: impl Fn(u64) -> f64, norm: f64) -> Vec<Point> {
    let point = |step| Point {
        step,
        loss: 0.1,
        rate: 1e-4,
        norm,
        critic: Some(CriticReport {
            student_loss: 0.7,
            critic_loss: 0.7,
            accuracy: accuracy(step),
            critic_norm: 0.1,
        }),
        validation: None,
    };
    (1..=count).map(point).collect()
}

/// Settings under which no critic is blind.
fn patient(patience: u64) -> Judging {
    Judging {
        patience,
        warmup: 1000,
        pairs: 24,
    }
}

#[test]
fn a_sign_is_a_warning_after_a_window_and_the_end_after_two() {
    let won = |count| of_steps(&points(count, |_| 1.0, 0.1), patient(20));
    let sign = Sign::Won { accuracy: 1.0 };
    assert_eq!(won(9), []);
    assert_eq!(won(10), [Found { sign, ends: false }]);
    assert_eq!(won(20), [Found { sign, ends: true }]);
    // A window in between starts the count again.
    let again = points(20, |step| if step <= 10 { 0.8 } else { 1.0 }, 0.1);
    assert_eq!(of_steps(&again, patient(20)), [Found { sign, ends: false }]);
    assert_eq!(
        of_steps(&points(300, |_| 1.0, 0.1), patient(0)),
        [Found { sign, ends: false }]
    );
}

#[test]
fn a_critic_is_only_blind_in_the_two_windows_after_the_warm_up() {
    let judged = |count, accuracy: fn(u64) -> f64| {
        let judging = Judging {
            warmup: 7,
            pairs: 24,
            ..patient(20)
        };
        of_steps(&points(count, accuracy, 0.1), judging)
    };
    let blind = |ends| {
        let sign = Sign::Blind { accuracy: 0.5 };
        [Found { sign, ends }]
    };
    for count in [7, 10, 16, 20, 37] {
        assert_eq!(judged(count, |_| 0.5), [], "{count}");
    }
    assert_eq!(judged(17, |_| 0.5), blind(false));
    assert_eq!(judged(27, |_| 0.5), blind(true));
    assert_eq!(judged(27, |step| if step <= 7 { 0.9 } else { 0.5 }), blind(true));
    assert_eq!(judged(27, |step| if (8..=17).contains(&step) { 0.7 } else { 0.5 }), []);
}

/// The accuracy of a blind critic at batch 2 is 0, 0.5 or 1 in a step; here a mean of ten steps is 0.8.
#[test]
fn a_small_batch_has_longer_groups() {
    let judging = Judging {
        warmup: 0,
        pairs: 2,
        ..patient(20)
    };
    let lucky = |step: u64| {
        if step <= 10 { 0.8 } else { 0.5 }
    };
    let found = |count| of_steps(&points(count, lucky, 0.1), judging);
    assert_eq!((found(20), found(119)), (Vec::new(), Vec::new()));
    let [Found { sign, ends }] = found(240)[..] else {
        unreachable!("a sign")
    };
    let Sign::Blind { accuracy } = sign else {
        unreachable!("{sign}")
    };
    assert!(ends && (accuracy - 0.525).abs() < 1e-9, "{accuracy}");
}

#[test]
fn long_gradients_are_a_warning_and_very_long_ones_the_end() {
    let ends = |norm| {
        of_steps(&points(20, |_| 0.7, norm), patient(20))
            .first()
            .map(|found| found.ends)
    };
    assert_eq!((ends(0.9), ends(1.5), ends(11.0)), (None, Some(false), Some(true)));
}

#[test]
fn held_out_results_are_judged_by_sharpness_retrieval_and_distance() {
    let quality = |sharpness, right, distance| Quality {
        step: 1,
        sharpness,
        right,
        distance,
        items: 100,
    };
    let judged = |history: &[Quality], patience| of_results(history, patience, Real::Data);
    let good = quality(1.0, 0.9, 0.2);
    assert_eq!(judged(&[good, quality(1.04, 0.75, 0.1)], 10), []);
    let bad = quality(1.2, 0.7, 1e-4);
    let signs = judged(&[good, bad], 10);
    assert_eq!((signs.len(), signs.iter().filter(|found| found.ends).count()), (3, 0));
    assert!(judged(&[good, bad, bad], 10).iter().all(|found| found.ends));
    assert!(judged(&[good, bad, bad], 0).iter().all(|found| !found.ends));
    assert!(
        signs
            .iter()
            .all(|found| found.sign.remedy().contains('.') || found.sign.remedy().contains("rate"))
    );
    // The results of a student that learns from other images are only compared with each other.
    let guided = Real::Teacher {
        guidance: 2.5,
        steps: 28,
    };
    let sign = Sign::SameImages { distance: 1e-4 };
    assert_eq!(of_results(&[good, bad, bad], 10, guided), [Found { sign, ends: true }]);
    // No truth has edges.
    assert_eq!(judged(&[good, quality(f64::NAN, 0.9, 0.2)], 10), []);
    // What was so sharp from the start is a warning.
    let sharp = |sharpness| quality(sharpness, 0.9, 0.2);
    let ends = |last| judged(&[sharp(1.2), sharp(1.3), sharp(last)], 10)[0].ends;
    assert_eq!((ends(1.25), ends(1.27)), (false, true));
}
