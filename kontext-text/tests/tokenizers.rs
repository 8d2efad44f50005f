//! Tests of the tokenizers against transformers' ids (tests/reference/parts/tokens.py), and of rejected
//! files.

#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::sync::LazyLock;

use common::{asset, chain, tiny_clip, tiny_clip_folder, tiny_t5, tiny_t5_folder, tokens, write};
use kontext_text::Tokenizer;
use proptest::prelude::*;
use serde_json::Value;

/// T5's `<unk>`, in the published tokenizer and the tiny one.
const UNKNOWN: i64 = 2;
/// A length above the token count of every prompt in the fixture.
const WHOLE: usize = 600;

fn ids(value: &Value) -> Vec<i64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_i64().unwrap())
        .collect()
}

/// Compares with one of the fixture's groups: all prompts whole, two prompts padded and truncated.
fn matches_reference(tokenizer: &Tokenizer, group: &str, name: &str) {
    let tokens = tokens();
    let (prompts, expected) = (tokens["prompts"].as_array().unwrap(), &tokens[group][name]);
    let prompt = |i: usize| prompts[i].as_str().unwrap();
    assert_eq!(tokenizer.pad_id(), expected["pad"].as_i64().unwrap());
    for (i, whole) in expected["whole"].as_array().unwrap().iter().enumerate() {
        let encoded = tokenizer.encode(prompt(i), WHOLE).unwrap();
        assert_eq!(encoded.ids[..encoded.used], ids(whole), "{:?}", prompt(i));
        assert_eq!((encoded.ids.len(), encoded.cut), (WHOLE, None));
    }
    for (length, rows) in expected["fitted"].as_object().unwrap() {
        for (prompt, row) in [prompt(3), prompt(prompts.len() - 1)]
            .iter()
            .zip(rows.as_array().unwrap())
        {
            assert_eq!(
                tokenizer.encode(prompt, length.parse().unwrap()).unwrap().ids,
                ids(row),
                "{length}: {prompt:?}"
            );
        }
    }
}

#[test]
fn the_tiny_clip_tokenizer_gives_the_ids_of_transformers_for_awkward_prompts() {
    matches_reference(&tiny_clip(), "tiny", "clip");
}

#[test]
fn the_tiny_t5_tokenizer_gives_the_ids_of_transformers_for_awkward_prompts() {
    matches_reference(&tiny_t5(), "tiny", "t5");
}

#[test]
fn the_published_tokenizers_give_the_ids_of_transformers_for_awkward_prompts() {
    for name in ["clip", "t5"] {
        if let Some(folder) = asset(&format!("tokenizers/{name}")) {
            matches_reference(&Tokenizer::open(folder).unwrap(), "published", name);
        }
    }
}

#[test]
fn the_published_tokenizers_give_known_ids() {
    if let Some(folder) = asset("tokenizers/t5") {
        let t5 = Tokenizer::open(folder).unwrap();
        let encoded = t5
            .encode("Make the cat wear a red hat, keep the background unchanged.", 512)
            .unwrap();
        assert_eq!(
            encoded.ids[..encoded.used],
            [1796, 8, 1712, 2112, 3, 9, 1131, 3, 547, 6, 453, 8, 2458, 26164, 5, 1]
        );
        assert!(encoded.ids[encoded.used..].iter().all(|&id| id == 0));
        assert_eq!(t5.vocab_size(), 32_100);
    }
    if let Some(folder) = asset("tokenizers/clip") {
        let clip = Tokenizer::open(folder).unwrap();
        let encoded = clip.encode("a photo of a cat", 77).unwrap();
        assert_eq!(encoded.ids[..encoded.used], [49406, 320, 1125, 539, 320, 2368, 49407]);
        assert!(encoded.ids[encoded.used..].iter().all(|&id| id == 49407));
        assert_eq!(clip.vocab_size(), 49_408);
    }
}

