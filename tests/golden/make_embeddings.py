#!/usr/bin/env python3
"""Makes the tiny random encoders of tests/golden/encoders, and what Transformers makes of texts with them.

Transformers on PyTorch is the oracle (float32, eager attention, fixed seeds, one text at a time), the tokenizers library
that of the ids, truncation and pairs; pooling is written out here as sentence-transformers' documentation defines it.

  make_embeddings.py FOLDER                  writes FOLDER/encoders
  make_embeddings.py FOLDER --minilm MODEL   and FOLDER/minilm.json, from the directory of all-MiniLM-L6-v2
"""
import argparse
import json
import pathlib

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).resolve().parent
TEXTS = ["The sky is blue.", "", " ", "A bridge carries people over a river; this one carries words.",
         "桥 means bridge. 你好，世界！", "Ünïcödé naïve café", "numbers 0 1 2 42 1000, punctuation?!... (brackets)",
         "один два три", "x" * 150, "word " * 60]
PAIRS = [["where is the bridge?", "A bridge carries people over a river."], ["where is the bridge?", "The sky is blue."],
         ["", "empty query"], ["empty document", ""], ["long query " * 30, "short"], ["short", "long document " * 60],
         ["long query " * 30, "long document " * 30]]
SENTENCES = [
    "The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.", "", " ", "a", "?!",
    "Embeddings map sentences to vectors whose distances tell how close their meanings are.",
    "def add(a, b):\n    return a + b\n", "桥是连接两岸的建筑。", "La tour Eiffel est à Paris.", "Das Wetter ist heute schön.",
    "Привет, как дела?", "これは日本語の文です。", "한국어 문장입니다.", "مرحبا بالعالم", "naïve façade — coöperate",
    "🙂🚀 emoji, and symbols: ∑ ∞ ≠", "http://example.com/path?query=1&other=2", "UPPER lower MiXeD 12345 3.14159",
    "supercalifragilisticexpialidocious " * 3, "The quick brown fox jumps over the lazy dog. " * 12,
    "Long texts are cut at the model's limit, after which nothing counts. " * 40]

SIZES = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, attn_implementation="eager")


def train_tokenizer(bert):
    """A small WordPiece (BERT) or byte-level BPE (RoBERTa) tokenizer with its own frame for pairs."""
    corpus = [text[:80] for text in TEXTS + SENTENCES] * 3
    if bert:
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
        tokenizer.train_from_iterator(corpus, trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
        return tokenizer
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False,
                                                            add_prefix_space=False)
    return tokenizer


def randomize(model, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "LayerNorm.weight" in name or "layer_norm.weight" in name
            parameter.normal_(1.0 if norm else 0.0, 0.2)
    return model.float().eval()


def hidden_states(model, ids, types):
    arguments = dict(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
    if types is not None:
        arguments["token_type_ids"] = torch.tensor([types])
    with torch.no_grad():
        return model(**arguments)


def pool(hidden, mode):
    """hidden [T, C] of one text without padding, as sentence_transformers.models.Pooling defines the modes."""
    if mode == "cls":
        return hidden[0]
    if mode == "max":
        return hidden.max(axis=0)
    if mode == "mean":
        return hidden.mean(axis=0)
    if mode == "mean_sqrt_len_tokens":
        return hidden.sum(axis=0) / np.sqrt(len(hidden))
    if mode == "lasttoken":
        return hidden[-1]
    weights = np.arange(1, len(hidden) + 1)[:, None]  # weightedmean
    return (hidden * weights).sum(axis=0) / weights.sum()


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=None) + "\n", encoding="utf-8")


def rounded(array):
    return [float(f"{x:.8g}") for x in np.asarray(array, np.float64).ravel()]


class Case:
    """One model's folder; `modes` and `dense` make its modules.json."""

    def __init__(self, folder, model, bert, max_length, seed):
        self.folder, self.max_length = folder, max_length
        self.model = randomize(model, seed)
        # Training breaks ties at random: a tokenizer that is committed stays.
        committed = HERE / "encoders" / folder.name / "tokenizer.json"
        self.tokenizer = Tokenizer.from_file(str(committed)) if committed.exists() else train_tokenizer(bert)
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(max_length)  # longest_first; the file does not say so: Qiao's own setting does
        self.typed = getattr(model.config, "type_vocab_size", 0) > 1

    def encode(self, *texts):
        encoded = self.tokenizer.encode(*texts)
        return encoded.ids, encoded.type_ids if self.typed else None

    def embeddings(self, modes, normalize, dense=None):
        config = {f"pooling_mode_{mode}_tokens" if mode in ("max", "mean", "weightedmean") else
                  "pooling_mode_cls_token" if mode == "cls" else f"pooling_mode_{mode}": True for mode in modes}
        modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
        write_json(self.folder / "1_Pooling/config.json", {"word_embedding_dimension": 32, **config})
        write_json(self.folder / "sentence_bert_config.json", {"max_seq_length": self.max_length, "do_lower_case": False})
        order = [mode for mode in ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken") if mode in modes]
        if dense:
            modules.append(("2_Dense", "Dense"))
            torch.manual_seed(5)
            weight, bias = torch.randn(dense, 32 * len(modes)) * 0.2, torch.randn(dense) * 0.2
            write_json(self.folder / "2_Dense/config.json", {"in_features": 32 * len(modes), "out_features": dense, "bias": True,
                                                             "activation_function": "torch.nn.modules.activation.Tanh"})
            from safetensors.torch import save_file
            save_file({"linear.weight": weight, "linear.bias": bias}, self.folder / "2_Dense/model.safetensors")
        if normalize:
            modules.append((f"{len(modules)}_Normalize", "Normalize"))
        write_json(self.folder / "modules.json", [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)])
        entries, rows = [], []
        for text in TEXTS:
            ids, types = self.encode(text)
            hidden = hidden_states(self.model, ids, types).last_hidden_state[0].numpy()
            vector = np.concatenate([pool(hidden.astype(np.float64), mode) for mode in order])
            if dense:
                vector = np.tanh(weight.numpy().astype(np.float64) @ vector + bias.numpy())
            if normalize:
                vector /= np.linalg.norm(vector)
            entries.append({"text": text, "ids": ids, "embedding": rounded(vector)})
            rows.append(hidden)
        np.concatenate(rows).astype("<f4").tofile(self.folder / "hidden.f32")
        write_json(self.folder / "expected.json", {"texts": entries})

    def scores(self):
        write_json(self.folder / "tokenizer_config.json", {"model_max_length": self.max_length})
        entries = []
        for query, document in PAIRS:
            ids, types = self.encode(query, document)
            logits = hidden_states(self.model, ids, types).logits[0].numpy()
            entries.append({"query": query, "document": document, "ids": ids, "score": rounded(logits)[0]})
        write_json(self.folder / "expected.json", {"pairs": entries})


