"""Writes tests/golden/formats: small model files made and described by the packages gguf, safetensors and
transformers, for the readers' tests. The same bytes on every run (the packages' versions given).

    python tests/golden/make_formats.py [FOLDER]

Needs: gguf 0.19, safetensors, transformers 5, torch, tokenizers, numpy."""

import json
import pathlib
import shutil
import struct
import sys

import gguf
import numpy as np
import safetensors
import safetensors.torch
import torch
from gguf import GGMLQuantizationType as T

random = np.random.default_rng(20)


def fnv1a(data: bytes) -> str:
    """64-bit FNV-1a in hexadecimal: short enough to be written again in the test."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def gguf_tensors(writer: gguf.GGUFWriter) -> None:
    """One tensor of every element type. Types that the package cannot quantize get random blocks."""
    plain = [
        (T.F32, np.float32),
        (T.F16, np.float16),
        (T.F64, np.float64),
        (T.I8, np.int8),
        (T.I16, np.int16),
        (T.I32, np.int32),
        (T.I64, np.int64),
    ]
    for kind, dtype in plain:
        values = (random.standard_normal((3, 5)) * 40).astype(dtype)
        writer.add_tensor(f"plain.{kind.name}", values)
    for kind in [T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.MXFP4]:
        values = random.standard_normal((2, 64)).astype(np.float32)
        writer.add_tensor(f"quantized.{kind.name}", gguf.quantize(values, kind), raw_dtype=kind)
    for kind in [T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K, T.IQ4_NL, T.IQ4_XS]:
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (3, 512 // elements * size), dtype=np.uint8)
        writer.add_tensor(f"blocks.{kind.name}", blocks, raw_dtype=kind)
    writer.add_tensor("four.dimensions", random.standard_normal((2, 3, 4, 5)).astype(np.float32))
    writer.add_tensor("vector", np.arange(7, dtype=np.float32))


def gguf_metadata(writer: gguf.GGUFWriter) -> None:
    writer.add_uint8("value.u8", 200)
    writer.add_int8("value.i8", -100)
    writer.add_uint16("value.u16", 60000)
    writer.add_int16("value.i16", -30000)
    writer.add_uint32("value.u32", 4000000000)
    writer.add_int32("value.i32", -2000000000)
    writer.add_uint64("value.u64", 18446744073709551615)
    writer.add_int64("value.i64", -9223372036854775808)
    writer.add_float32("value.f32", 0.1)
    writer.add_float64("value.f64", 0.1)
    writer.add_bool("value.true", True)
    writer.add_bool("value.false", False)
    writer.add_string("value.string", "桥 and \"quotes\"\n")
    writer.add_key_value("value.empty", "", gguf.GGUFValueType.STRING)  # add_string leaves empty ones out
    writer.add_array("array.i32", [1, -2, 3])
    writer.add_array("array.f32", [0.5, -1.25])
    writer.add_array("array.bool", [True, False, True])
    writer.add_array("array.string", ["", "a", "日本語"])
    writer.add_key_value("array.u8", b"\x00\x7f\xff", gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT8)


def write_gguf(path: pathlib.Path, **options) -> None:
    writer = gguf.GGUFWriter(path, "llama", **options)
    gguf_metadata(writer)
    gguf_tensors(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe_gguf(path: pathlib.Path) -> list:
    return [
        {
            "name": tensor.name,
            "type": tensor.tensor_type.name,
            "shape": [int(size) for size in reversed(tensor.shape)],
            "offset": int(tensor.data_offset),
            "bytes": int(tensor.n_bytes),
            "fnv1a": fnv1a(tensor.data.tobytes()),
        }
        for tensor in gguf.GGUFReader(path).tensors
    ]


def write_split_set(folder: pathlib.Path) -> None:
    writer = gguf.GGUFWriter(folder / "split.gguf", "llama", split_max_tensors=2)
    for i in range(5):
        writer.add_tensor(f"blk.{i}.weight", random.standard_normal((2, 8)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_safetensors(path: pathlib.Path) -> list:
    torch.manual_seed(20)
    kinds = {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
    tensors = {f"tensor.{name}": (torch.randn(3, 5).abs() * 40).to(kind) for name, kind in kinds.items()}
    tensors["scalar"] = torch.tensor(2.5)
    tensors["empty"] = torch.zeros(0, 4)
    tensors["five.dimensions"] = torch.randn(1, 2, 1, 2, 3)
    safetensors.torch.save_file(tensors, path, metadata={"note": "桥"})
    described = []
    with safetensors.safe_open(path, "pt") as opened:
        for name in opened.keys():
            tensor = opened.get_tensor(name)
            raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
            described.append(
                {
                    "name": name,
                    "type": opened.get_slice(name).get_dtype(),
                    "shape": list(tensor.shape),
                    "bytes": len(raw),
                    "fnv1a": fnv1a(raw),
                }
            )
    return described


def write_hugging_face(folder: pathlib.Path) -> list:
    """A whole model directory in shards, as transformers saves it."""
    import tokenizers
    import transformers

    torch.manual_seed(21)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, bos_token_id=0, eos_token_id=1,
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=4096)
    words = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"<s>": 0, "</s>": 1, "a": 2, "b": 3}, merges=[]))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = {"default": "default {{ messages }}", "tool_use": "tools {{ tools }}"}
    tokenizer.save_pretrained(folder)
    return [
        {"name": name, "type": "BF16", "shape": list(tensor.shape), "bytes": tensor.numel() * 2,
         "fnv1a": fnv1a(tensor.contiguous().view(torch.uint8).numpy().tobytes())}
        for name, tensor in model.state_dict().items()
    ]


def main() -> None:
    default = pathlib.Path(__file__).parent / "formats"
    folder = pathlib.Path(sys.argv[1]) / "formats" if len(sys.argv) > 1 else default
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    expected = {}

    write_gguf(folder / "all_types.gguf")
    expected["all_types.gguf"] = describe_gguf(folder / "all_types.gguf")
    # Version 2 differs from 3 in nothing but the number (3 allowed big-endian files).
    vocabulary_only = gguf.GGUFWriter(folder / "version2.gguf", "llama")
    vocabulary_only.add_token_list(["<s>", "a"])
    for step in ("header", "kv_data", "tensors"):
        getattr(vocabulary_only, f"write_{step}_to_file")()
    vocabulary_only.close()
    patched = bytearray((folder / "version2.gguf").read_bytes())
    assert struct.unpack_from("<I", patched, 4) == (3,)
    struct.pack_into("<I", patched, 4, 2)
    (folder / "version2.gguf").write_bytes(patched)

    big = gguf.GGUFWriter(folder / "big_endian.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    for step in ("header", "kv_data", "tensors"):
        getattr(big, f"write_{step}_to_file")()
    big.close()

    write_split_set(folder)
    for number in (1, 2, 3):
        name = f"split-0000{number}-of-00003.gguf"
        expected[name] = describe_gguf(folder / name)

    expected["all_types.safetensors"] = write_safetensors(folder / "all_types.safetensors")
    expected["sharded"] = write_hugging_face(folder / "sharded")
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)
    (folder / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
