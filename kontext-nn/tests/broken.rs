//! Broken weight files, each with the whole message of its refusal.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use common::{Part, chain, described, entry, gguf_file, safetensors_file, text, with_header, written};
use kontext_nn::Weights;

/// Returns the message that a file is refused with, without its path.
fn refusal(bytes: &[u8]) -> String {
    let (_folder, path) = written(bytes);
    let message = chain(&Weights::open(&path).unwrap_err());
    message
        .strip_prefix(&format!("cannot load {}: ", path.display()))
        .unwrap()
        .to_owned()
}

const AGAIN: &str = "the file is truncated or damaged, fetch it again";

/// Checks that a GGUF file is refused for this reason.
#[track_caller]
fn gguf_refused(bytes: &[u8], reason: &str) {
    assert_eq!(refusal(bytes), format!("cannot use this GGUF file: {reason}"));
}

/// Checks that a GGUF file is refused as damaged.
#[track_caller]
fn gguf_damaged(bytes: &[u8], reason: &str) {
    gguf_refused(bytes, &format!("{reason}; {AGAIN}"));
}

/// Builds a sound file: a text, and two tensors of 64 bytes each.
fn gguf() -> Vec<u8> {
    let entries = [entry("general.architecture", 8, &text("flux"))];
    let tensors = [described("a", &[4, 4], 0, 0), described("b", &[16], 0, 64)];
    gguf_file(3, &entries, &tensors, &[0; 128])
}

/// Builds a file with these tensors and 128 bytes of data.
fn with(tensors: &[Vec<u8>]) -> Vec<u8> {
    gguf_file(3, &[], tensors, &[0; 128])
}

#[test]
fn a_gguf_file_that_is_cut_tells_what_it_lacks() {
    let whole = gguf();
    assert_eq!(whole.len(), 288);
    gguf_damaged(&whole[..6], "its version would take 4 bytes, 2 are left");
    gguf_damaged(&whole[..12], "the number of tensors would take 8 bytes, 4 are left");
    gguf_damaged(&whole[..40], "the number of tensors is 2, its size allows 0");
    gguf_damaged(&whole[..88], "tensor `a` would take 8 bytes, 7 are left");
    gguf_damaged(&whole[..160], "tensor `a` would end at 224, the file has 160 bytes");
    gguf_damaged(&whole[..287], "tensor `b` would end at 288, the file has 287 bytes");
}

#[test]
fn a_gguf_file_of_another_version_or_byte_order_is_told_so() {
    let version = |version| gguf_file(version, &[], &[], &[]);
    gguf_refused(
        &version(0),
        "it has the version 0, expected 2 or 3; fetch or convert it anew",
    );
    gguf_refused(
        &version(1),
        "it has the version 1, expected 2 or 3; fetch or convert it anew",
    );
    gguf_refused(
        &version(4),
        "it has the version 4, expected 2 or 3; fetch or convert it anew",
    );
    let big = "it is big-endian, expected little-endian; convert it with gguf_convert_endian";
    gguf_refused(&version(3_u32.swap_bytes()), big);
}

