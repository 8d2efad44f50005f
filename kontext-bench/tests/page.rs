//! The page in a real browser.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)] // In helper functions of a test.

#[path = "common/browser.rs"]
mod browser;
mod common;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use browser::Browser;
use common::{PAIRS, edit, info, write_bench};
use image::Rgb;
use kontext_bench::kontextbench::{Bench, Choice, Edited, Page, RunFolder, Runner, Task, read_votes, vote_report};
use kontext_core::Result;

/// An instruction that would run as HTML or script if it were not treated as text.
const HOSTILE: &str =
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> & \"{{script}}\"";

/// A key that a spreadsheet would take for a formula, if it stood so in the exported votes.
const FORMULA: &str = "=cmd|' /C calc'!A0";

/// A bench with two runs.
struct Desk {
    folder: tempfile::TempDir,
    bench: Bench,
    runs: [RunFolder; 2],
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_bench(&folder.path().join("bench"), |index, line| {
            let mut line: serde_json::Value = serde_json::from_str(&line).unwrap();
            if index == 1 {
                line["key"] = FORMULA.into();
            }
            if index == 0 {
                line["instruction"] = HOSTILE.into();
                line["references"] = serde_json::json!(["images/0003.png"]);
            }
            Some(line.to_string())
        });
        let bench = Bench::open(folder.path().join("bench")).unwrap();
        let run = |name: &str, edit: fn(&Task<'_>) -> Result<Edited>| {
            let out = folder.path().join(name);
            Runner::new(&bench, info(name))
                .run(&out, edit, |_| ControlFlow::Continue(()))
                .unwrap();
            RunFolder::open(out).unwrap()
        };
        let runs = [run("alpha-run", edit), run("beta,\"run\"", faint)];
        Self { folder, bench, runs }
    }

    fn write(&self, name: &str, html: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, html).unwrap();
        path
    }
}

/// Mocks another model: marks one pixel by the seed.
fn faint(task: &Task<'_>) -> Result<Edited> {
    let mut image = task.images[0].clone();
    image.put_pixel(1, 1, Rgb([task.seed as u8, 0, 0]));
    Ok(Edited { image, steps: 2 })
}

fn data_uri(path: &Path) -> String {
    format!(
        "data:image/png;base64,{}",
        BASE64_STANDARD.encode(std::fs::read(path).unwrap())
    )
}

const POSITION: &str = "document.getElementById('position').textContent";
const INSTRUCTION: &str = "document.getElementById('instruction').textContent";

/// Returns a script expression for the image of a side: `left`, `right` or `result`.
fn side(name: &str) -> String {
    format!("document.querySelector('[data-side={name}] img').src")
}

#[test]
fn one_run_is_looked_through_by_keys_words_and_category() {
    let desk = Desk::new();
    let page = desk.write("page.html", &Page::of(&desk.bench, &desk.runs[0]).html().unwrap());
    let Some(mut browser) = Browser::start() else { return };
    browser.open(&page);
    // Hostile text stays text; nothing was loaded from elsewhere; every image has loaded.
    assert_eq!(browser.text(INSTRUCTION), HOSTILE);
    assert_eq!(browser.value("typeof window.hacked"), "undefined");
    let elsewhere = "performance.getEntriesByType('resource').filter((r) => !r.name.startsWith('data:')).length";
    assert_eq!(browser.value(elsewhere), 0);
    let captions = "[...document.querySelectorAll('figcaption')].map((c) => c.textContent).join()";
    assert_eq!(browser.text(captions), "Source,Reference 2,Result,Truth");
    browser.wait_for("[...document.images].every((img) => img.complete && img.naturalWidth === 24)");
    assert_eq!(
        browser.text(&side("result")),
        data_uri(&desk.runs[0].image(&desk.bench.pairs[0]))
    );
    // Without a network, and with everything changed, three of the eleven measures are missing.
    assert_eq!(browser.value("document.querySelectorAll('#measures td').length"), 8);
    assert_eq!(browser.value("document.getElementById('voting').hidden"), true);

    for (key, position) in [
        ("ArrowRight", "2 of 10"),
        ("j", "3 of 10"),
        ("k", "2 of 10"),
        ("ArrowLeft", "1 of 10"),
        ("ArrowLeft", "1 of 10"),
        // No vote with a single run.
        ("1", "1 of 10"),
    ] {
        browser.press(key);
        assert_eq!(browser.text(POSITION), position, "{key}");
    }
    // In a low window the list scrolls in its own frame, and the page does not move.
    let low = serde_json::json!({"width": 1000, "height": 300, "deviceScaleFactor": 1, "mobile": false});
    browser.call("Emulation.setDeviceMetricsOverride", low);
    (1..PAIRS).for_each(|_| browser.press("j"));
    let frame = "document.querySelector('nav').getBoundingClientRect()";
    let current = "document.querySelector('[aria-current]').getBoundingClientRect()";
    browser.wait_for(&format!(
        "{current}.bottom <= {frame}.bottom && {current}.top >= {frame}.top"
    ));
    assert!(
        browser
            .value("document.querySelector('nav').scrollTop")
            .as_f64()
            .unwrap()
            > 0.0
    );
    assert_eq!(
        browser.value("[scrollY, document.body.scrollTop, document.querySelector('main').scrollTop].join()"),
        "0,0,0"
    );
    // Selecting a category by keyboard: focus, then its first letter.
    browser.value("document.getElementById('category').focus()");
    browser.press("T");
    browser.wait_for("document.getElementById('category').value === 'Text Editing'");
    // The current pair is in the category, and stays selected.
    assert_eq!(browser.text(POSITION), "2 of 2");
    assert_eq!(
        browser.text("document.getElementById('place').textContent"),
        "Text Editing · 0004_01"
    );
    assert_eq!(browser.value("document.querySelectorAll('#list button').length"), 2);
    // Keys in the search field are text: `j` and `1` trigger nothing.
    browser.value("document.getElementById('search').focus()");
    for key in ["i", "o", "n", " ", "9"] {
        browser.press(key);
    }
    assert_eq!(browser.text(POSITION), "1 of 1");
    assert_eq!(browser.text(INSTRUCTION), "instruction 9");
    browser.press("j");
    assert_eq!(browser.text(POSITION), "none");
    assert_eq!(browser.value("document.getElementById('empty').hidden"), false);
    let means = browser.text("document.querySelector('#tables tbody').textContent");
    assert!(means.contains("Text Editing2") && means.contains("all10"), "{means}");
}

