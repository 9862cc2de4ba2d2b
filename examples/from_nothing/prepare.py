#!/usr/bin/env python3
"""Makes a folder to train from nothing in: the King James Bible as documents, a tokenizer, a configuration, rows of tokens.

  prepare.py FOLDER [--vocab-size 257] [--qiao qiao]

Reads what Debian's `bible` prints (package bible-kjv, or --text FILE with lines "Ge1:1 …"). A document is a chapter, a line
a verse; every 20th chapter is held out. FOLDER gets train.jsonl and held_out.jsonl ({"text": …}), init/ (tokenizer and a
Llama's config.json), train_rows.jsonl and held_out_rows.jsonl: the documents, each ended by the end-of-text token, one after
the other and cut into rows of --seq tokens, those of training shuffled by --seed, --epochs times over, so that any trainer
can be fed the same batches. A vocabulary of 257 is the 256 bytes and the end of a text: a model of characters.
"""
import argparse
import json
import pathlib
import random
import re
import subprocess

VERSE = re.compile(r"(.*?)(\d+):(\d+) (.*)")


def chapters(text):
    documents = {}
    for line in text.splitlines():
        match = VERSE.fullmatch(line)
        if match:
            documents.setdefault((match[1], match[2]), []).append(match[4])
    return ["\n".join(verses) + "\n" for verses in documents.values()]


def config(options):
    heads = options.hidden // 32
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32", "vocab_size": options.vocab_size,
            "hidden_size": options.hidden, "intermediate_size": options.hidden * 8 // 3 // 32 * 32,
            "num_hidden_layers": options.layers, "num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": 32,
            "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
            "initializer_range": 0.02, "hidden_act": "silu", "bos_token_id": None, "eos_token_id": 0}


def tokens(options, init, documents):
    """Their ids one after the other, each document with the end-of-text token (id 0) behind it."""
    ids = []
    for document in documents:
        printed = subprocess.run([options.qiao, "tokenize", "-m", init / "tokenizer.json", "--json", "--plain"],
                                 input=document.encode(), stdout=subprocess.PIPE, check=True).stdout
        ids += json.loads(printed) + [0]
    return ids


def rows(ids, length):
    return [ids[at:at + length] for at in range(0, len(ids) - length + 1, length)]


def write(path, lines):
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--vocab-size", type=int, default=257)
    parser.add_argument("--hidden", type=int, default=192, help="a multiple of 32")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seq", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--held-out-rows", type=int, default=160, help="at most, drawn evenly")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", help="file in place of what `bible` prints")
    parser.add_argument("--qiao", default="qiao", help="the program")
    options = parser.parse_args()
    text = (pathlib.Path(options.text).read_text(encoding="utf-8") if options.text else
            subprocess.run(["bible", "-f", "gen1:1-rev22:21"], stdout=subprocess.PIPE, check=True, text=True).stdout)
    documents = chapters(text)
    held_out = documents[19::20]
    training = [document for place, document in enumerate(documents) if place % 20 != 19]
    init = options.folder / "init"
    init.mkdir(parents=True, exist_ok=True)
    write(options.folder / "train.jsonl", [{"text": document} for document in training])
    write(options.folder / "held_out.jsonl", [{"text": document} for document in held_out])
    subprocess.run([options.qiao, "tokenizer", "train", "--data", options.folder / "train.jsonl", "--vocab-size",
                    str(options.vocab_size), "--out", init], check=True)
    (init / "config.json").write_text(json.dumps(config(options), indent=2) + "\n", encoding="utf-8")
    cut = rows(tokens(options, init, training), options.seq)
    kept = rows(tokens(options, init, held_out), options.seq)
    kept = kept[::max(1, -(-len(kept) // options.held_out_rows))]
    draw = random.Random(options.seed)
    order = [row for _ in range(options.epochs) for row in draw.sample(cut, len(cut))]
    write(options.folder / "train_rows.jsonl", [{"tokens": row} for row in order])
    write(options.folder / "held_out_rows.jsonl", [{"tokens": row} for row in kept])
    print(f"{len(training)} chapters to train on, {len(held_out)} held out; {len(cut)} rows of {options.seq} tokens in an epoch, "
          f"{len(kept)} of the held-out ones")


if __name__ == "__main__":
    main()