#[test]
fn a_gguf_file_has_no_more_parts_than_its_size_allows() {
    let mut many = gguf();
    many[8..16].fill(0xff);
    gguf_damaged(
        &many,
        "the number of tensors is 18446744073709551615, its size allows 8",
    );
    let mut many = gguf();
    many[16..24].fill(0xff);
    gguf_damaged(
        &many,
        "the number of entries of metadata is 18446744073709551615, its size allows 20",
    );
    let key = gguf_file(3, &[u64::MAX.to_le_bytes().to_vec()], &[], &[]);
    // The entry is too short for a name.
    gguf_damaged(&key, "the number of entries of metadata is 1, its size allows 0");
    let key = gguf_file(3, &[[&u64::MAX.to_le_bytes()[..], &[0; 8]].concat()], &[], &[]);
    gguf_damaged(
        &key,
        "a name in the metadata would take 18446744073709551615 bytes, 32 are left",
    );
    let key = gguf_file(3, &[entry(vec![b'k'; 70_000], 7, &[1])], &[], &[]);
    gguf_damaged(&key, "a name in the metadata has 70000 bytes, the most is 65535");
    let value = |kind, bytes: &[u8]| gguf_file(3, &[entry("key", kind, bytes)], &[], &[]);
    let left = |count| format!("metadata `key` would take {count} bytes, 17 are left");
    gguf_damaged(&value(8, &u64::MAX.to_le_bytes()), &left("18446744073709551615"));
    let array = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    let left = |count| format!("metadata `key` would take {count} bytes, 13 are left");
    gguf_damaged(&value(9, &array(0, 1 << 40)), &left("1099511627776"));
    gguf_damaged(&value(9, &array(12, 1 << 40)), &left("8796093022208"));
    gguf_damaged(&value(9, &array(12, u64::MAX)), &left("18446744073709551615"));
    gguf_damaged(
        &value(9, &array(8, u64::MAX)),
        "metadata `key` would take 8 bytes, 5 are left",
    );
    gguf_damaged(
        &value(9, &array(9, 1)),
        "metadata `key` is an array of arrays, expected numbers or texts",
    );
    gguf_damaged(
        &value(9, &array(13, 1)),
        "metadata `key` has elements of the type 13, expected 0 to 12",
    );
    gguf_damaged(&value(13, &[0; 8]), "metadata `key` has the type 13, expected 0 to 12");
    let tensor = [&u64::MAX.to_le_bytes()[..], &[0; 24]].concat();
    gguf_damaged(
        &with(&[tensor]),
        "the name of a tensor would take 18446744073709551615 bytes, 160 are left",
    );
}

#[test]
fn a_tensor_that_no_gguf_file_can_have_is_named() {
    let known = "fetch the model in one of F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, \
                 IQ4_NL, IQ4_XS";
    for (number, name) in [(16, "IQ2_XXS"), (28, "F64"), (39, "MXFP4")] {
        let reason = format!("tensor `a` is stored in {name}, which is not read here; {known}");
        gguf_refused(&with(&[described("a", &[32], number, 0)]), &reason);
    }
    let unknown = format!("tensor `a` has the type 99, which is not known here; {known}");
    gguf_refused(&with(&[described("a", &[32], 99, 0)]), &unknown);
    let sides = |sides: &[u64]| with(&[described("a", sides, 0, 0)]);
    gguf_damaged(&sides(&[]), "tensor `a` has 0 sides, expected 1 to 4");
    gguf_damaged(&sides(&[1; 5]), "tensor `a` has 5 sides, expected 1 to 4");
    gguf_damaged(&sides(&[4, 0]), "tensor `a` has a side of 0, expected 1 to 2147483648");
    gguf_damaged(
        &sides(&[1 << 32]),
        "tensor `a` has a side of 4294967296, expected 1 to 2147483648",
    );
    gguf_damaged(
        &sides(&[1 << 31; 4]),
        "tensor `a` would end at 18446744073709551615, the file has 224 bytes",
    );
    let rows = |columns, kind| with(&[described("a", &[columns, 1], kind, 0)]);
    gguf_damaged(
        &rows(33, 8),
        "tensor `a` has rows of 33, Q8_0 asks for a multiple of 32",
    );
    gguf_damaged(
        &rows(128, 12),
        "tensor `a` has rows of 128, Q4_K asks for a multiple of 256",
    );
}

#[test]
fn tensors_of_a_gguf_file_lie_apart_and_within_it() {
    let at = |offset| with(&[described("a", &[16], 0, offset)]);
    gguf_damaged(&at(96), "tensor `a` would end at 224, the file has 192 bytes");
    gguf_damaged(
        &at(1 << 40),
        "tensor `a` would end at 1099511627904, the file has 192 bytes",
    );
    gguf_damaged(
        &at(u64::MAX - 31),
        "tensor `a` would end at 18446744073709551615, the file has 192 bytes",
    );
    gguf_damaged(&at(8), "tensor `a` is at 8, expected a multiple of 32");
    let pair = |name: &str, offset| with(&[described("a", &[16], 0, 0), described(name, &[16], 0, offset)]);
    gguf_damaged(&pair("b", 32), "tensors `a` and `b` overlap");
    gguf_damaged(&pair("b", 0), "tensors `a` and `b` overlap");
    gguf_damaged(&pair("a", 64), "tensor `a` is there twice");
    assert!(Weights::open(written(&pair("b", 64)).1).is_ok_and(|weights| weights.names() == ["a", "b"]));
}

