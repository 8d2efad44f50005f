"""tokens.json: token ids of awkward prompts, by the tokenizers that the reference pipelines use.

CLIPTokenizer (the slow one, without ftfy, as constructed by FluxKontextPipeline and black-forest-labs/flux)
and T5TokenizerFast of transformers 4.57.6. Two pairs of tokenizers: the tiny ones of tiny_tokenizers.py, whose
files are stored too, and the published ones, which are read from `../shared/assets/tokenizers`.
"""

import json
import tempfile
from pathlib import Path

from transformers import CLIPTokenizer, T5TokenizerFast

import fixture_io
import tiny_tokenizers

PUBLISHED = fixture_io.FOLDER.parents[2] / "shared/assets/tokenizers"
PROMPTS = [
    "",
    " ",
    "a photo of a cat",
    "Make the cat wear a red hat, keep the background unchanged.",
    "MAKE IT WINTER",
    "don't, can't, I'll, we've, she's, they're, I'd, I'm, 'twas, rock 'n' roll, DON'T, it''s",
    "replace the logo with the word 'Rust' and \"crab\" in \u201ccurly\u201d \u2018quotes\u2019",
    "caf\u00e9 na\u00efve \u00c5ngstr\u00f6m stra\u00dfe \u0130stanbul",
    "cafe\u0301 with a combining accent, A\u030a, and \ufb01 ligature",
    "a dog \U0001f415 and a family \U0001f468\u200d\U0001f469\u200d\U0001f467 wave \U0001f44b\U0001f3fd flag \U0001f1eb\U0001f1f7 keycap 1\ufe0f\u20e3",
    "\u732b\u3068\u72ac with 1\u3064 \u7ea2\u8272\u5e3d\u5b50abc, \ud55c\uad6d\uc5b4, \u0627\u0644\u0639\u0631\u0628\u064a\u0629, \u05e2\u05d1\u05e8\u05d9\u05ea, \u0939\u093f\u0928\u094d\u0926\u0940, \u0e44\u0e17\u0e22",
    "\u039f\u0394\u039f\u03a3 \u03a3\u0391\u03a3 \u03a3 \u03b1\u03a3. \u03a3\u03a3",
    "12345 3.14 1,000 2nd 50% $9.99 \u00bd \u2167 \u0663",
    "pneumonoultramicroscopicsilicovolcanoconiosis supercalifragilisticexpialidocious",
    "many   spaces\t\ttabs\nnewline\r\nreturn\u00a0nbsp\u3000wide  ",
    "fish &amp; chips &lt;b&gt; &quot;x&quot; &#39;y&#39; <br/>",
    "null\x00 bell\x07 escape\x1b[0m zero\u200bwidth soft\u00adhyphen bom\ufeff bad\ufffd",
    "end <|endoftext|> middle <|startoftext|> </s> <pad> <extra_id_0> <unk>",
    "!!!??? ... --- ___ #hashtag @user https://example.org/a?b=c&d=e file_name.png",
    "(cinematic:1.3), [soft light], {a|b}, \\n * ~ ^ `code` \u2026 \u2013 \u2014",
    "\U0001d40c\U0001d41a\U0001d42d\U0001d421 \uff26\uff35\uff2c\uff2c \u212b \u00b2 \u2460 \u01c5 \u017f'\u017f",
    "a lighthouse at dusk, " * 40,
]
LENGTHS = {"clip": [77, 10], "t5": [512, 256, 10]}


def cases(clip, t5):
    """Returns ids with special tokens of every prompt, whole, and padded or truncated to each length."""
    out = {}
    for name, tokenizer in [("clip", clip), ("t5", t5)]:
        whole = [tokenizer(prompt).input_ids for prompt in PROMPTS]
        fitted = {n: tokenizer([PROMPTS[3], PROMPTS[-1]], padding="max_length", truncation=True, max_length=n).input_ids for n in LENGTHS[name]}
        out[name] = {"pad": tokenizer.pad_token_id, "whole": whole, "fitted": fitted}
    return out


def tiny():
    """Returns the cases of the tiny tokenizers, with their files."""
    with tempfile.TemporaryDirectory() as folder:
        clip = tiny_tokenizers.clip(Path(folder))
        vocab = json.loads((Path(folder) / "vocab.json").read_text(encoding="utf-8"))
        merges = (Path(folder) / "merges.txt").read_text(encoding="utf-8").splitlines()
        t5 = tiny_tokenizers.t5()
        out = cases(clip, t5)
    out["clip"] |= {"vocab.json": vocab, "merges.txt": merges}
    out["t5"] |= {"tokenizer.json": json.loads(t5.backend_tokenizer.to_str())}
    return out


def published():
    if not PUBLISHED.is_dir():
        raise FileNotFoundError(f"{PUBLISHED} is needed: the folders clip and t5 of FLUX.1's tokenizers")
    return cases(CLIPTokenizer.from_pretrained(PUBLISHED / "clip"), T5TokenizerFast.from_pretrained(PUBLISHED / "t5"))


def make():
    out = {"prompts": PROMPTS, "tiny": tiny(), "published": published()}
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in out.items())
    (fixture_io.FOLDER / "tokens.json").write_text("{\n" + lines + "\n}\n")
