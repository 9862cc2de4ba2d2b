"""Writes tests/golden/tokenizers: tiny tokenizers of every kind, trained on generated text by the wheels tokenizers and
sentencepiece, with the ids and texts that those wheels give. The same bytes on every run (the packages' versions given).

    python tests/golden/make_tokenizers.py [FOLDER]

Needs: tokenizers 0.23, sentencepiece 0.2.3, protobuf, gguf 0.19."""

import collections
import json
import pathlib
import random
import sys
import tempfile

import gguf
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "text"))
import tokenizer_differential as differential  # noqa: E402

FOLDER = (pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE) / "tokenizers"
GPT2 = differential.GPT2
LLAMA3 = differential.TIKTOKEN % r"\p{N}{1,3}"
QWEN2 = differential.TIKTOKEN % r"\p{N}"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
HEAD, TAIL = r"[^\r\n\p{L}\p{N}]?", r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT4O = (f"{HEAD}{UPPER}*{LOWER}+{differential.CONTRACTIONS}?|{HEAD}{UPPER}+{LOWER}*{differential.CONTRACTIONS}?"
         rf"|\p{{N}}{{1,3}}|{TAIL}")
KIMI = GPT4O.replace(UPPER, UPPER[:-1] + r"&&[^\p{Han}]]").replace(LOWER, LOWER[:-1] + r"&&[^\p{Han}]]")
KIMI = r"[\p{Han}]+|" + KIMI
SPECIALS = ["<s>", "</s>", "<|im_end|>", "<|x|>"]


def corpus():
    return [t.decode() for t in differential.texts(3000, 7, [], 0)]


def sample_texts():
    """Texts of at most 90 bytes: words, scripts, spaces, code, specials."""
    found = [t.decode() for t in differential.texts(2500, 11, SPECIALS + ["[MASK]", "New York", " the"], 0)]
    return [t for t in found if len(t.encode()) <= 90][:190]


def with_common_characters(count):
    """The training texts with only their most common characters: a small vocabulary then has room for longer pieces."""
    common = {c for c, _ in collections.Counter("".join(TRAINING)).most_common(count)}
    return ["".join(c for c in t if c in common and c not in "\n\r\0") for t in TRAINING]


TRAINING, TEXTS = corpus(), sample_texts()
written = {}


def write(name, value):
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / name).write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=False) + "\n")


def expected(encode, decode, encode_special):
    ids = [encode(t) for t in TEXTS]
    return {"ids": ids, "decoded": [decode(i) for i in ids], "special": [encode_special(t) for t in TEXTS[:8]]}


def keep(name, tokenizer):
    spec = json.loads(tokenizer.to_str())
    write(f"{name}.json", spec)
    tokenizer = Tokenizer.from_file(str(FOLDER / f"{name}.json"))
    written[f"{name}.json"] = expected(lambda t: tokenizer.encode(t, add_special_tokens=False).ids,
                                       lambda i: tokenizer.decode(i, skip_special_tokens=True),
                                       lambda t: tokenizer.encode(t).ids)


def byte_level(name, pre, normalizer=None, size=500, ignore_merges=False, finish=None):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TRAINING, trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=SPECIALS, show_progress=False))
    if finish:
        finish(tokenizer)
    keep(name, tokenizer)


def bytes_only():
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def frame(tokenizer):
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)])


def roberta(tokenizer):
    tokenizer.add_special_tokens([AddedToken("[MASK]", lstrip=True, special=True)])
    tokenizer.add_tokens([AddedToken("New York", normalized=True), AddedToken("is", single_word=True, normalized=False),
                          AddedToken("+", rstrip=True, normalized=False)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))


def make_byte_level():
    pre = pre_tokenizers
    byte_level("gpt2", pre.ByteLevel(add_prefix_space=False))
    byte_level("llama3", pre.Sequence([split(LLAMA3), bytes_only()]), ignore_merges=True, finish=frame)
    byte_level("qwen2", pre.Sequence([split(QWEN2), bytes_only()]), normalizer=normalizers.NFC())
    byte_level("roberta", pre.ByteLevel(add_prefix_space=True), normalizer=normalizers.Lowercase(), finish=roberta)
    byte_level("starcoder", pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]))


def word_counts(normalizer, characters):
    """Words of the training text. (The trainers of BPE with a suffix and of WordPiece number ties at random.)"""
    counts = collections.Counter()
    for text in with_common_characters(characters):
        counts.update(w for w, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normalizer.normalize_str(text)))
    return counts


def make_other_bpe():
    normalizer = normalizers.BertNormalizer()
    words = {tuple(w[:-1]) + (w[-1] + "</w>",): n for w, n in word_counts(normalizer, 200).items()}
    vocab = ["<unk>"] + sorted({c for w in words for c in w})
    merges = []
    while len(merges) < 400:
        pairs = collections.Counter()
        for word, n in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += n
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        if best[0] + best[1] not in vocab:
            vocab.append(best[0] + best[1])
        merged = {}
        for word, n in words.items():
            out = []
            for c in word:
                if out and (out[-1], c) == best:
                    out[-1] += c
                else:
                    out.append(c)
            merged[tuple(out)] = merged.get(tuple(out), 0) + n
        words = merged
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(vocab)}, merges, unk_token="<unk>", end_of_word_suffix="</w>", fuse_unk=True))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    keep("openai_gpt", tokenizer)