#[test]
fn the_cut_part_is_told_in_the_prompts_own_words() {
    let prompt = "Make  the CAT wear a red hat,\nkeep the Café unchanged.";
    for tokenizer in [tiny_clip(), tiny_t5()] {
        let whole = tokenizer.encode(prompt, WHOLE).unwrap();
        assert_eq!(tokenizer.encode(prompt, whole.used).unwrap().cut, None);
        assert_eq!(
            tokenizer.encode(prompt, whole.used - 1).unwrap().cut.as_deref(),
            Some(".")
        );
        let begin = whole.ids[..whole.used].len() - tokenizer.encode("", WHOLE).unwrap().used;
        assert_eq!(
            tokenizer.encode(prompt, whole.used - begin).unwrap().cut.as_deref(),
            Some(prompt)
        );
    }
    let cut = tiny_clip().encode(prompt, 6).unwrap().cut.unwrap();
    assert_eq!(cut, "wear a red hat,\nkeep the Café unchanged.");
}

#[test]
fn a_character_of_several_tokens_is_never_split_in_the_cut_text() {
    let (clip, prompt) = (tiny_clip(), "a 🐕 dog");
    let whole = clip.encode(prompt, WHOLE).unwrap().used;
    for length in 2..whole {
        let cut = clip.encode(prompt, length).unwrap().cut.unwrap();
        assert!(
            prompt.ends_with(&cut) && ["a 🐕 dog", "🐕 dog", "dog", "og", "g"].contains(&cut.as_str()),
            "{length}: {cut:?}"
        );
    }
}

#[test]
fn unknown_texts_are_told_in_the_prompts_own_words() {
    let unknown = |tokenizer: &Tokenizer, prompt| tokenizer.encode(prompt, WHOLE).unwrap().unknown;
    let published = asset("tokenizers/t5").map(|folder| Tokenizer::open(folder).unwrap());
    for t5 in [tiny_t5()].iter().chain(&published) {
        assert_eq!(unknown(t5, "keep the background unchanged"), [""; 0]);
        assert_eq!(unknown(t5, "a 漢字 hat for the 🐕, a漢字 hat"), ["漢字", "🐕"]);
        assert_eq!(unknown(t5, "漢 🐕🐈"), ["漢", "🐕🐈"]);
        // Written out, the token is a special one; next to it an unknown text is still one.
        assert_eq!(unknown(t5, "a <unk>"), [""; 0]);
        assert_eq!(unknown(t5, "a <unk>漢<unk>字"), ["漢", "字"]);
        // Cut texts are reported as such.
        assert_eq!(t5.encode("漢 🐕", 2).unwrap().unknown, [""; 0]);
        assert_eq!(t5.encode("漢 🐕", 3).unwrap().unknown, ["漢"]);
    }
    if let Some(t5) = published {
        // The normal form of a character may be several, of which some are known: it is reported whole.
        assert_eq!(unknown(&t5, "a ㈱ hat"), ["㈱"]);
        assert_eq!(unknown(&t5, "Żółw ﬁne café ½"), ["Ż", "ł", "½"]);
    }
}

#[test]
fn a_clip_tokenizer_with_all_bytes_knows_every_text() {
    let prompt = "a 漢字 hat ☃ for the 🐕, Żółw\u{10FFFF}\u{0}";
    let clip = tiny_clip();
    assert_eq!(clip.encode(prompt, WHOLE).unwrap().unknown, [""; 0]);
    if let Some(folder) = asset("tokenizers/clip") {
        let vocab: Value = serde_json::from_slice(&std::fs::read(folder.join("vocab.json")).unwrap()).unwrap();
        // The first ids are the 256 bytes within a word, the next ones those at its end.
        let letters = vocab
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, id)| id.as_i64() < Some(512));
        let (ends, within): (Vec<_>, Vec<_>) = letters.partition(|(token, _)| token.ends_with("</w>"));
        assert_eq!((within.len(), ends.len()), (256, 256));
        let clip = Tokenizer::open(folder).unwrap();
        assert_eq!(clip.encode(prompt, WHOLE).unwrap().unknown, [""; 0]);
    }
}

#[test]
fn a_clip_tokenizer_without_some_bytes_reports_their_characters() {
    let folder = tempfile::tempdir().unwrap();
    let vocab = serde_json::json!({"a": 0, "a</w>": 1, "b": 2, "b</w>": 3, "<|startoftext|>": 4, "<|endoftext|>": 5});
    write(&folder, "vocab.json", &vocab.to_string());
    write(&folder, "merges.txt", "#version: 0.2\n");
    let clip = Tokenizer::open(folder.path()).unwrap();
    let unknown = |prompt| clip.encode(prompt, WHOLE).unwrap().unknown;
    assert_eq!(unknown("ab BA a"), [""; 0]);
    assert_eq!(unknown("abba é a漢字b, a"), ["é", "漢字", ","]);
    assert_eq!(unknown("a <|endoftext|> b"), [""; 0]);
}

