//! Memory of what steps reuse.

use kontext_dit::{ReferenceReuse, StepCache};

use super::*;

/// The transformer's work of an edit at 1024x1024, in which each token has 3072 values of two bytes.
fn work(cache: &str, reuse: Option<&str>, batch: usize) -> u64 {
    let edit = Request::edit(RgbImage::new(1024, 1024), "").batch(batch);
    let request = edit.step_cache(cache.parse().unwrap());
    let request = match reuse {
        Some(reuse) => request.reference_reuse(reuse.parse().unwrap()),
        None => request,
    };
    let plan = Plan {
        compute: Compute::all(Kind::BFloat16),
        ..plan(&request)
    };
    published(CUDA).step_work(&plan, Offload::None)
}

#[test]
fn denoising_grows_by_the_bytes_of_kept_keys_and_values() {
    // 57 blocks, of 4096 reference tokens, and of as many target tokens, too.
    let kept = 57 * 4096 * 2 * 3072 * 2;
    for batch in [1, 2] {
        let plain = work("off", None, batch);
        let references = work("off", Some("references"), batch) - plain;
        assert_eq!(references, kept * batch as u64);
        assert_eq!(work("off", Some("region"), batch) - plain, 2 * references);
    }
    // Nothing is kept where no step reads it.
    let full = Some("references:warmup=28");
    assert_eq!(work("off", full, 1), work("off", None, 1));
}

#[test]
fn a_step_cache_keeps_rows_of_the_target_and_teacache_of_references_too() {
    let rows = |cache: &str| (work(cache, None, 1) - work("off", None, 1)) / (3072 * 2);
    assert_eq!(rows("magcache"), 2 * 4096);
    assert_eq!(rows("teacache"), 2 * 4096 + 2 * 8192);
}

#[test]
fn a_shortage_by_kept_keys_names_their_setting() {
    let reported = |reuse: Option<ReferenceReuse>| {
        let plan = Plan {
            reference_reuse: reuse,
            step_cache: StepCache::Off,
            work: None,
            ..edit(CUDA, 1024)
        };
        let error = torch(WORDS);
        published(CUDA)
            .shortage(error, &plan, STAGED, LoadedParts::ALL, Stage::Denoise, 8 * GB)
            .to_string()
    };
    let words = "leave out reference_reuse";
    assert!(reported(Some(ReferenceReuse::region())).contains(words));
    assert!(!reported(None).contains(words));
}