#[test]
fn texts_of_a_gguf_file_are_utf_8_and_names_are_given_once() {
    gguf_damaged(
        &with(&[described(b"\xff", &[16], 0, 0)]),
        "the name of a tensor is not UTF-8",
    );
    let metadata = |entries: &[Vec<u8>]| gguf_file(3, entries, &[], &[]);
    gguf_damaged(
        &metadata(&[entry(b"\xc3\x28", 7, &[1])]),
        "a name in the metadata is not UTF-8",
    );
    gguf_damaged(
        &metadata(&[entry("key", 8, &text(b"\xff"))]),
        "metadata `key` is not UTF-8",
    );
    gguf_damaged(
        &metadata(&[entry("key", 7, &[1]), entry("key", 0, &[2])]),
        "metadata `key` is there twice",
    );
}

#[test]
fn the_alignment_of_a_gguf_file_is_a_power_of_two() {
    let aligned = |kind, value: &[u8]| gguf_file(3, &[entry("general.alignment", kind, value)], &[], &[]);
    gguf_damaged(
        &aligned(4, &48_u32.to_le_bytes()),
        "`general.alignment` is 48, expected a power of two",
    );
    gguf_damaged(
        &aligned(4, &[0; 4]),
        "`general.alignment` is 0, expected a power of two",
    );
    gguf_damaged(
        &aligned(8, &text("32")),
        "`general.alignment` is no whole number, expected a power of two",
    );
    let entries = [entry("general.alignment", 10, &(1_u64 << 63).to_le_bytes())];
    let far = gguf_file(3, &entries, &[described("a", &[1], 0, 0)], &[0; 64]);
    gguf_damaged(
        &far,
        "tensor `a` would end at 9223372036854775812, the file has 160 bytes",
    );
}

/// Returns the parts of a layer [2, 64] in NF4, with blocks of 64; in double quantisation with blocks of 1
/// scale.
fn nf4(nested: bool) -> Vec<Part> {
    let state = match nested {
        false => r#"{"quant_type":"nf4","blocksize":64,"shape":[2,64]}"#,
        true => r#"{"quant_type":"nf4","blocksize":64,"shape":[2,64],"nested_blocksize":1,"nested_offset":0.5}"#,
    };
    let mut parts = vec![
        Part::bytes("l.weight", "U8", &[64, 1], &[0x1f; 64]),
        Part::floats("l.weight.quant_map", &[0.0; 16]),
        Part::bytes(STATE, "U8", &[state.len() as u64], state.as_bytes()),
    ];
    if nested {
        parts.push(Part::bytes("l.weight.absmax", "U8", &[2], &[0, 255]));
        parts.push(Part::floats("l.weight.nested_absmax", &[1.0, 2.0]));
        parts.push(Part::floats("l.weight.nested_quant_map", &[0.25; 256]));
    } else {
        parts.push(Part::floats("l.weight.absmax", &[1.0, 2.0]));
    }
    parts
}

const STATE: &str = "l.weight.quant_state.bitsandbytes__nf4";

/// Replaces the part with the same name.
fn replaced(parts: &[Part], part: &Part) -> Vec<Part> {
    let others = parts.iter().filter(|other| other.0 != part.0).cloned();
    others.chain([part.clone()]).collect()
}

fn without(parts: &[Part], name: &str) -> Vec<Part> {
    parts.iter().filter(|part| part.0 != name).cloned().collect()
}

