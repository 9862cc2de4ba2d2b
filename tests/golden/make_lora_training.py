#!/usr/bin/env python3
"""Trains LoRA adapters with PEFT on tiny models, in float64 and in float32, as make_training.py trains whole ones.

  make_lora_training.py FOLDER      writes FOLDER/training/lora and FOLDER/training/qlora, as they belong into tests/golden

NAME/adapter is the adapter before the first step, NAME/first_step.safetensors the gradients of the first in float64.
lora: on training/llama/init; expected.json has of each of 20 steps the loss and the gradient's norm before clipping.
qlora: on a Llama-shaped GGUF file in Q4_0 (packed by gguf-py), one step: with the dequantized weights ("float64",
"float32"), and ("rounded") with activations rounded to 8 bits in blocks of 32 before each of its matrices, as the contract of
linear.h has it, which gradients pass straight through.
"""
import json
import pathlib
import sys

import gguf
import numpy
import peft
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from make_lora import ALL, save

HERE = pathlib.Path(__file__).resolve().parent
STEPS, BATCH = 20, 4
SHAPE = dict(vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=16, max_position_embeddings=256, initializer_range=0.08, pad_token_id=None,
             bos_token_id=None, eos_token_id=None, tie_word_embeddings=False, attn_implementation="eager")


def rounded(x):
    """Blocks of 32 as whole numbers up to 127 times a scale; its gradient is x's."""
    blocks = x.unflatten(-1, (-1, 32))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    exact = torch.where(scale > 0, (blocks / scale).round() * scale, torch.zeros_like(blocks)).flatten(-2)
    return x + (exact - x).detach()


class RoundedLinear(torch.nn.Linear):
    def forward(self, x):
        return torch.nn.functional.linear(rounded(x), self.weight, self.bias)


def train(make_base, adapter, data, dtype, count, first=None):
    model = peft.PeftModel.from_pretrained(make_base(), adapter, is_trainable=True).to(dtype)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    steps = []
    for step in range(count):
        ids = torch.tensor(data[step * BATCH:(step + 1) * BATCH])
        logits = model(ids).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        if first is not None and step == 0:
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    first[name.replace(".default", "")] = parameter.grad.to(torch.float32).clone()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        steps.append([loss.item(), norm.item()])
    return steps


def new_adapter(base, folder, **arguments):
    """B is not 0, so that A has gradients from the first step on."""
    torch.manual_seed(5)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **arguments))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    save(model, folder, "base", torch.float32)


def paired(rows, heads):
    """As llama.cpp's converter orders the rows of Llama's heads."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def halved(rows, heads):
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


NAMES = {"model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm"}
PARTS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def gguf_name(name):
    stem = name.removesuffix(".weight")
    if stem not in NAMES:
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{PARTS[part]}.weight"
    return NAMES[stem] + ".weight"


def write_gguf(model, path):
    """In Q4_0, and puts what that holds into `model`."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = parameter.numpy().astype(numpy.float32)
            count = next((n for part, n in heads.items() if part in name), 0)
            if count:
                values = paired(values, count)
            if values.ndim == 1:
                writer.add_tensor(gguf_name(name), values)
                continue
            packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_0)
            writer.add_tensor(gguf_name(name), packed, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
            held = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q4_0)
            parameter.copy_(torch.from_numpy(halved(held, count) if count else held))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    torch.set_num_threads(1)
    root = pathlib.Path(sys.argv[1]) / "training"
    data = [json.loads(line)["tokens"] for line in (HERE / "training" / "data.jsonl").read_text().splitlines()]

    def dense():
        return AutoModelForCausalLM.from_pretrained(HERE / "training" / "llama" / "init", dtype=torch.float32,
                                                    attn_implementation="eager")

    torch.manual_seed(1)
    quantized = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE))
    with torch.no_grad():
        for parameter in quantized.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    (root / "qlora").mkdir(parents=True, exist_ok=True)
    write_gguf(quantized, root / "qlora" / "base.gguf")
    held = quantized.state_dict()

    def from_quantized(linear):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE))
        model.load_state_dict(held)
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                module.__class__ = linear
        return model

    def plain():
        return from_quantized(torch.nn.Linear)

    for name, base, count, arguments in (
            ("lora", dense, STEPS, dict(r=4, lora_alpha=8, target_modules=ALL)),
            ("qlora", plain, 1, dict(r=6, lora_alpha=9, target_modules=ALL, use_rslora=True))):
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        new_adapter(base(), folder / "adapter", **arguments)
        first = {}
        expected = {"float64": train(base, folder / "adapter", data, torch.float64, count, first),
                    "float32": train(base, folder / "adapter", data, torch.float32, count)}
        if name == "qlora":
            expected["rounded"] = train(lambda: from_quantized(RoundedLinear), folder / "adapter", data, torch.float64, 1)
        (folder / "expected.json").write_text(json.dumps(expected, indent=0) + "\n")
        save_file(first, folder / "first_step.safetensors")
        (folder / "first_step.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
