#!/usr/bin/env python3
"""Makes the tiny random models of tests/golden/models and their expected logits.

Transformers on PyTorch is the oracle of the numbers: float32, eager attention, fixed seeds. llama.cpp's converter
(convert_hf_to_gguf.py) is the oracle of the GGUF files: names, permutations, metadata. It comes with the source archive
of llama-cpp-python, fetched into the cache folder where --llama-cpp or $QIAO_LLAMA_CPP does not name llama.cpp's sources.

  make_models.py FOLDER           writes FOLDER/models, as it belongs into tests/golden
  make_models.py FOLDER --check   compares tests/golden/models with what was made: weights bit for bit, logits to 1e-5
"""
import argparse
import copy
import json
import logging
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
PEER = "llama-cpp-python==0.3.36"  # its archive holds llama.cpp
VOCABULARY = 96
PROMPT = 40

BASE = dict(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=False,
            bos_token_id=1, eos_token_id=2, pad_token_id=0, attn_implementation="eager")


def base(**changes):
    return {**BASE, **changes}


# name -> (configuration class, arguments, options). Options: variants (name -> changes of config.json), gguf (variants
# that have a GGUF file; "" is the model itself), published (what published config.json files add), longer (variants with a longer prompt), context (variant -> the context
# it is used with), stacked (experts saved as one tensor), window (written to the GGUF file).
MODELS = {
    "llama": (transformers.LlamaConfig, base(), dict(
        variants={
            "llama3": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
                                           "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
            "yarn": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0,
                                         "original_max_position_embeddings": 32}},
            "yarn-factors": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0,
                                                 "beta_fast": 4.0, "beta_slow": 0.5, "truncate": False, "mscale": 0.7,
                                                 "mscale_all_dim": 0.4, "original_max_position_embeddings": 64}},
            "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
            "dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
                        "max_position_embeddings": 16},
            "old-style": {"rope_parameters": None, "rope_theta": 300.0,
                          "rope_scaling": {"type": "linear", "factor": 2.0}},
        },
        gguf=["", "llama3", "yarn", "linear"], context={"dynamic": PROMPT})),
    "llama-biases": (transformers.LlamaConfig, base(attention_bias=True, mlp_bias=True, head_dim=16,
                                                    tie_word_embeddings=True, num_key_value_heads=1), dict(gguf=[""])),
    "smollm3": (transformers.SmolLM3Config, base(num_hidden_layers=4, tie_word_embeddings=True), dict(gguf=[""])),
    "mistral": (transformers.MistralConfig, base(head_dim=16, sliding_window=8), dict(gguf=[""], window=8)),
    "qwen2": (transformers.Qwen2Config, base(tie_word_embeddings=True), dict(
        variants={"window": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1,
                             "layer_types": ["full_attention", "sliding_attention"]}}, gguf=[""])),
    "qwen3": (transformers.Qwen3Config, base(head_dim=16), dict(gguf=[""])),
    "qwen3-moe": (transformers.Qwen3MoeConfig, base(head_dim=16, num_experts=5, num_experts_per_tok=2,
                                                    moe_intermediate_size=16, norm_topk_prob=True), dict(
        gguf=[""], stacked=True)),
    "qwen3-moe-some-dense": (transformers.Qwen3MoeConfig, base(
        head_dim=8, num_hidden_layers=3, num_experts=5, num_experts_per_tok=3, moe_intermediate_size=16,
        norm_topk_prob=False, decoder_sparse_step=1, mlp_only_layers=[1], attention_bias=True), dict()),
    "gemma2": (transformers.Gemma2Config, base(
        num_hidden_layers=3, head_dim=16, query_pre_attn_scalar=16, sliding_window=8, attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0, tie_word_embeddings=True), dict(
            variants={"scalar": {"query_pre_attn_scalar": 24}}, gguf=[""])),
    "gemma3": (transformers.Gemma3TextConfig, base(
        num_hidden_layers=7, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        query_pre_attn_scalar=16, sliding_window=8, tie_word_embeddings=True,
        rope_parameters={"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}), dict(
        variants={"old-style": {"rope_parameters": None, "layer_types": None, "rope_theta": 1000.0,
                                "rope_local_base_freq": 100.0, "sliding_window_pattern": 3,
                                "rope_scaling": {"rope_type": "linear", "factor": 4.0}}}, gguf=[""])),
    "phi3": (transformers.Phi3Config, base(
        num_attention_heads=2, num_key_value_heads=1, original_max_position_embeddings=48, rope_parameters={
            "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
            "short_factor": [1.0, 1.1, 1.3, 1.7], "long_factor": [1.2, 2.0, 3.5, 6.0]}), dict(
        variants={"window": {"sliding_window": 8}, "long": {}}, gguf=["", "long"], longer=["long"],
        context={"": 48, "window": 48})),
    "hunyuan-dense": (transformers.HunYuanDenseV1Config, base(head_dim=16, tie_word_embeddings=True), dict(
        variants={"alpha": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 50.0,
                                                "factor": 1.0}}}, gguf=[""])),
    "hunyuan-moe": (transformers.HunYuanMoEV1Config, base(head_dim=16, intermediate_size=24, num_experts=4, moe_topk=2),
                    dict(gguf=[""], published={"moe_intermediate_size": [24, 24], "moe_topk": [2, 2],
                                               "num_shared_expert": [1, 1], "use_qk_norm": True})),
}
ARCHITECTURES = {"gemma3_text": "Gemma3ForCausalLM"}


