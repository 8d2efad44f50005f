"""Real tokenizers of a few hundred entries: CLIP's byte-level BPE and T5's Unigram, trained on a few sentences."""

import json
from collections import Counter

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPTokenizer, T5TokenizerFast
from transformers.models.clip.tokenization_clip import bytes_to_unicode

SENTENCES = [
    "make the cat wear a red hat, keep the background unchanged.",
    "replace the logo with the word 'rust' and keep the cup",
    "a lighthouse at dusk, oil painting, waves and a stormy sky",
    "turn the photo into a watercolour painting of the same street",
    "change the season to winter: snow on the roofs, warm light in the windows",
    "remove the people from the background, the dog stays where it is",
    "blurry, low quality, distorted picture",
]


def _merge(symbols, pair):
    """Returns `symbols` with each adjacent `pair` merged, left to right."""
    out = []
    for symbol in symbols:
        joined = out and (out[-1], symbol) == pair
        out[-1:] = [out[-1] + symbol] if joined else out[-1:] + [symbol]
    return tuple(out)


def clip_merges(count):
    """Returns `count` BPE merges; ties go to the lexicographically first pair."""
    words = Counter(word for sentence in SENTENCES for word in sentence.replace(",", " ,").replace(".", " .").split())
    words = {(*word[:-1], word[-1] + "</w>"): n for word, n in words.items()}
    merges = []
    for _ in range(count):
        pairs = Counter()
        for symbols, n in words.items():
            for pair in zip(symbols, symbols[1:]):
                pairs[pair] += n
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = {_merge(symbols, best): n for symbols, n in words.items()}
    return merges


def clip(folder, merges=120):
    """Writes a CLIPTokenizer of 512 byte symbols, the merges and two special tokens; the end token has the highest id."""
    folder.mkdir(parents=True, exist_ok=True)
    symbols = list(bytes_to_unicode().values())
    pairs = clip_merges(merges)
    tokens = symbols + [s + "</w>" for s in symbols] + ["".join(p) for p in pairs] + ["<|startoftext|>", "<|endoftext|>"]
    vocab, rules = folder / "vocab.json", folder / "merges.txt"
    vocab.write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False), encoding="utf-8")
    rules.write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs), encoding="utf-8")
    return CLIPTokenizer(str(vocab), str(rules), model_max_length=77)


def _reproducible(tokenizer, specials):
    """Returns the trained Unigram with rounded scores and ordered ties, since the trainer's sums differ from run to run.

    The trainer gives characters it would have dropped scores next to the lowest one, in no fixed order: they
    all get the same score here.
    """
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    lowest = min(score for _, score in pieces[specials:])
    level = lambda score: round(lowest, 1) if score < lowest + 0.05 else round(score, 6)  # noqa: E731
    learned = sorted(((piece, level(score)) for piece, score in pieces[specials:]), key=lambda p: (-p[1], p[0]))
    return models.Unigram([tuple(p) for p in pieces[:specials]] + learned, unk_id=2)


def t5(vocab_size=160):
    """Trains a T5TokenizerFast with <pad> 0, </s> 1, <unk> 2 and T5's own Metaspace; no sentinel tokens."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(left=False, right=True)])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=vocab_size, special_tokens=specials, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.model = _reproducible(tokenizer, len(specials))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0, model_max_length=512)
