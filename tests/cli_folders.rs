//! Many edits in one run of `edit`: the images of a folder or a pattern, and the lines of a manifest.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use common::desk::{Desk, diffusers};
use common::many::{contents, draw, names, quick, records};
use common::told;

#[test]
fn every_image_of_a_folder_is_edited_and_damaged_ones_are_listed_at_the_end() {
    let desk = Desk::new();
    let model = diffusers();
    for (number, name) in [
        "photos/a.png",
        "photos/b.jpg",
        "photos/b.png",
        "photos/c.png",
        "photos/in/d.png",
    ]
    .into_iter()
    .enumerate()
    {
        draw(&desk, name, number as u32 + 1);
    }
    // Its headers are whole, its pixels are not.
    let whole = std::fs::read(desk.path("photos/c.png")).unwrap();
    std::fs::write(desk.path("photos/c.png"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(desk.path("photos/d.png"), "no image").unwrap();
    std::fs::write(desk.path("photos/notes.txt"), "none either").unwrap();
    let flags = quick(&model, &["--image", "photos", "--prompt", "a hat", "--out", "hats"]);
    let (code, out, err) = told(&desk.run("edit", &flags));
    assert_eq!(code, Some(1), "{out}{err}");
    assert_eq!(out, "made 3 edits in hats, 0 were there\n");
    let last: Vec<&str> = err.lines().rev().take(3).collect();
    assert!(last[0].starts_with("error: 2 of 5 edits have no result"), "{err}");
    assert!(last[1].starts_with("failed: photos/c.png: "), "{err}");
    assert!(last[2].starts_with("failed: photos/d.png: "), "{err}");
    let results = ["a.png", "b.png", "b.png.png", "edits.json", "edits.jsonl"];
    assert_eq!(names(&desk.path("hats")), results);
    // What was damaged is made when it is mended, and nothing else.
    std::fs::write(desk.path("photos/c.png"), whole).unwrap();
    draw(&desk, "photos/d.png", 9);
    let first = contents(&desk.path("hats"));
    let (out, _) = desk.good("edit", &flags);
    assert_eq!(out, "made 2 edits in hats, 3 were there\n");
    let second = contents(&desk.path("hats"));
    for name in ["a.png", "b.png", "b.png.png", "edits.json"] {
        assert_eq!(first[name], second[name], "{name}");
    }
    // Each is the edit of its image alone, with the seed that its record has.
    let records = records(&desk.path("hats"));
    let seeds: Vec<u64> = ["b.jpg", "b.png"]
        .map(|key| records[key]["seed"].as_u64().unwrap())
        .to_vec();
    assert_ne!(seeds[0], seeds[1]);
    let seed = seeds[1].to_string();
    let one = [
        "--image",
        "photos/b.png",
        "--prompt",
        "a hat",
        "--seed",
        &seed,
        "--out",
        "one.png",
    ];
    desk.good("edit", &quick(&model, &one));
    assert_eq!(std::fs::read(desk.path("one.png")).unwrap(), second["b.png.png"]);
}

#[test]
fn a_pattern_names_images_of_several_folders_and_references_are_of_all() {
    let desk = Desk::new();
    let model = diffusers();
    for (number, name) in ["in/1/x.png", "in/2/x.png", "in/2/y.jpg", "in/2/y.png", "style.png"]
        .into_iter()
        .enumerate()
    {
        draw(&desk, name, number as u32 + 1);
    }
    let flags = [
        "--image",
        "in/*/?.png",
        "--reference",
        "style.png",
        "--prompt",
        "",
        "--out",
        "in/made",
        "--batch",
        "2",
    ];
    let (out, _) = desk.good("edit", &quick(&model, &flags));
    assert_eq!(out, "made 3 edits in in/made, 0 were there\n");
    let results = [
        "2-x-1.png",
        "2-x.png",
        "edits.json",
        "edits.jsonl",
        "x-1.png",
        "x.png",
        "y-1.png",
        "y.png",
    ];
    assert_eq!(names(&desk.path("in/made")), results);
    // The results match the pattern, too, and are no images to edit.
    let (out, _) = desk.good("edit", &quick(&model, &flags));
    assert_eq!(out, "made 0 edits in in/made, 3 were there\n");
    let records = records(&desk.path("in/made"));
    assert_eq!(records.keys().collect::<Vec<_>>(), ["1/x.png", "2/x.png", "2/y.png"]);
    let files: Vec<&str> = records["2/x.png"]["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["file"].as_str().unwrap())
        .collect();
    assert_eq!(files, ["in/2/x.png", "style.png"]);
}

#[test]
fn flags_of_many_edits_and_of_one_are_not_mixed() {
    let desk = Desk::new();
    let model = diffusers();
    draw(&desk, "photos/a.png", 1);
    std::fs::create_dir(desk.path("empty")).unwrap();
    std::fs::write(desk.path("m.txt"), "").unwrap();
    std::fs::write(desk.path("m.csv"), "image;prompt\n").unwrap();
    std::fs::write(desk.path("m.jsonl"), "\n").unwrap();
    for (flags, words) in [
        (&["--image", "photos"][..], "name the folder of the results by --out"),
        (&["--image", "photos", "--out", "o"], "give one by --prompt"),
        (
            &["--image", "photos", "--image", "photos/a.png"],
            "references of all by --reference",
        ),
        (
            &["--image", "empty", "--prompt", "", "--out", "o"],
            "no images in empty",
        ),
        (
            &["--image", "photos/*.webp", "--prompt", "", "--out", "o"],
            "no images in photos/*.webp",
        ),
        (
            &["--image", "photos/[", "--prompt", "", "--out", "o"],
            "is no pattern of names",
        ),
        (
            &["--image", "photos", "--prompt", "", "--out", "photos"],
            "in a folder that the run reads (--image)",
        ),
        (
            &["--image", "photos", "--prompt", "", "--out", &model],
            "in a folder that the run reads (--model)",
        ),
        (
            &["--image", "photos", "--prompt", "", "--out", "m.csv"],
            "--out m.csv is a file",
        ),
        (
            &["--image", "photos", "--prompt", "", "--out", "o", "--dump", "d"],
            "--dump is of one edit",
        ),
        (
            &["--image", "photos", "--prompt", "", "--out", "o", "--memory"],
            "--memory is of one edit",
        ),
        (
            &["--image", "photos", "--prompt", "", "--out", "o", "--compare", "c.png"],
            "--compare is of one edit",
        ),
        (
            &[
                "--image",
                "photos",
                "--prompt",
                "",
                "--out",
                "o",
                "--reference",
                "r.png",
            ],
            "cannot read r.png",
        ),
        (
            &["--image", "photos/a.png", "--shard", "0/2"],
            "--shard is of many edits",
        ),
        (
            &["--image", "photos", "--shard", "2/2"],
            "expected i/n with i from 0 to n - 1",
        ),
        (&["--reference", "photos/a.png"], "name it by --image"),
        (&["--manifest", "m.txt", "--out", "o"], "expected a .jsonl or .csv file"),
        (&["--manifest", "m.csv", "--out", "o"], "expected the names of columns"),
        (&["--manifest", "m.jsonl", "--out", "o"], "has no request"),
        (
            &["--manifest", "no.jsonl", "--out", "o"],
            "cannot read the manifest no.jsonl",
        ),
    ] {
        let (code, out, err) = told(&desk.run("edit", &quick(&model, flags)));
        assert_eq!(code, Some(1), "{flags:?}\n{out}{err}");
        assert!(err.contains(words) && err.lines().count() == 1, "{flags:?}\n{err}");
    }
    assert!(!desk.path("o").exists());
    // One edit takes references by either flag.
    draw(&desk, "b.png", 2);
    for (flag, out) in [("--image", "1.png"), ("--reference", "2.png")] {
        desk.good(
            "edit",
            &quick(
                &model,
                &["--image", "b.png", flag, "photos/a.png", "--prompt", "", "--out", out],
            ),
        );
    }
    assert_eq!(
        std::fs::read(desk.path("1.png")).unwrap(),
        std::fs::read(desk.path("2.png")).unwrap()
    );
}

#[test]
fn a_manifest_has_variables_and_options_and_its_faults_are_listed_with_their_lines() {
    let desk = Desk::new();
    let model = diffusers();
    draw(&desk, "set/a.png", 1);
    draw(&desk, "set/b.png", 2);
    let lines = [
        r#"{"image": "a.png", "colour": "red"}"#,
        r#"{"image": ["a.png", "b.png"], "vars": {"colour": "blue"}, "prompt": "two {colour} {{hats}}", "out": "two.webp"}"#,
        r#"{"image": "none.png", "colour": "red"}"#,
        "",
        r#"{"image": "a.png", "colour": "red", "stesp": 3}"#,
        r#"{"image": "a.png", "color": "red"}"#,
        r#"{"image": "a.png", "#,
        r#"{"image": "a.png", "colour": "red", "steps": 0}"#,
        r#"{"image": "a.png", "colour": "red", "out": "two.webp"}"#,
        r#"{"image": "b.png", "colour": "red", "steps": 2, "seed": 3, "guidance": 3.5}"#,
        r#"{"image": "b.png", "prompt": "a {size} hat", "out": "x.gif"}"#,
        r#"{"image": "b.png", "prompt": "a hat", "out": "x.gif"}"#,
    ];
    std::fs::write(desk.path("set/m.jsonl"), lines.join("\n")).unwrap();
    let flags = [
        "--manifest",
        "set/m.jsonl",
        "--prompt",
        "a {colour} hat",
        "--out",
        "out",
    ];
    let (code, out, err) = told(&desk.run("edit", &quick(&model, &flags)));
    assert_eq!(
        (code, out.as_str()),
        (Some(1), "made 3 edits in out, 0 were there\n"),
        "{err}"
    );
    for words in [
        "line 3: ",
        "line 5: unknown field `stesp` (nearest: `steps`)",
        "line 6: unknown field `color`",
        "line 7: it is no JSON",
        "line 8: invalid steps",
        "line 9: an earlier line has the result \"two.webp\"",
        "line 11: the variable {size} has no value",
        "line 12: invalid output file",
    ] {
        for head in ["warning", "failed"] {
            let line = format!("{head}: set/m.jsonl {words}");
            assert!(err.contains(&line), "{line}\n{err}");
        }
    }
    assert!(
        err.ends_with(
            "error: 8 of 11 edits have no result, for the reasons above; the same command tries them again\n"
        ),
        "{err}"
    );
    let results = ["a-1.png", "b-10.png", "edits.json", "edits.jsonl", "two.webp"];
    assert_eq!(names(&desk.path("out")), results);
    let records = records(&desk.path("out"));
    assert_eq!(records["two.webp"]["request"]["prompt"], "two blue {hats}");
    assert_eq!(records["two.webp"]["images"].as_array().unwrap().len(), 2);
    let last = &records["b-10.png"];
    assert_eq!(
        (&last["line"], &last["seed"], &last["request"]["steps"]),
        (&10.into(), &3.into(), &2.into())
    );
    // A line's results are the edit by itself.
    let one = [
        "--image",
        "set/b.png",
        "--prompt",
        "a red hat",
        "--seed",
        "3",
        "--steps",
        "2",
        "--guidance",
        "3.5",
        "--out",
        "one.png",
    ];
    desk.good("edit", &quick(&model, &one));
    assert_eq!(
        std::fs::read(desk.path("one.png")).unwrap(),
        std::fs::read(desk.path("out/b-10.png")).unwrap()
    );
    // Before any work, all of this is known.
    let (code, out, err) = told(&desk.run("edit", &quick(&model, &[&flags[..], &["--plan"]].concat())));
    assert!(
        code == Some(1) && out.starts_with("3 edits\nthe first, a-1.png:\n"),
        "{out}{err}"
    );
    let none = "{\"image\": \"none.png\", \"prompt\": \"\"}\n";
    std::fs::write(desk.path("none.jsonl"), none).unwrap();
    desk.bad(
        "edit",
        &quick(&model, &["--manifest", "none.jsonl", "--out", "o"]),
        "none of the 1 edits can be made",
    );
}

#[test]
fn a_table_is_a_manifest_too() {
    let desk = Desk::new();
    let model = diffusers();
    draw(&desk, "a.png", 1);
    draw(&desk, "b.png", 2);
    let text = "image,who,steps,seed,out\r\na.png,\"a cook, old\",,,cook.png\r\n\"[\"\"b.png\"\",\"\"a.png\"\"]\",a clown,2,5,\r\nb.png,,,,\r\n";
    std::fs::write(desk.path("m.csv"), text).unwrap();
    let flags = quick(
        &model,
        &["--manifest", "m.csv", "--prompt", "make {who}", "--out", "out"],
    );
    let (code, out, err) = told(&desk.run("edit", &flags));
    assert_eq!(
        (code, out.as_str()),
        (Some(1), "made 2 edits in out, 0 were there\n"),
        "{err}"
    );
    assert!(
        err.contains("failed: m.csv line 4: the variable {who} has no value"),
        "{err}"
    );
    let records = records(&desk.path("out"));
    assert_eq!(records["cook.png"]["request"]["prompt"], "make a cook, old");
    assert_eq!(
        (&records["b-3.png"]["seed"], &records["b-3.png"]["request"]["steps"]),
        (&5.into(), &2.into())
    );
}