def randomize(model, seed):
    """Every tensor away from zeros and ones, so that a wrong mapping shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(model.named_parameters()):
            noise = torch.randn(tensor.shape, generator=generator)
            if "norm" in name:
                tensor.copy_(noise * 0.3 + (0.0 if "gemma" in model.config.model_type else 1.0))
            elif tensor.ndim == 1:
                tensor.copy_(noise * 0.3)
            elif "embed_tokens" in name:
                tensor.copy_(noise)
            else:
                tensor.copy_(noise * 1.5 / tensor.shape[-1] ** 0.5)


def prompt_of(length, seed=7):
    return torch.randint(3, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def logits_of(folder, prompt):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32,
                                                              attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor([prompt])).logits[0].numpy().astype("<f4")


def write_config(path, config):
    drop = {"transformers_version", "dtype", "_name_or_path", "id2label", "label2id"}
    clean = {k: v for k, v in config.items() if k not in drop and v is not None}
    path.write_text(json.dumps(clean, indent=1, sort_keys=True) + "\n")


def one_by_one(tensors):
    """Stacked experts as published checkpoints have them."""
    out = {}
    for name, tensor in tensors.items():
        if name.endswith("experts.gate_up_proj"):
            stem = name.removesuffix("gate_up_proj")
            for i, expert in enumerate(tensor):
                gate, up = expert.chunk(2, dim=0)
                out[f"{stem}{i}.gate_proj.weight"], out[f"{stem}{i}.up_proj.weight"] = gate, up
        elif name.endswith("experts.down_proj"):
            stem = name.removesuffix("down_proj")
            out.update({f"{stem}{i}.down_proj.weight": expert for i, expert in enumerate(tensor)})
        else:
            out[name] = tensor
    return {k: v.contiguous().clone() for k, v in out.items()}


def convert(llama_cpp, folder, out, options):
    """Runs llama.cpp's converter on a folder, without a tokenizer."""
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    logging.disable(logging.WARNING)
    import conversion
    import gguf
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model_class = conversion.get_model_class(architecture)

    class WithoutTokenizer(model_class):
        model_arch = model_class.model_arch

        def set_vocab(self):
            self.gguf_writer.add_vocab_size(VOCABULARY)

        def set_gguf_parameters(self):
            super().set_gguf_parameters()
            if "window" in options:
                self.gguf_writer.add_sliding_window(options["window"])

    with torch.inference_mode():
        model = WithoutTokenizer(folder, gguf.LlamaFileType.ALL_F32, out, eager=True)
        model.write()


