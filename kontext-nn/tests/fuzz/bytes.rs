//! Mutations of a file that do not know its format.

use crate::draw::Draw;

/// Replacements for a number in a header's JSON.
const NUMBERS: [&str; 16] = [
    "-1",
    "0",
    "1",
    "2.5",
    "1e400",
    "2147483648",
    "2147483649",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "null",
    "\"x\"",
    "[]",
    "{}",
];

/// Mutates a file in one place. Most mutations are near its beginning, where its header is.
pub(crate) fn change(file: &mut Vec<u8>, draw: &mut Draw) {
    let reach = if draw.once_in(4) {
        file.len()
    } else {
        file.len().min(600)
    };
    let at = draw.below(reach);
    match draw.below(9) {
        0 if !file.is_empty() => file[at] ^= 1 << draw.below(8),
        1 if !file.is_empty() => file[at] = *draw.pick(&[0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'[', b'9', b'-']),
        2 => overwrite(file, at, &draw.edge().to_le_bytes()),
        3 => overwrite(file, at, &(draw.edge() as u32).to_le_bytes()),
        4 => file.truncate(draw.below(file.len() + 1)),
        5 => {
            let count = draw.below(64);
            let bytes = draw.bytes(count);
            file.splice(at..at, bytes);
        }
        6 => {
            file.drain(draw.range(file.len()));
        }
        7 => {
            let copy = file[draw.range(file.len())].to_vec();
            file.splice(at..at, copy);
        }
        _ => number(file, at, draw),
    }
}

fn overwrite(file: &mut [u8], at: usize, bytes: &[u8]) {
    let end = (at + bytes.len()).min(file.len());
    file[at..end].copy_from_slice(&bytes[..end - at]);
}

/// Replaces the next number in digits, and usually corrects the length of the JSON around it.
fn number(file: &mut Vec<u8>, from: usize, draw: &mut Draw) {
    let Some(start) = file[from..]
        .iter()
        .position(u8::is_ascii_digit)
        .map(|offset| from + offset)
    else {
        return;
    };
    let length = file[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let new = draw.pick(&NUMBERS).as_bytes();
    file.splice(start..start + length, new.iter().copied());
    if let Some(header) = file.first_chunk_mut::<8>()
        && !draw.once_in(4)
    {
        let changed = u64::from_le_bytes(*header)
            .wrapping_add(new.len() as u64)
            .wrapping_sub(length as u64);
        *header = changed.to_le_bytes();
    }
}
