#!/usr/bin/env python3
"""Trains byte-level BPE tokenizers with the trainer of the tokenizers library.

  make_bpe.py FOLDER      writes FOLDER/bpe, as it belongs into tests/golden

bpe/texts.jsonl are the texts; bpe/NAME.json the tokenizers that came of them, by NAME's pre-tokenizer, special tokens and
sizes; bpe/ids.json what each makes of some texts. The texts have many pairs that are equally common.
"""
import json
import pathlib
import random
import sys

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
SYLLABLES = ["ba", "ko", "ri", "ten", "shu", "la", "aa", "aaa", "zz", "é", "ñu", "桥", "梁", "ди", "ма", "🙂", "ss", "ing", "the"]
BETWEEN = [" ", " ", " ", " ", "  ", "\n", "\n\n", "\t", ", ", ". ", "'s ", "!?", "->", " 12", "2024", " 1234567 ", "\r\n"]
CASES = {"gpt2": ("gpt2", ["<|endoftext|>"], 700), "llama3": ("llama3", ["<|begin|>", "<|end|>"], 800),
         "exhausted": ("llama3", [], 60000)}


def texts():
    drawn = random.Random(11)
    made = []
    for _ in range(120):
        words = []
        for _ in range(drawn.randrange(1, 60)):
            words.append("".join(drawn.choice(SYLLABLES) for _ in range(drawn.randrange(1, 5))))
            words.append(drawn.choice(BETWEEN))
        made.append("".join(words))
    return made + ["aaaaaaaaaaaaaaa aaaaaaa aaaa", "<|end|> is text here", "a"]


def train(kind, special, size):
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == "llama3":
        words = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                                         pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.pre_tokenizer = words
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def main():
    folder = pathlib.Path(sys.argv[1]) / "bpe"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts()))
    ids = {}
    for name, case in CASES.items():
        tokenizer = train(*case)
        model = json.loads(tokenizer.to_str())["model"]
        tokens = sorted(model["vocab"], key=model["vocab"].get)
        (folder / f"{name}.json").write_text(json.dumps({"tokens": tokens, "merges": model["merges"]}, ensure_ascii=False,
                                                        separators=(",", ":")) + "\n")
        ids[name] = [{"text": text, "ids": tokenizer.encode(text).ids}
                     for text in ("the bakori's 桥梁  12345\n\nзима🙂", "aaaaaaa<|end|> x", "\tñuñu!?\r\n")]
    (folder / "ids.json").write_text(json.dumps(ids, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