def make_wordpiece():
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    for name, lowercase in (("bert_uncased", True), ("bert_cased", False)):
        normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        pieces = collections.Counter()
        for word, n in word_counts(normalizer, 220).items():
            for i in range(len(word)):
                for k in range(i + 1, min(i + 6, len(word)) + 1):
                    pieces[("##" if i else "") + word[i:k]] += n * (k - i + 20 * (k - i == 1))
        vocab = specials + sorted(pieces, key=lambda p: (-pieces[p], p))[:900]
        tokenizer = Tokenizer(models.WordPiece({t: i for i, t in enumerate(vocab)}, unk_token="[UNK]", max_input_chars_per_word=20))
        tokenizer.normalizer = normalizer
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        tokenizer.add_special_tokens(specials)
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        keep(name, tokenizer)


def make_word_level():
    words = [w for w, _ in sorted(word_counts(normalizers.Lowercase(), 200).items(), key=lambda c: (-c[1], c[0]))[:300]]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(["<unk>", *words])}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 301), ("</s>", 302)])
    keep("word_level", tokenizer)


RULES = {"ﬁ": "fi", "Ⅻ": "XII", "\u00a0": " ", "\u3000": " ", "…": "...", "№": "No", "\u0085": " ", "\t": " ", "\n": " ", "\u212b": "\u00c5", "\u200b": ""}


def train_sentencepiece(folder, name, **options):
    rules = folder / "rules.tsv"
    rules.write_text("".join(" ".join(f"{ord(c):X}" for c in a) + "\t" + " ".join(f"{ord(c):X}" for c in b) + "\n" for a, b in RULES.items()))
    text = folder / "corpus.txt"
    text.write_text("\n".join(with_common_characters(400)))
    if options.pop("normalize"):
        options["normalization_rule_tsv"] = str(rules)
    else:
        options["normalization_rule_name"] = "identity"
    sentencepiece.SentencePieceTrainer.train(input=str(text), model_prefix=str(folder / name), character_coverage=0.99,
                                             minloglevel=2, num_threads=1, **options)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((folder / f"{name}.model").read_bytes())
    return proto