/// Checks that a safetensors file is refused because of the quantised weight `l.weight`.
#[track_caller]
fn weight_refused(parts: &[Part], reason: &str) {
    let expected = format!(
        "cannot use the quantised weight `l.weight`: {reason}; the file is damaged or incomplete, fetch it again"
    );
    assert_eq!(refusal(&safetensors_file(parts)), expected);
}

#[test]
fn a_sound_weight_in_four_bits_is_read() {
    for (nested, first, last) in [(false, 1.0, 2.0), (true, 0.75, 1.0)] {
        let (_folder, path) = written(&safetensors_file(&nf4(nested)));
        let weights = Weights::open(path).unwrap();
        let weight = weights.tensor("l.weight", &[2, 64]).unwrap();
        // Codes 1 and 15: the second level of the table, and the last, 1.
        assert_eq!(
            [weight.double_value(&[0, 1]), weight.double_value(&[1, 63])],
            [first, last]
        );
        weights.finish().unwrap();
    }
}

#[test]
fn a_state_of_four_bits_that_cannot_be_read_is_quoted() {
    let state = |text: &str| {
        replaced(
            &nf4(false),
            &Part::bytes(STATE, "U8", &[text.len() as u64], text.as_bytes()),
        )
    };
    let refused = |text: &str, reason: &str| weight_refused(&state(text), &format!("`{STATE}` {reason}"));
    refused("nf4", "is no description of one: expected ident at line 1 column 2");
    refused(
        "",
        "is no description of one: EOF while parsing a value at line 1 column 0",
    );
    refused(
        "{}",
        "is no description of one: missing field `quant_type` at line 1 column 2",
    );
    refused(
        r#" ["nf4", 64, [2, 64], 0, 0.0]"#,
        "is a list, expected an object in braces, `{…}`",
    );
    let state_json = |kind: &str, block: &str, shape: &str| {
        format!(r#"{{"quant_type":"{kind}","blocksize":{block},"shape":{shape}}}"#)
    };
    refused(
        &state_json("int4", "64", "[2,64]"),
        "names the type `int4`, expected nf4 or fp4",
    );
    refused(
        &state_json("nf4", "0", "[2,64]"),
        "describes blocks of 0 elements, expected at least 1",
    );
    let negative = "is no description of one: invalid value: integer `-1`, expected usize at line 1 column 34";
    refused(&state_json("nf4", "-1", "[2,64]"), negative);
    let takes =
        |shape: &str, bytes| format!("describes the shape {shape}, which takes {bytes} bytes, the weight has 64");
    refused(&state_json("nf4", "64", "[2,62]"), &takes("[2, 62]", 62));
    refused(&state_json("nf4", "64", "[]"), &takes("[]", 1));
    refused(
        &state_json("nf4", "64", "[4294967296,2]"),
        &takes("[4294967296, 2]", 4_294_967_296_u64),
    );
    let sides = |shape: &str| format!("describes the shape {shape}, expected sides from 1 on");
    refused(&state_json("nf4", "64", "[-2,-64]"), &sides("[-2, -64]"));
    refused(&state_json("nf4", "64", "[0,64]"), &sides("[0, 64]"));
    refused(
        &state_json("nf4", "64", "[9223372036854775807,4,64]"),
        "describes the shape [9223372036854775807, 4, 64], whose elements no file can hold",
    );
    let odd = "describes the shape [128, 1, 1], NF4 asks for rows of a multiple of 2";
    refused(&state_json("nf4", "64", "[128,1,1]"), odd);
    let dtype = replaced(&nf4(false), &Part::bytes(STATE, "C64", &[1], &[0; 8]));
    let expected = format!(
        "tensor `{STATE}` has dtype C64; expected one of F64, F32, F16, BF16, F8_E4M3, F8_E5M2, fetch the file in one of them"
    );
    assert_eq!(refusal(&safetensors_file(&dtype)), expected);
}

#[test]
fn a_weight_in_four_bits_asks_for_all_its_factors() {
    let (plain, nested) = (nf4(false), nf4(true));
    for (parts, part) in [
        (&plain, "quant_map"),
        (&plain, "absmax"),
        (&nested, "nested_absmax"),
        (&nested, "nested_quant_map"),
    ] {
        let name = format!("l.weight.{part}");
        weight_refused(&without(parts, &name), &format!("`{name}` is missing"));
    }
    weight_refused(
        &without(&plain, "l.weight"),
        &format!("`{STATE}` is there, the weight is not"),
    );
    let absmax = |values: &[f32]| replaced(&plain, &Part::floats("l.weight.absmax", values));
    weight_refused(
        &absmax(&[1.0]),
        "`l.weight.absmax`: expected 2 values, one for each block of 64, got 1",
    );
    weight_refused(
        &absmax(&[]),
        "`l.weight.absmax`: expected 2 values, one for each block of 64, got 0",
    );
    weight_refused(
        &replaced(&nested, &Part::bytes("l.weight.absmax", "U8", &[3], &[0; 3])),
        "`l.weight.absmax`: expected 2 values, one for each block of 64, got 3",
    );
    weight_refused(
        &replaced(&nested, &Part::floats("l.weight.absmax", &[0.0, 1e9])),
        "`l.weight.absmax` is of F32, expected U8",
    );
    weight_refused(
        &replaced(&nested, &Part::floats("l.weight.nested_absmax", &[1.0])),
        "`l.weight.nested_absmax`: expected 2 values, one for each block of 1, got 1",
    );
    weight_refused(
        &replaced(&nested, &Part::floats("l.weight.nested_quant_map", &[0.0; 255])),
        "`l.weight.nested_quant_map`: expected 256 values, one for each code, got 255",
    );
}

#[test]
fn factors_of_rows_are_as_many_as_the_rows() {
    let int8 = |maxima: &[f32]| {
        [
            Part::bytes("l.weight", "I8", &[4, 2], &[1; 8]),
            Part::floats("l.SCB", maxima),
        ]
    };
    weight_refused(&int8(&[1.0; 3]), "`l.SCB`: expected 4 values, one for each row, got 3");
    weight_refused(&int8(&[1.0; 8]), "`l.SCB`: expected 4 values, one for each row, got 8");
    for (dtype, name) in [("F8_E4M3", "l.scale_weight"), ("F8_E5M2", "l.weight_scale")] {
        let fp8 = |factors: &[f32]| {
            [
                Part::bytes("l.weight", dtype, &[4, 2], &[1; 8]),
                Part::floats(name, factors),
            ]
        };
        weight_refused(
            &fp8(&[1.0; 2]),
            &format!("`{name}`: expected 1 value, or one for each of 4 rows, got 2"),
        );
        weight_refused(
            &fp8(&[]),
            &format!("`{name}`: expected 1 value, or one for each of 4 rows, got 0"),
        );
        for count in [1, 4] {
            let (_folder, path) = written(&safetensors_file(&fp8(&vec![0.5; count])));
            let weights = Weights::open(path).unwrap();
            let _ = weights.tensor("l.weight", &[4, 2]).unwrap();
            weights.finish().unwrap();
        }
    }
}

#[test]
fn factors_of_a_weight_with_one_column_are_for_its_rows() {
    let parts = [
        Part::bytes("l.weight", "I8", &[3, 1], &[127; 3]),
        Part::floats("l.SCB", &[1.0, 2.0, 3.0]),
    ];
    let (_folder, path) = written(&safetensors_file(&parts));
    let weight = Weights::open(path).unwrap().tensor("l.weight", &[3, 1]).unwrap();
    assert!((weight.double_value(&[2, 0]) - 3.0).abs() < 1e-6);
}

#[test]
fn an_empty_tensor_with_the_longest_sides_is_read() {
    let header = r#"{"a":{"dtype":"U8","shape":[2147483648,2147483648,1,0],"data_offsets":[0,0]}}"#;
    let (_folder, path) = written(&with_header(header, &[]));
    assert_eq!(Weights::open(path).unwrap().raw("a").unwrap().numel(), 0);
}