#[test]
fn an_empty_prompt_is_its_end_token_and_padding() {
    let clip = tiny_clip().encode("", 77).unwrap();
    assert_eq!((clip.used, clip.ids.len(), clip.cut), (2, 77, None));
    assert_eq!((clip.ids[0], &clip.ids[1..]), (632, vec![633; 76].as_slice()));
    let t5 = tiny_t5().encode("", 512).unwrap();
    assert_eq!(
        (t5.used, t5.ids[0], t5.ids.len(), t5.ids[1..].iter().sum::<i64>()),
        (1, 1, 512, 0)
    );
}

#[test]
fn ten_thousand_words_are_cut_and_told() {
    let prompt = "keep the background unchanged ".repeat(2500);
    for (tokenizer, length) in [(tiny_clip(), 77), (tiny_t5(), 512)] {
        let encoded = tokenizer.encode(&prompt, length).unwrap();
        assert_eq!((encoded.ids.len(), encoded.used), (length, length));
        let cut = encoded.cut.unwrap();
        assert!(prompt.ends_with(&cut) && cut.len() > prompt.len() - 8 * length);
    }
}

#[test]
fn a_length_without_room_for_the_end_token_is_refused() {
    let error = tiny_clip().encode("a cat", 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "invalid length in tokens: expected at least 2, for the tokens that every prompt has, got 1"
    );
    assert!(tiny_t5().encode("a cat", 0).is_err());
    assert_eq!(tiny_t5().encode("a cat", 1).unwrap().ids, [1]);
}

#[test]
fn stored_truncation_and_padding_are_not_carried_over() {
    let folder = tiny_t5_folder();
    let mut json = tokens()["tiny"]["t5"]["tokenizer.json"].take();
    json["truncation"] =
        serde_json::json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = serde_json::json!({"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": null, "pad_id": 2, "pad_type_id": 0, "pad_token": "<unk>"});
    write(&folder, "tokenizer.json", &json.to_string());
    let prompt = "keep the background unchanged";
    let plain = tiny_t5().encode(prompt, 40).unwrap();
    assert_eq!(
        Tokenizer::open(folder.path()).unwrap().encode(prompt, 40).unwrap(),
        plain
    );
}