def write_gguf(name, proto, model):
    writer = gguf.GGUFWriter(FOLDER / name, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list([p.piece for p in proto.pieces])
    writer.add_token_scores([p.score for p in proto.pieces])
    writer.add_token_types([p.type for p in proto.pieces])
    writer.add_add_space_prefix(proto.normalizer_spec.add_dummy_prefix)
    writer.add_unk_token_id(proto.trainer_spec.unk_id)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(model == "t5")
    writer.add_remove_extra_whitespaces(proto.normalizer_spec.remove_extra_whitespaces)
    if proto.normalizer_spec.precompiled_charsmap:
        writer.add_precompiled_charsmap(proto.normalizer_spec.precompiled_charsmap)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    sp = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    bos = [1]
    eos = [2] if model == "t5" else []
    control = ["<s>", "</s>", "<unk>"]
    # The wheel does not know special tokens in a text: such texts have no expectation.
    known = lambda t: not any(c in t for c in control)
    written[name] = expected(lambda t: sp.encode(t) if known(t) else None,
                             lambda i: sp.decode(i) if i is not None else None,
                             lambda t: bos + sp.encode(t) + eos if known(t) else None)


def make_sentencepiece():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        bpe = train_sentencepiece(folder, "bpe", model_type="bpe", vocab_size=1000, byte_fallback=True, normalize=False,
                                  remove_extra_whitespaces=False, user_defined_symbols=["▁▁", "▁▁▁▁", "<|x|>"], add_dummy_prefix=False)
        write_gguf("sentencepiece_gemma.gguf", bpe, "llama")
        llama = train_sentencepiece(folder, "llama", model_type="bpe", vocab_size=1000, byte_fallback=True, normalize=False,
                                    remove_extra_whitespaces=False)
        write_gguf("sentencepiece_llama.gguf", llama, "llama")
        make_metaspace_bpe(llama)
        unigram = train_sentencepiece(folder, "unigram", model_type="unigram", vocab_size=1000, normalize=True)
        write_gguf("sentencepiece_unigram.gguf", unigram, "t5")
        make_unigram("unigram", unigram, False)
        fallback = train_sentencepiece(folder, "fallback", model_type="unigram", vocab_size=1000, byte_fallback=True, normalize=True)
        make_unigram("unigram_bytes", fallback, True)


def make_metaspace_bpe(proto):
    """As Llama 2's tokenizer.json: merges are the pairs of pieces that make a piece, best score first."""
    vocab = {p.piece: i for i, p in enumerate(proto.pieces)}
    merges = []
    for piece, i in vocab.items():
        pairs = [(piece[:k], piece[k:]) for k in range(1, len(piece)) if piece[:k] in vocab and piece[k:] in vocab]
        merges += [(-proto.pieces[i].score, vocab[a], vocab[b], (a, b)) for a, b in pairs if proto.pieces[i].type == 1]
    tokenizer = Tokenizer(models.BPE(vocab, [m[3] for m in sorted(merges)], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    keep("llama2", tokenizer)


def make_unigram(name, proto, byte_fallback):
    tokenizer = Tokenizer(models.Unigram([(p.piece, p.score) for p in proto.pieces], 0, byte_fallback))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
                                                 normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always" if byte_fallback else "first")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace("▁")])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<|x|>"])
    keep(name, tokenizer)


def make_parts():
    """Single steps: what each normalizer, pre-tokenizer and decoder does to a text."""
    pre, norm = pre_tokenizers, normalizers
    steps = [pre.ByteLevel(), pre.ByteLevel(add_prefix_space=False), pre.Whitespace(), pre.WhitespaceSplit(), pre.BertPreTokenizer(),
             pre.Punctuation(), pre.Metaspace(), pre.Metaspace(prepend_scheme="first"), pre.Metaspace("_", "never", split=False),
             pre.Digits(True), pre.Digits(False), pre.CharDelimiterSplit("a"), pre.FixedLength(3), pre.Split(" ", "merged_with_previous")]
    behaviors = ["removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"]
    steps += [split(r"\s|\d", b, i) for b in behaviors for i in (False, True)]
    steps += [pre.Punctuation(b) for b in behaviors]
    patterns = [LLAMA3, QWEN2, GPT4O, KIMI, r"\d{1,3}(?=(?:\d{3})*\b)", r"(?=(\d{3})+(?!\d))", r"\p{N}{1,3}+", r"\w+|[^\w\s]+", r"\b",
                r"\p{N}{2}+", r"^.|.$", r"[[:punct:]]+", r"\h+", r"[^(\s|[.,!?…。，、।۔،])]+", r"(?m:a.)", r"[a-z&&[^aeiou]]+", r"\p{^L}+",
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
                r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"x*", r"\p{Hiragana}+|[\p{Katakana}ー]+", r"\P{L}", r"[\P{L}\d]"]
    steps += [split(p) for p in patterns]
    r = random.Random(3)
    texts = r.sample(TEXTS, 14) + ["a1234567 12 7a 1234", "İıſ ǅ e\u0301 ﬁ Å 각 ≠ ½²Ⅷ", " \t\n x\r\n\u00a0\u3000y  ", "don't I'LL we'Ve 'ſ x's'", "中文ab한국어カタ", ""]

    def words(step, text):
        return [w for w, _ in step.pre_tokenize_str(text)]

    cases = {"pre_tokenizers": [], "normalizers": [], "decoders": []}
    for step in steps:
        spec = json.loads(step.__getstate__())
        cases["pre_tokenizers"].append([spec, [words(step, t) for t in texts]])
    forms = [norm.NFC(), norm.NFD(), norm.NFKC(), norm.NFKD(), norm.Lowercase(), norm.Strip(), norm.Strip(left=False), norm.StripAccents(),
             norm.Replace("a", "bc"), norm.Replace(Regex(r"\s+"), " "), norm.Prepend("▁"), norm.Nmt(), norm.ByteLevel(), norm.BertNormalizer(),
             norm.BertNormalizer(lowercase=False, strip_accents=True), norm.BertNormalizer(False, False, False, True),
             norm.Sequence([norm.NFD(), norm.StripAccents(), norm.Lowercase()])]
    for step in forms:
        cases["normalizers"].append([json.loads(step.__getstate__()), [step.normalize_str(t) for t in texts]])
    lists = [["▁Hello", "▁wor", "ld", "▁▁", "!"], ["Hel", "##lo", "world", "do", "n't", ".", "##s"], ["ab</w>", "c", "d</w>"],
             ["ĠHello", "Ġworld", "Ċ", "ðŁĻĤ"], ["<pad>", "h", "h", "<pad>", "e", "e", "l", "l", "<pad>", "l", "o", "|", "|", " ."], ["<0xF0>", "<0x9F>", "<0x99>", "<0x82>", "a"], []]
    outs = [decoders.Metaspace(), decoders.Metaspace(prepend_scheme="never"), decoders.WordPiece(), decoders.WordPiece("##", False),
            decoders.BPEDecoder(), decoders.CTC(), decoders.CTC("c", "▁", False), decoders.ByteLevel(), decoders.Fuse(), decoders.Replace("l", "L"), decoders.Strip("▁", 1, 0),
            decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])]
    for step in outs:
        cases["decoders"].append([json.loads(step.__getstate__()), [step.decode(list(t)) for t in lists]])
    write("parts.json", {"texts": texts, "lists": lists, **cases})


def main():
    make_byte_level()
    make_other_bpe()
    make_wordpiece()
    make_word_level()
    make_sentencepiece()
    make_parts()
    write("expected.json", {"texts": TEXTS, "tokenizers": written})


if __name__ == "__main__":
    main()