#[test]
fn two_runs_are_voted_on_blind_and_the_votes_name_what_was_seen() {
    let desk = Desk::new();
    let [a, b] = &desk.runs;
    let page = desk.write("votes.html", &Page::between(&desk.bench, a, b).html().unwrap());
    let Some(mut browser) = Browser::start() else { return };
    let downloads = browser.downloads();
    browser.open(&page);
    let seen = |browser: &mut Browser| ["left", "right"].map(|name| browser.text(&side(name)));
    let shown = "document.querySelector('article').innerText + document.querySelector('header p').innerText";
    let keys = ["1", "2", "0", "a", "b", "t", "1", "1", "2"];
    let choices = "lrtlrtllr".chars().map(|letter| match letter {
        'l' => Choice::Left,
        'r' => Choice::Right,
        _ => Choice::Tie,
    });
    let choices: Vec<Choice> = choices.collect();
    let mut images = Vec::new();
    for (index, key) in keys.into_iter().enumerate() {
        assert_eq!(browser.text(POSITION), format!("{} of {PAIRS}", index + 1));
        let text = browser.text(shown);
        assert!(
            !text.contains("alpha") && !text.contains("beta") && !text.contains("Truth"),
            "{text}"
        );
        assert_eq!(browser.value("document.getElementById('measures').hidden"), true);
        images.push(seen(&mut browser));
        browser.press(key);
    }
    // The last pair has no vote; votes persist when the page is opened again.
    browser.open(&page);
    let voted = "document.getElementById('voted').textContent";
    browser.wait_for(&format!("{voted} === '9 of 10 voted'"));
    let pressed = "document.querySelector('[data-choice][aria-pressed=true]').dataset.choice";
    assert_eq!(browser.text(pressed), "left");
    browser.press("n");
    assert_eq!(browser.text(POSITION), "10 of 10");
    // Voting is disabled while the runs are revealed.
    browser.press("r");
    assert!(browser.text(shown).contains("alpha-run"));
    browser.press("1");
    assert_eq!(browser.text(voted), "9 of 10 voted");
    browser.press("r");
    // A vote is withdrawn, and cast again.
    browser.press("k");
    browser.press("x");
    assert_eq!(browser.text(voted), "8 of 10 voted");
    browser.press("2");
    assert_eq!(browser.text(voted), "9 of 10 voted");

    browser.press("e");
    let file = downloads.join("kontextbench-votes.csv");
    let begin = std::time::Instant::now();
    while !file.is_file() {
        assert!(begin.elapsed().as_secs() < 30, "no file was written");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let exported = std::fs::read_to_string(&file).unwrap();
    assert!(exported.contains(&format!("\r\n'{FORMULA},")), "{exported}");
    let (votes, problems) = read_votes(&file).unwrap();
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(votes.iter().map(|vote| vote.choice).collect::<Vec<_>>(), choices);
    for ((vote, pair), [left, right]) in votes.iter().zip(&desk.bench.pairs).zip(&images) {
        assert_eq!((&vote.key, &vote.category), (&pair.key, &pair.category));
        assert!(vote.time.ends_with('Z') && vote.time.len() == 24, "{}", vote.time);
        for (name, image) in [(&vote.left, left), (&vote.right, right)] {
            let run = if name == "alpha-run" { a } else { b };
            assert_eq!(&run.info().unwrap().name, name);
            assert!(
                *image == data_uri(&run.image(pair)),
                "{name} was not on the side that the vote says"
            );
        }
    }
    // Both orders occur.
    assert_eq!(
        votes
            .iter()
            .map(|vote| vote.left.as_str())
            .collect::<BTreeSet<_>>()
            .len(),
        2
    );
    assert!(vote_report(&votes, 0).contains("| alpha-run | beta,\"run\" | **all** | "));
}

#[test]
fn a_page_of_many_large_images_shows_them_smaller() {
    let desk = Desk::new();
    let whole = Page::of(&desk.bench, &desk.runs[0]).html().unwrap();
    let smaller = Page::of(&desk.bench, &desk.runs[0]).thumbnails(8).html().unwrap();
    assert!(smaller.contains("Images are shown with at most 8 pixels on a side.") && !whole.contains("at most 8"));
    let Some(mut browser) = Browser::start() else { return };
    browser.open(&desk.write("smaller.html", &smaller));
    browser.wait_for("[...document.images].every((img) => img.naturalWidth === 8 && img.naturalHeight === 7)");
}

#[test]
fn runs_of_one_name_cannot_be_told_apart() {
    let desk = Desk::new();
    let error = Page::between(&desk.bench, &desk.runs[0], &desk.runs[0])
        .html()
        .unwrap_err()
        .to_string();
    assert!(error.contains("expected two of different names"), "{error}");
}
