"""Writes a model of real dimensions with random weights, for benchmarks where no model can be fetched.

usage: make_model.py SHAPE FOLDER --tokenizer FILE [--layers N] [--bytes] [--products] [--no-weights]

SHAPE is a name of SHAPES below; FOLDER becomes a model directory of config.json, model-*.safetensors in BF16 and tokenizer.json. The weights are normal with the standard
deviation of Hugging Face's initializer (0.02), drawn on the GPU where PyTorch has one; a product of random weights takes the time of a product of trained ones, one of zeros does
not. --no-weights leaves config.json alone, from which training begins. Weights need torch and safetensors.
"""
import argparse
import json
import math
import os
import shutil

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "mlp_bias": False}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False}
QWEN3_MOE = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "attention_bias": False, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True}
COMMON = {"hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "bfloat16", "initializer_range": 0.02}

# Dimensions as the models' own config.json on Hugging Face have them.
SHAPES = {
    "llama-3.1-8b": LLAMA | {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False},
    "llama-3.2-1b": LLAMA | {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": True},
    "llama-124m": LLAMA | {  # GPT-2's width, depth and vocabulary (to a multiple of 64)
        "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 12, "head_dim": 64, "vocab_size": 50304,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True},
    "qwen2.5-1.5b": LLAMA | {  # its dimensions, without the biases of q, k and v
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 151936,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": True},
    "qwen3-8b": QWEN3 | {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": False},
    "qwen3-30b-a3b": QWEN3_MOE | {
        "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "tie_word_embeddings": False},
}


def tensors(config, layer):
    """Names and shapes of a layer, or of what stands outside the layers for layer None."""
    hidden, head = config["hidden_size"], config["head_dim"]
    query, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    if layer is None:
        yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
        yield "model.norm.weight", (hidden,)
        if not config["tie_word_embeddings"]:
            yield "lm_head.weight", (config["vocab_size"], hidden)
        return
    prefix = f"model.layers.{layer}."
    yield prefix + "input_layernorm.weight", (hidden,)
    yield prefix + "post_attention_layernorm.weight", (hidden,)
    yield prefix + "self_attn.q_proj.weight", (query, hidden)
    yield prefix + "self_attn.k_proj.weight", (kv, hidden)
    yield prefix + "self_attn.v_proj.weight", (kv, hidden)
    yield prefix + "self_attn.o_proj.weight", (hidden, query)
    if config["model_type"].startswith("qwen3"):
        yield prefix + "self_attn.q_norm.weight", (head,)
        yield prefix + "self_attn.k_norm.weight", (head,)
    experts = config.get("num_experts")
    if experts:
        yield prefix + "mlp.gate.weight", (experts, hidden)
    for expert in range(experts or 1):
        at = prefix + (f"mlp.experts.{expert}." if experts else "mlp.")
        width = config["moe_intermediate_size" if experts else "intermediate_size"]
        yield at + "gate_proj.weight", (width, hidden)
        yield at + "up_proj.weight", (width, hidden)
        yield at + "down_proj.weight", (hidden, width)


def products(config):
    """[N, K] of what all tokens of a layer are multiplied with, as Qiao has them in one: q, k and v; gate and up. Not experts'."""
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query = config["num_attention_heads"] * head
    of_attention = [(query + 2 * config["num_key_value_heads"] * head, hidden), (hidden, query)]
    return of_attention if config.get("num_experts") else [*of_attention, (2 * inner, hidden), (hidden, inner)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder")
    parser.add_argument("--layers", type=int, help="instead of the model's own")
    parser.add_argument("--tokenizer", required=True, help="any tokenizer.json of fewer tokens")
    parser.add_argument("--bytes", action="store_true", help="print the bytes of its weights, and write nothing")
    parser.add_argument("--products", action="store_true", help="print N x K of its layers' products, and write nothing")
    parser.add_argument("--no-weights", action="store_true", help="write config.json alone")
    arguments = parser.parse_args()
    config = COMMON | SHAPES[arguments.shape]
    if arguments.layers:
        config["num_hidden_layers"] = arguments.layers
    if arguments.bytes:
        print(2 * sum(math.prod(shape) for layer in (None, *range(config["num_hidden_layers"])) for _, shape in tensors(config, layer)))
        return
    if arguments.products:
        print(",".join(f"{rows}x{columns}" for rows, columns in products(config)))
        return
    os.makedirs(arguments.folder, exist_ok=True)
    with open(os.path.join(arguments.folder, "config.json"), "w") as file:
        json.dump(config, file, indent=1)
    if arguments.no_weights:
        return
    import torch
    from safetensors.torch import save_file

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(1)
    weight_map, total = {}, 0
    layers = config["num_hidden_layers"]
    groups = [[None]] + [list(range(first, min(first + 4, layers))) for first in range(0, layers, 4)]
    for index, group in enumerate(groups, 1):
        shard = {}
        for layer in group:
            for name, shape in tensors(config, layer):
                if len(shape) == 1:
                    shard[name] = torch.ones(shape, dtype=torch.bfloat16)
                else:
                    shard[name] = torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(0, 0.02, generator=generator).cpu()
        name = f"model-{index:05d}-of-{len(groups):05d}.safetensors"
        save_file(shard, os.path.join(arguments.folder, name), metadata={"format": "pt"})
        weight_map |= {tensor: name for tensor in shard}
        total += sum(tensor.nbytes for tensor in shard.values())
    with open(os.path.join(arguments.folder, "model.safetensors.index.json"), "w") as file:
        json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, file)
    shutil.copy(arguments.tokenizer, os.path.join(arguments.folder, "tokenizer.json"))


if __name__ == "__main__":
    main()
