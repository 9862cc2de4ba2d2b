#!/usr/bin/env python3
"""Makes the tiny FP8 models of tests/golden/fp8 and their expected logits.

Each is a Transformers model whose layers' matrices are rounded to E4M3 in one of the ways of published checkpoints:
numbers and scales as they lie in such files. PyTorch is the oracle, in float32 with eager attention:
  expected.f32      the dequantized weights (number times scale in float32)
  expected.f8.f32   the same, and the inputs of each such matrix rounded: for each row and 128 columns scale =
                    max|x| / 448, and x * (448 / max|x|) to the nearest float8_e4m3fn. A matrix whose rows are no
                    whole blocks of 128 takes its inputs as they are.

  make_fp8_models.py FOLDER    writes FOLDER/fp8, as it belongs into tests/golden
"""
import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as functional
import transformers
from safetensors.torch import save_file

from make_models import PROMPT, VOCABULARY, one_by_one, prompt_of, randomize, write_config

COMMON = dict(vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
              pad_token_id=0, attn_implementation="eager")
BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}
CHANNELS = {"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"], "config_groups": {
    "group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
                "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}}}}
MICROSCALING = {"quant_method": "compressed-tensors", "format": "mxfp8-quantized", "ignore": ["lm_head"], "config_groups": {
    "group_0": {"targets": ["Linear"], "weights": {
        "num_bits": 8, "type": "float", "strategy": "group", "group_size": 32, "symmetric": True, "scale_dtype": "torch.uint8"}}}}
# name -> configuration, kind of scales, quantization_config
MODELS = {
    "llama-block": (transformers.LlamaConfig(**COMMON, intermediate_size=256), "block", BLOCKS),
    # The output matrix of the MLP has rows of 192.
    "llama-tensor": (transformers.LlamaConfig(**COMMON, intermediate_size=192), "tensor",
                     {"quant_method": "fp8", "activation_scheme": "static"}),
    "llama-channel": (transformers.LlamaConfig(**COMMON, intermediate_size=256), "channel", CHANNELS),
    "qwen3-moe-block": (transformers.Qwen3MoeConfig(
        **COMMON, intermediate_size=128, head_dim=32, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=128,
        norm_topk_prob=True), "block", {**BLOCKS, "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate"]}),
    # MXFP8: no input is rounded to E4M3 here.
    "llama-mx": (transformers.LlamaConfig(**COMMON, intermediate_size=192), "mx", MICROSCALING),
}


def is_quantized(name):
    return name.startswith("model.layers") and name.endswith("proj.weight")


def quantize(weight, kind):
    """Numbers of float8_e4m3fn, the scales as the file has them, and both together in float32."""
    rows, columns = weight.shape
    down, across = {"block": (128, 128), "channel": (1, columns), "tensor": (rows, columns), "mx": (1, 32)}[kind]
    scales = torch.empty(-(-rows // down), -(-columns // across))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            scales[i, j] = weight[i * down:(i + 1) * down, j * across:(j + 1) * across].abs().max() / 448
    if kind == "channel":
        scales = scales.bfloat16().float()
    if kind == "mx":
        scales = scales.log2().ceil().exp2()
    whole = scales.repeat_interleave(down, 0)[:rows].repeat_interleave(across, 1)[:, :columns]
    numbers = (weight / whole).clamp(-448, 448).to(torch.float8_e4m3fn)
    written = {"block": scales, "channel": scales.bfloat16(), "tensor": scales[0, 0],
               "mx": (scales.log2() + 127).to(torch.uint8)}[kind]
    return numbers, written, numbers.float() * whole


def rounded(x):
    blocks = x.unflatten(-1, (-1, 128))
    most = blocks.abs().amax(-1, keepdim=True)
    inverse = torch.where(most > 0, 448 / most, torch.zeros(()))
    return ((blocks * inverse).to(torch.float8_e4m3fn).float() * (most / 448)).flatten(-2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write; its fp8/ must not exist")
    root = parser.parse_args().folder / "fp8"
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    prompt = prompt_of(PROMPT)
    for seed, (name, (config, kind, quantization)) in enumerate(MODELS.items()):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32,
                                                              attn_implementation="eager").eval()
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")
        randomize(model, 300 + seed)
        written, exact = {}, {}
        for key, tensor in one_by_one(model.state_dict()).items():
            if not is_quantized(key):
                written[key] = tensor
                continue
            written[key], scales, exact[key] = quantize(tensor, kind)
            written[key + ("_scale_inv" if kind == "block" else "_scale")] = scales
            if kind == "tensor":  # static: read over
                written[key.removesuffix("weight") + "input_scale"] = torch.tensor(0.01)
        with torch.no_grad():
            for key, tensor in model.state_dict().items():
                stem, part = key.rsplit(".", 1)
                if part == "gate_up_proj":
                    for i, expert in enumerate(tensor):
                        expert.copy_(torch.cat([exact[f"{stem}.{i}.gate_proj.weight"],
                                                exact[f"{stem}.{i}.up_proj.weight"]]))
                elif part == "down_proj":
                    for i, expert in enumerate(tensor):
                        expert.copy_(exact[f"{stem}.{i}.down_proj.weight"])
                elif key in exact:
                    tensor.copy_(exact[key])
        memory = {tensor.untyped_storage().data_ptr() for key, tensor in model.state_dict().items()
                  if key in exact or key.rsplit(".", 1)[1] in ("gate_up_proj", "down_proj")}
        folder = root / name
        folder.mkdir(parents=True)
        save_file(written, folder / "model.safetensors", metadata={"format": "pt"})
        write_config(folder / "config.json", {**config.to_dict(), "architectures": [type(model).__name__],
                                              "quantization_config": quantization})
        (folder / "prompt.json").write_text(json.dumps(prompt) + "\n")
        if kind == "mx":
            with torch.no_grad():
                model(torch.tensor([prompt])).logits[0].numpy().astype("<f4").tofile(folder / "expected.f32")
            print(name, flush=True)
            continue
        plain, seen = functional.linear, set()

        def linear(x, weight, bias=None):
            place = weight.untyped_storage().data_ptr()
            if place in memory and weight.shape[1] % 128 == 0:
                seen.add(place)
                x = rounded(x)
            return plain(x, weight, bias)

        with torch.no_grad():
            model(torch.tensor([prompt])).logits[0].numpy().astype("<f4").tofile(folder / "expected.f32")
            functional.linear = linear
            logits = model(torch.tensor([prompt])).logits[0]
            functional.linear = plain
        logits.numpy().astype("<f4").tofile(folder / "expected.f8.f32")
        narrow = sum(key in exact and tensor.shape[1] % 128 != 0 for key, tensor in model.state_dict().items())
        assert len(seen) == len(memory) - narrow, name
        print(name, flush=True)


if __name__ == "__main__":
    main()