def make_tiny(folder):
    bert = dict(vocab_size=300, max_position_embeddings=64, pad_token_id=0, **SIZES)
    roberta = dict(vocab_size=320, max_position_embeddings=66, pad_token_id=1, type_vocab_size=1, bos_token_id=0,
                   eos_token_id=2, layer_norm_eps=1e-5, **SIZES)
    Case(folder / "bert", transformers.BertModel(transformers.BertConfig(**bert), add_pooling_layer=False), True, 48,
         1).embeddings(["mean"], True)
    Case(folder / "bert-all-modes", transformers.BertModel(transformers.BertConfig(**{**bert, "hidden_act": "gelu_new"})),
         True, 40, 2).embeddings(["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"], False)
    Case(folder / "roberta", transformers.RobertaModel(transformers.RobertaConfig(**roberta), add_pooling_layer=False),
         False, 64, 3).embeddings(["cls"], True, dense=12)
    distil = dict(vocab_size=300, max_position_embeddings=64, dim=32, hidden_dim=48, n_layers=2, n_heads=4,
                  attn_implementation="eager")
    Case(folder / "distilbert", transformers.DistilBertModel(transformers.DistilBertConfig(**distil)), True, 64,
         4).embeddings(["mean"], False)
    Case(folder / "cross-bert", transformers.BertForSequenceClassification(
        transformers.BertConfig(num_labels=1, **bert)), True, 64, 5).scores()
    Case(folder / "cross-xlm-roberta", transformers.XLMRobertaForSequenceClassification(
        transformers.XLMRobertaConfig(num_labels=1, **roberta)), False, 64, 6).scores()
    # Long enough for distances beyond those that have a bucket of their own.
    mpnet = {k: v for k, v in roberta.items() if k != "type_vocab_size"} | dict(max_position_embeddings=202)
    Case(folder / "mpnet", transformers.MPNetModel(transformers.MPNetConfig(**mpnet), add_pooling_layer=False), False, 200,
         7).embeddings(["mean"], True)
    Case(folder / "cross-mpnet", transformers.MPNetForSequenceClassification(
        transformers.MPNetConfig(num_labels=1, **mpnet)), False, 64, 8).scores()
    Case(folder / "cross-distilbert", transformers.DistilBertForSequenceClassification(
        transformers.DistilBertConfig(num_labels=1, **distil)), True, 64, 9).scores()
    electra = dict(bert, embedding_size=32)
    Case(folder / "electra", transformers.ElectraModel(transformers.ElectraConfig(**electra)), True, 64,
         10).embeddings(["cls"], False)
    Case(folder / "cross-electra", transformers.ElectraForSequenceClassification(
        transformers.ElectraConfig(num_labels=1, **electra)), True, 64, 11).scores()


def make_minilm(folder, source):
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(json.loads((source / "sentence_bert_config.json").read_text())["max_seq_length"])
    model = transformers.BertModel.from_pretrained(source, attn_implementation="eager").float().eval()
    entries = []
    for text in SENTENCES:
        encoded = tokenizer.encode(text)
        hidden = hidden_states(model, encoded.ids, encoded.type_ids).last_hidden_state[0].numpy()
        vector = hidden.astype(np.float64).mean(axis=0)
        vector /= np.linalg.norm(vector)
        entries.append({"text": text, "tokens": len(encoded.ids), "embedding": [round(float(x), 7) for x in vector]})
    write_json(folder / "minilm.json", {"texts": entries})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--minilm", type=pathlib.Path, help="the directory of all-MiniLM-L6-v2")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    make_tiny(arguments.folder / "encoders")
    if arguments.minilm:
        make_minilm(arguments.folder, arguments.minilm)


if __name__ == "__main__":
    main()