#[test]
fn the_padding_token_is_the_one_that_the_settings_name() {
    let pad = |files: &[(&str, &str)]| {
        let folder = tiny_clip_folder();
        files.iter().for_each(|(name, text)| write(&folder, name, text));
        Tokenizer::open(folder.path()).map(|t| t.pad_id())
    };
    let (map, config) = ("special_tokens_map.json", "tokenizer_config.json");
    assert_eq!(pad(&[]).unwrap(), 633);
    assert_eq!(pad(&[(map, r#"{"pad_token": "!"}"#)]).unwrap(), 0);
    assert_eq!(
        pad(&[(map, r#"{"pad_token": {"content": "!", "lstrip": false}}"#)]).unwrap(),
        0
    );
    assert_eq!(
        pad(&[
            (map, r#"{"pad_token": "!"}"#),
            (config, r#"{"pad_token": "<|endoftext|>"}"#)
        ])
        .unwrap(),
        0
    );
    let newer = r#"{"pad_token": "<|endoftext|>", "added_tokens_decoder": {}}"#;
    assert_eq!(pad(&[(map, r#"{"pad_token": "!"}"#), (config, newer)]).unwrap(), 633);
    let error = pad(&[(config, r#"{"pad_token": "<none>"}"#)]).unwrap_err();
    assert!(
        error.to_string().contains("`<none>` is not in its vocabulary"),
        "{error}"
    );
}

#[test]
fn files_are_found_by_folder_or_by_name() {
    let (clip, t5) = (tiny_clip_folder(), tiny_t5_folder());
    let expected = tiny_clip().encode("a cat", 9).unwrap();
    for name in ["", "vocab.json", "merges.txt"] {
        assert_eq!(
            Tokenizer::open(clip.path().join(name))
                .unwrap()
                .encode("a cat", 9)
                .unwrap(),
            expected
        );
    }
    std::fs::copy(t5.path().join("tokenizer.json"), t5.path().join("t5xxl.json")).unwrap();
    let expected = tiny_t5().encode("a cat", 9).unwrap();
    for name in ["tokenizer.json", "t5xxl.json"] {
        assert_eq!(
            Tokenizer::open(t5.path().join(name))
                .unwrap()
                .encode("a cat", 9)
                .unwrap(),
            expected
        );
    }
}

#[test]
fn an_unusable_file_is_an_error_that_says_what_to_do() {
    let refused = |files: &[(&str, &str)]| {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| write(&folder, name, text));
        let error = Tokenizer::open(folder.path()).unwrap_err();
        assert!(matches!(error, kontext_core::Error::Tokenizer { .. }), "{error:?}");
        chain(&error)
    };
    assert!(refused(&[("spiece.model", "x")]).contains("save_pretrained"));
    assert!(refused(&[]).contains("neither tokenizer.json nor vocab.json with merges.txt"));
    assert!(refused(&[("tokenizer.json", "{")]).contains("save_pretrained"));
    assert!(refused(&[("tokenizer.json", "{}")]).contains("save_pretrained"));
    assert!(refused(&[("vocab.json", "[]"), ("merges.txt", "")]).contains("vocab.json"));
    assert!(refused(&[("vocab.json", r#"{"a": 0}"#), ("merges.txt", "")]).contains("not CLIP's"));
    let mut json = tokens()["tiny"]["t5"]["tokenizer.json"].take();
    json["post_processor"] = Value::Null;
    assert!(refused(&[("tokenizer.json", &json.to_string())]).contains("no end token"));
    json["model"] = serde_json::json!({"type": "BPE", "vocab": {"a": 0}, "merges": ["a a"]});
    assert!(refused(&[("tokenizer.json", &json.to_string())]).contains("gives no token"));
}

/// Opens the tiny T5 tokenizer with one value of its JSON replaced, and encodes a prompt.
fn with(pointer: &str, value: Value) -> kontext_core::Result<Vec<i64>> {
    let folder = tempfile::tempdir().unwrap();
    let mut json = tokens()["tiny"]["t5"]["tokenizer.json"].take();
    *json.pointer_mut(pointer).unwrap() = value;
    write(&folder, "tokenizer.json", &json.to_string());
    Ok(Tokenizer::open(folder.path())?.encode("keep the cat", 20)?.ids)
}

#[test]
fn a_part_on_which_the_library_panics_is_an_error_and_not_a_panic() {
    let template = |single: &Value, special: &Value| {
        let id = serde_json::json!({"Sequence": {"id": "A", "type_id": 0}});
        serde_json::json!({"type": "TemplateProcessing", "single": single, "pair": [id], "special_tokens": special})
    };
    let end = serde_json::json!({"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}});
    let sequence = |id| serde_json::json!({"Sequence": {"id": id, "type_id": 0}});
    let special = serde_json::json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
    let precompiled = |map: &str| serde_json::json!({"type": "Precompiled", "precompiled_charsmap": map});
    let cases = [
        // Neither base64 nor whole; then a length of the trie beyond the data, and a trie that points outside.
        ("/normalizer", precompiled("not base64!")),
        ("/normalizer", precompiled("AA==")),
        ("/normalizer", precompiled("/////w==")),
        ("/normalizer", precompiled("CAAAAP//////////")),
        (
            "/pre_tokenizer",
            serde_json::json!({"type": "FixedLength", "length": 0}),
        ),
        (
            "/post_processor",
            template(&serde_json::json!([sequence("A"), special]), &serde_json::json!({})),
        ),
        (
            "/post_processor",
            template(&serde_json::json!([sequence("B"), special]), &end),
        ),
    ];
    for (pointer, value) in cases {
        let error = with(pointer, value.clone()).unwrap_err();
        assert!(
            matches!(error, kontext_core::Error::Tokenizer { .. }) && chain(&error).contains("save_pretrained"),
            "{value}: {error:?}"
        );
    }
}

#[test]
fn a_charsmap_that_claims_more_than_it_holds_is_refused_before_memory_is_taken() {
    // Tries of 256 MB and of 4 GB, for which the library would allocate twice as much; one within a sequence.
    // Without padding, with a part of it, and with bits after the last byte.
    let maps = [
        ("BAAAEAAAAAA=", 0x1000_0004_u32),
        ("/////w==", u32::MAX),
        ("BAAAEAAAAAA", 0x1000_0004),
        ("/////w", u32::MAX),
        ("/////w=", u32::MAX),
        ("/////x", u32::MAX),
        ("/////x==", u32::MAX),
    ];
    for (map, size) in maps {
        let one = serde_json::json!({"type": "Precompiled", "precompiled_charsmap": map});
        let sequence = serde_json::json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, one]});
        for normalizer in [one, sequence] {
            let error = chain(&with("/normalizer", normalizer).unwrap_err());
            assert!(error.contains(&format!("a trie of {size} bytes")), "{error}");
        }
    }
}

#[test]
fn text_for_which_a_tokenizer_has_no_token_is_an_error_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let mut json = tokens()["tiny"]["t5"]["tokenizer.json"].take();
    json["model"]["unk_id"] = Value::Null;
    write(&folder, "tokenizer.json", &json.to_string());
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    tokenizer.encode("keep the cat", 20).unwrap();
    let error = chain(&tokenizer.encode("漢", 20).unwrap_err());
    assert!(
        error.contains("`unk_id` is missing") && error.contains("save_pretrained"),
        "{error}"
    );
}

#[test]
fn more_regular_expressions_than_any_tokenizer_has_are_refused_before_they_are_compiled() {
    let replace = serde_json::json!({"type": "Replace", "pattern": {"Regex": "\\w{9}"}, "content": " "});
    let normalizers = |count| serde_json::json!({"type": "Sequence", "normalizers": vec![replace.clone(); count]});
    with("/normalizer", normalizers(16)).unwrap();
    let error = chain(&with("/normalizer", normalizers(17)).unwrap_err());
    assert!(
        error.contains("it has 17 regular expressions") && error.contains("save_pretrained"),
        "{error}"
    );
}

#[test]
fn the_dropout_of_a_stored_model_is_off_so_that_ids_are_the_same_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let vocab: serde_json::Map<String, Value> = ["a", "b", "ab", "abab", "</s>"]
        .iter()
        .enumerate()
        .map(|(id, token)| ((*token).to_owned(), id.into()))
        .collect();
    let json = serde_json::json!({
        "version": "1.0", "added_tokens": [], "truncation": null, "padding": null, "normalizer": null,
        "pre_tokenizer": null, "decoder": null,
        "post_processor": {"type": "BertProcessing", "sep": ["</s>", 4], "cls": ["</s>", 4]},
        "model": {"type": "BPE", "dropout": 0.5, "unk_token": null, "vocab": vocab, "merges": ["a b", "ab ab"]},
    });
    write(&folder, "tokenizer.json", &json.to_string());
    let tokenizer = Tokenizer::open(folder.path()).unwrap();
    for _ in 0..50 {
        assert_eq!(tokenizer.encode("abab", 4).unwrap().ids, [4, 3, 4, 4]);
    }
}

#[test]
fn truncated_merges_are_an_error_that_names_a_token_they_no_longer_make() {
    let folder = tiny_clip_folder();
    let path = folder.path().join("merges.txt");
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for kept in [0, 1, lines.len() / 2, lines.len() - 1] {
        write(&folder, "merges.txt", &lines[..kept].join("\n"));
        let error = chain(&Tokenizer::open(folder.path()).unwrap_err());
        assert!(
            error.contains("merges.txt makes no `") && error.contains("truncated"),
            "{kept}: {error}"
        );
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_file() {
    let (clip, t5) = (tiny_clip_folder(), tiny_t5_folder());
    for (folder, names) in [
        (&clip, ["vocab.json", "merges.txt"].as_slice()),
        (&t5, &["tokenizer.json"]),
    ] {
        let expected = Tokenizer::open(folder.path()).unwrap().encode("a cat", 9).unwrap();
        for name in names {
            let text = std::fs::read_to_string(folder.path().join(name)).unwrap();
            write(folder, name, &format!("\u{feff}{text}"));
        }
        assert_eq!(
            Tokenizer::open(folder.path()).unwrap().encode("a cat", 9).unwrap(),
            expected
        );
    }
}

#[test]
fn a_prompt_longer_than_the_limit_is_refused_before_it_is_encoded() {
    let longest = "a".repeat(Tokenizer::LONGEST_PROMPT);
    for tokenizer in [tiny_clip(), tiny_t5()] {
        assert_eq!(tokenizer.encode(&longest, 20).unwrap().ids.len(), 20);
        let error = tokenizer.encode(&format!("{longest}a"), 20).unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid prompt: expected at most 262144 bytes, got 262145 bytes"
        );
    }
}

#[test]
fn scripts_that_t5_does_not_know_are_reported() {
    let Some(folder) = asset("tokenizers/t5") else { return };
    let t5 = Tokenizer::open(folder).unwrap();
    for prompt in [
        "让天空变红",
        "空を赤く",
        "하늘을 빨갛게",
        "اجعل السماء حمراء",
        "🐕",
        "{",
        "}",
        "<",
        "~",
        "\\",
    ] {
        let unknown = t5.encode(prompt, WHOLE).unwrap().unknown;
        assert!(!unknown.is_empty(), "{prompt}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Checks that the kept tokens are the first of the whole prompt's and that the cut text is its end.
    #[test]
    fn any_prompt_fills_its_length_and_is_kept_or_told(prompt in "(\\PC|[a-z ,.]){0,60}", length in 2_usize..40) {
        for tokenizer in [tiny_clip(), tiny_t5()] {
            let encoded = tokenizer.encode(&prompt, length).unwrap();
            let whole = tokenizer.encode(&prompt, WHOLE).unwrap();
            prop_assert_eq!(encoded.ids.len(), length);
            prop_assert!(encoded.used <= length && whole.cut.is_none());
            prop_assert!(encoded.ids[encoded.used..].iter().all(|&id| id == tokenizer.pad_id()));
            prop_assert_eq!(encoded.ids[encoded.used - 1], whole.ids[whole.used - 1]);
            prop_assert_eq!(&encoded.ids[..encoded.used - 1], &whole.ids[..encoded.used - 1]);
            prop_assert_eq!(encoded.cut.is_some(), whole.used > length);
            let cut = encoded.cut.unwrap_or_default();
            prop_assert!(prompt.ends_with(&cut));
        }
    }

    /// Checks that each run of unknown characters is reported with a text of the prompt, and nothing else is.
    #[test]
    fn unknown_texts_occur_in_the_prompt_and_known_words_are_none(
        prompt in "(\\PC|[a-z ,.漢字🐕\u{301}]){0,60}", words in "(cat|hat|make|the|red| |,){0,20}",
    ) {
        for tokenizer in tokenizers() {
            let encoded = tokenizer.encode(&prompt, WHOLE).unwrap();
            let unknown = encoded.ids.contains(&UNKNOWN) && tokenizer.pad_id() == 0;
            prop_assert_eq!(!encoded.unknown.is_empty(), unknown, "{:?}", encoded.unknown);
            for (index, text) in encoded.unknown.iter().enumerate() {
                prop_assert!(!text.is_empty() && prompt.contains(text.as_str()), "{:?}", text);
                prop_assert!(!encoded.unknown[..index].contains(text), "{:?}", text);
                // It is unknown by itself, too.
                prop_assert!(!tokenizer.encode(text, WHOLE).unwrap().unknown.is_empty(), "{:?}", text);
            }
            prop_assert_eq!(tokenizer.encode(&words, WHOLE).unwrap().unknown, Vec::<String>::new());
        }
    }
}

/// Returns both kinds of tokenizer, the tiny ones and the published ones that are there.
fn tokenizers() -> &'static [Tokenizer] {
    static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
        let published = ["clip", "t5"]
            .into_iter()
            .filter_map(|name| asset(&format!("tokenizers/{name}")));
        let published = published.map(|folder| Tokenizer::open(folder).unwrap());
        [tiny_clip(), tiny_t5()].into_iter().chain(published).collect()
    });
    &TOKENIZERS
}