# Published models' configurations, as their config.json files have them (what rotary tables need), each with contexts.
PUBLISHED = [
    ({"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
      "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "rms_norm_eps": 1e-05,
      "rope_theta": 100000, "rope_scaling": None}, [0]),
    ({"model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
      "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
      "max_position_embeddings": 131072, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
      "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                       "original_max_position_embeddings": 8192, "rope_type": "llama3"}}, [0]),
    ({"model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
      "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32768,
      "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "use_sliding_window": False,
      "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}}, [0]),
    ({"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072,
      "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
      "max_position_embeddings": 40960, "rms_norm_eps": 1e-06, "rope_theta": 1000000,
      "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, [0, 100000]),
    ({"model_type": "phi3", "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
      "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 131072,
      "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 262144,
      "rope_scaling": {"type": "longrope", "short_factor": [1.0 + i / 64 for i in range(48)],
                       "long_factor": [1.0 + i * i / 32 for i in range(48)]}}, [0, 4096, 4097]),
    ({"model_type": "gemma3_text", "vocab_size": 262208, "hidden_size": 2560, "intermediate_size": 10240,
      "num_hidden_layers": 34, "sliding_window": 1024,
      "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}, [0]),
    ({"model_type": "hunyuan_v1_moe", "vocab_size": 128167, "hidden_size": 4096, "intermediate_size": 3072,
      "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
      "max_position_embeddings": 32768, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "num_experts": 64,
      "moe_topk": 8, "rope_scaling": {"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0,
                                      "mscale_all_dim": 0.0, "type": "dynamic"}}, [0]),
]


def rope_tables():
    """Rotary frequencies of the published configurations by Transformers."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    cases = []
    for written, contexts in PUBLISHED:
        config_class = type(transformers.AutoConfig.for_model(written["model_type"]))
        config = config_class.from_dict({k: v for k, v in copy.deepcopy(written).items() if k != "model_type"})
        module = sys.modules[transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING[config_class].__module__]
        rotary_class = next(v for k, v in vars(module).items() if k.endswith("RotaryEmbedding"))
        rotary = rotary_class(config)
        for context in contexts:
            case = {"config": written, "context": context}
            if written["model_type"] == "gemma3_text":
                case["frequencies"] = rotary.full_attention_inv_freq.tolist()
                case["local_frequencies"] = rotary.sliding_attention_inv_freq.tolist()
                case["scale"] = float(rotary.full_attention_attention_scaling)
            elif rotary.rope_type in ("dynamic", "longrope"):
                used = context or config.max_position_embeddings
                frequencies, scale = ROPE_INIT_FUNCTIONS[rotary.rope_type](config, seq_len=used)
                case["frequencies"], case["scale"] = frequencies.tolist(), float(scale)
            else:
                case["frequencies"] = rotary.inv_freq.tolist()
                case["scale"] = float(rotary.attention_scaling)
            cases.append(case)
    return cases


class Workshop:
    def __init__(self, root, llama_cpp):
        self.root, self.llama_cpp, self.cases = root, llama_cpp, []

    def variant_folder(self, folder, variant, scratch):
        """The model's folder as a user has it, with this variant's config.json."""
        made = Path(scratch) / f"{folder.name}-{variant or 'itself'}"
        made.mkdir()
        config = folder / (f"config.{variant}.json" if variant else "config.json")
        shutil.copy(config, made / "config.json")
        os.symlink(folder / "model.safetensors", made / "model.safetensors")
        vocab = {str(i): i for i in range(VOCABULARY)}  # Gemma's conversion counts it
        (made / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": []}))
        return made

    def finish(self, name, folder, options):
        variants = ["", *options.get("variants", {})]
        with tempfile.TemporaryDirectory() as scratch:
            for variant in variants:
                dot = f".{variant}" if variant else ""
                made = self.variant_folder(folder, variant, scratch)
                prompt = prompt_of(PROMPT + 20 if variant in options.get("longer", []) else PROMPT)
                expected = f"expected{dot}.f32"
                logits_of(made, prompt).tofile(folder / expected)
                case = dict(name=name + (f"-{variant}" if variant else ""), folder=name, config=f"config{dot}.json",
                            prompt=prompt, expected=expected, context=options.get("context", {}).get(variant, 0))
                if variant in options.get("gguf", []):
                    case["gguf"] = f"model{dot}.gguf"
                    if variant != "long":  # the same file as without a variant, used with more context
                        convert(self.llama_cpp, made, folder / case["gguf"], options)
                    else:
                        case["gguf"] = "model.gguf"
                self.cases.append(case)

    def make(self, name, seed):
        config_class, arguments, options = MODELS[name]
        config = config_class(**copy.deepcopy(arguments))
        config.architectures = None
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
        randomize(model, seed)
        folder = self.root / name
        folder.mkdir(parents=True)
        tensors = {k: v for k, v in model.state_dict().items()
                   if not (config.tie_word_embeddings and k == "lm_head.weight")}
        tensors = {k: v.contiguous().clone() for k, v in tensors.items()} if options.get("stacked") else one_by_one(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        written = config.to_dict()
        written["architectures"] = [ARCHITECTURES.get(config.model_type, type(model).__name__)]
        written.update(options.get("published", {}))
        write_config(folder / "config.json", written)
        for variant, changes in options.get("variants", {}).items():
            write_config(folder / f"config.{variant}.json", {**written, **changes})
        self.finish(name, folder, options)

    def make_multimodal(self, seed):
        """Gemma 3 with its vision tower: the language model lies one level deeper."""
        name = "gemma3-multimodal"
        text = dict(base(num_hidden_layers=2, head_dim=16, sliding_window=8, query_pre_attn_scalar=16,
                         layer_types=["sliding_attention", "full_attention"]))
        text.pop("tie_word_embeddings")
        vision = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8,
                      patch_size=4)
        config = transformers.Gemma3Config(text_config=transformers.Gemma3TextConfig(**text).to_dict(),
                                           vision_config=vision, mm_tokens_per_image=4)
        model = transformers.Gemma3ForConditionalGeneration(config).float()
        randomize(model, seed)
        folder = self.root / name
        folder.mkdir(parents=True)
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        write_config(folder / "config.json", json.loads((folder / "config.json").read_text()))
        prompt = prompt_of(PROMPT)
        loaded = transformers.Gemma3ForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            loaded(torch.tensor([prompt])).logits[0].numpy().astype("<f4").tofile(folder / "expected.f32")
        self.cases.append(dict(name=name, folder=name, config="config.json", prompt=prompt, expected="expected.f32",
                               context=0))

    def make_all(self):
        for i, name in enumerate(MODELS):
            print(name, flush=True)
            self.make(name, seed=100 + i)
        self.make_multimodal(seed=99)
        (self.root / "rope_tables.json").write_text(
            "[\n" + ",\n".join(json.dumps(case) for case in rope_tables()) + "\n]\n")
        (self.root / "cases.json").write_text(
            "[\n" + ",\n".join(json.dumps(case) for case in self.cases) + "\n]\n")


def gguf_tensors(path):
    import gguf
    reader = gguf.GGUFReader(path)
    fields = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("general.")}
    return fields, {t.name: np.array(t.data) for t in reader.tensors}


def differences(kept, made):
    """Names of files that differ: weights bit for bit, logits to 1e-5 of the largest."""
    wrong = []
    names = {p.relative_to(root) for root in (kept, made) for p in root.rglob("*") if p.is_file()}
    for name in sorted(names):
        a, b = kept / name, made / name
        if not (a.exists() and b.exists()):
            wrong.append(f"{name}: {'not made any more' if a.exists() else 'not committed'}")
        elif name.suffix == ".f32":
            x, y = np.fromfile(a, "<f4"), np.fromfile(b, "<f4")
            if x.shape != y.shape or not np.abs(x - y).max() <= 1e-5 * np.abs(x).max():
                wrong.append(f"{name}: logits differ")
        elif name.suffix == ".safetensors":
            x, y = load_file(a), load_file(b)
            if x.keys() != y.keys() or any(not torch.equal(x[k], y[k]) for k in x):
                wrong.append(f"{name}: tensors differ")
        elif name.suffix == ".gguf":
            (xf, xt), (yf, yt) = gguf_tensors(a), gguf_tensors(b)
            if xf != yf or xt.keys() != yt.keys() or any(not np.array_equal(xt[k], yt[k]) for k in xt):
                wrong.append(f"{name}: metadata or tensors differ")
        elif a.read_bytes() != b.read_bytes():
            wrong.append(f"{name}: differs")
    return wrong


def fetch_llama_cpp():
    """Unpacks the archive in the cache folder, beside bench/versus_llama_cpp.py's; returns llama.cpp's sources."""
    home = os.environ.get("QIAO_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qiao"
    folder = Path(home) / "bench" / PEER.replace("==", "-")
    if not list(folder.glob("llama_cpp_python-*/vendor/llama.cpp/convert_hf_to_gguf.py")):
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "-d",
                        folder, PEER], check=True)
        with tarfile.open(next(folder.glob("llama_cpp_python-*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
    return next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write; its models/ must not exist")
    parser.add_argument("--llama-cpp", type=Path, default=os.environ.get("QIAO_LLAMA_CPP"),
                        help="llama.cpp's sources (vendor/llama.cpp of the archive)")
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    made = arguments.folder / "models"
    Workshop(made, (arguments.llama_cpp or fetch_llama_cpp()).resolve()).make_all()
    if arguments.check:
        wrong = differences(HERE / "models", made)
        print("\n".join(wrong) or "golden models: as committed")
        sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
