#!/usr/bin/env python3
"""Makes the LoRA adapters of tests/golden/lora for the tiny models of tests/golden/models, and their expected logits.

PEFT on Transformers is the oracle of the numbers and of the directories' layout; llama.cpp's converter
(convert_lora_to_gguf.py, fetched as make_models.py fetches it) is the oracle of the GGUF files. Two more adapters are for
tests/golden/chat, without logits: tests of the engine compare runs with each other.

  make_lora.py FOLDER      writes FOLDER/lora, as it belongs into tests/golden
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

from make_models import HERE, fetch_llama_cpp

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = ATTENTION + ["gate_proj", "up_proj", "down_proj"]

# name -> (base's case in models/cases.json, arguments of LoraConfig, options). Options: dtype of the saved tensors, gguf
# (llama.cpp's converter can write it: it knows neither patterns nor rank stabilisation; "q8_0": in that type, exactly).
ADAPTERS = {
    "llama": ("llama", dict(r=4, lora_alpha=8, target_modules=ALL), dict(gguf=True)),
    "llama-patterns": ("llama", dict(
        r=4, lora_alpha=6, use_rslora=True, target_modules=ALL,
        rank_pattern={"q_proj": 7, r"^model\.layers\.1\.mlp\.down_proj": 2, "layers.0.self_attn.v_proj": 3},
        alpha_pattern={"k_proj": 5, r".*\.1\.mlp\.(gate|up)_proj": 11}), dict(dtype=torch.float16)),
    "llama-one-layer": ("llama", dict(r=40, lora_alpha=20, target_modules=["k_proj", "down_proj"], layers_to_transform=[1]),
                        dict(dtype=torch.bfloat16, gguf=True)),
    "llama-biases": ("llama-biases", dict(r=5, lora_alpha=7, target_modules=ATTENTION), dict(gguf=True)),
    "mistral": ("mistral", dict(r=2, lora_alpha=4, target_modules=["q_proj", "k_proj"]), dict(gguf=True)),
    "smollm3": ("smollm3", dict(r=3, lora_alpha=4, target_modules=["q_proj", "up_proj"]), dict(gguf=True)),
    "qwen2": ("qwen2", dict(r=4, lora_alpha=4, target_modules=["k_proj", "gate_proj"]), dict(gguf=True)),
    "qwen3": ("qwen3", dict(r=6, lora_alpha=9, target_modules="all-linear"), dict(dtype=torch.bfloat16, gguf=True)),
    "gemma2": ("gemma2", dict(r=4, lora_alpha=8, target_modules=ATTENTION), dict(gguf=True)),
    "gemma3": ("gemma3", dict(r=4, lora_alpha=4, target_modules=ALL), dict(gguf=True)),
    "gemma3-multimodal": ("gemma3-multimodal", dict(
        r=4, lora_alpha=4, target_modules=r".*language_model.*\.(q_proj|down_proj)"), dict()),
    "phi3": ("phi3", dict(r=4, lora_alpha=8, target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
             dict(gguf=True)),
    "qwen3-moe-some-dense": ("qwen3-moe-some-dense", dict(r=4, lora_alpha=8, target_modules=ATTENTION), dict()),
    "hunyuan-moe": ("hunyuan-moe", dict(r=4, lora_alpha=8, target_modules=["q_proj", "o_proj"]), dict(gguf=True)),
    "chat-one": ("chat", dict(r=8, lora_alpha=16, target_modules=ALL), dict()),
    "chat-two": ("chat", dict(r=20, lora_alpha=30, target_modules=["q_proj", "v_proj", "up_proj"]),
                 dict(dtype=torch.float16)),
    "llama-q8": ("llama", dict(r=32, lora_alpha=12, target_modules=["q_proj", "k_proj"]), dict(gguf="q8_0")),
}


def load_base(folder):
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    auto = transformers.AutoModelForImageTextToText if kind == "gemma3" else transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def save(model, folder, base, dtype):
    """As PEFT saves it, but for what differs from run to run."""
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_model.safetensors"
    save_file({k: v.to(dtype).contiguous() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")


def as_q8_0(tensor):
    """Values that blocks of Q8_0 hold exactly: a half-precision scale times whole numbers up to 127."""
    blocks = tensor.reshape(-1, 32)
    scale = (blocks.abs().amax(dim=1, keepdim=True) / 127).half().float()
    whole = (blocks / scale).round().clamp(-127, 127)
    whole[:, 0] = 127
    return (whole * scale).reshape(tensor.shape)


def convert(llama_cpp, base, folder, kind):
    """With the base's folder as the converter wants it: Gemma's conversion counts the vocabulary."""
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / base.name
        made.mkdir()
        config = json.loads((base / "config.json").read_text())
        (made / "config.json").write_text(json.dumps(config))
        os.symlink(base / "model.safetensors", made / "model.safetensors")
        vocab = {str(i): i for i in range(config["vocab_size"])}
        (made / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": []}))
        adapter = Path(scratch) / "adapter"
        adapter.mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(folder / name, adapter / name)
        subprocess.run([sys.executable, llama_cpp / "convert_lora_to_gguf.py", "--base", made, "--outtype", kind, "--outfile",
                        folder / "adapter.gguf", adapter], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def make(root, name, seed, llama_cpp, models):
    base, arguments, options = ADAPTERS[name]
    case = models.get(base)
    base_folder = HERE / "models" / case["folder"] if case else HERE / base
    generator = torch.Generator().manual_seed(seed)
    model = peft.get_peft_model(load_base(base_folder), peft.LoraConfig(**arguments))
    dtype = options.get("dtype", torch.float32)
    with torch.no_grad():
        for parameter_name, parameter in sorted(model.named_parameters()):
            if "lora_" not in parameter_name:
                continue
            noise = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
            parameter.copy_(as_q8_0(noise) if options.get("gguf") == "q8_0" else noise.to(dtype).float())
    folder = root / name
    save(model, folder, base, dtype)
    if case is None:
        return None
    made = dict(name=name, adapter=name, folder=case["folder"], config=case["config"], prompt=case["prompt"],
                context=case["context"], expected=f"{name}/expected.f32")
    loaded = peft.PeftModel.from_pretrained(load_base(base_folder), folder).eval()
    with torch.no_grad():
        logits = loaded(torch.tensor([case["prompt"]])).logits[0].numpy().astype("<f4")
    logits.tofile(folder / "expected.f32")
    if "gguf" in case:
        made["gguf"] = case["gguf"]
    if options.get("gguf"):
        convert(llama_cpp, base_folder, folder, "f32" if options["gguf"] is True else options["gguf"])
        made["gguf_adapter"] = f"{name}/adapter.gguf"
    return made


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    root = Path(sys.argv[1] if len(sys.argv) > 1 else HERE) / "lora"
    root.mkdir(parents=True)
    llama_cpp = Path(os.environ.get("QIAO_LLAMA_CPP") or fetch_llama_cpp()).resolve()
    models = {case["name"]: case for case in json.loads((HERE / "models" / "cases.json").read_text())}
    cases = [make(root, name, 300 + i, llama_cpp, models) for i, name in enumerate(ADAPTERS)]
    (root / "cases.json").write_text("[\n" + ",\n".join(json.dumps(case) for case in cases if case) + "\n]\n")


if __name__ == "__main__":
    main()
