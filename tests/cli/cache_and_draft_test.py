"""--draft and the types of the cache, with the program as a person runs it."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

QIAO = os.environ["QIAO_BINARY"]
MODEL = pathlib.Path(__file__).resolve().parents[1] / "golden" / "chat"


def add_biases(folder):
    """The model with biases of zeros on queries, keys, values and attention's output."""
    shutil.copytree(MODEL, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attention_bias": True}))
    file = folder / "model.safetensors"
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, numbers = json.loads(data[8:8 + size]), data[8 + size:]
    for layer in range(config["num_hidden_layers"]):
        for name in ("q", "k", "v", "o"):
            stem = f"model.layers.{layer}.self_attn.{name}_proj"
            rows = header[stem + ".weight"]["shape"][0]
            header[stem + ".bias"] = {"dtype": "F32", "shape": [rows], "data_offsets": [len(numbers), len(numbers) + 4 * rows]}
            numbers += bytes(4 * rows)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + numbers)


def widen(folder, microscaled=False):
    """A model of that tokenizer whose matrices can be quantized to FP8: rows of 128, all zeros; or are of MXFP8."""
    shutil.copytree(MODEL, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32, "num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], 128], "model.norm.weight": [128]}
    for name, shape in (("input_layernorm", [128]), ("post_attention_layernorm", [128]), ("self_attn.q_proj", [128, 128]),
                        ("self_attn.k_proj", [64, 128]), ("self_attn.v_proj", [64, 128]), ("self_attn.o_proj", [128, 128]),
                        ("mlp.gate_proj", [128, 128]), ("mlp.up_proj", [128, 128]), ("mlp.down_proj", [128, 128])):
        shapes[f"model.layers.0.{name}.weight"] = shape
    kinds = {name: ("F8_E4M3", 1) if microscaled and "proj" in name else ("F32", 4) for name in shapes}
    for name in [name for name, (kind, _) in kinds.items() if kind == "F8_E4M3"]:
        shapes[name + "_scale"], kinds[name + "_scale"] = [shapes[name][0], 4], ("U8", 1)
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + kinds[name][1] * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": kinds[name][0], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))


class CacheAndDraft(unittest.TestCase):
    def generate(self, *arguments):
        command = [QIAO, "generate", "-m", str(MODEL), "-q", "--json", "-p", "The sky is", "-n", "40", "--ignore-eos", *arguments]
        run = subprocess.run(command, capture_output=True, text=True, timeout=300)
        return run.returncode, run.stdout, run.stderr

    def tokens(self, *arguments):
        status, out, problem = self.generate(*arguments)
        self.assertEqual((status, problem), (0, ""))
        return json.loads(out)["tokens"]

    def test_a_draft_that_cannot_be_quantized_is_taken_as_it_is(self):
        with tempfile.TemporaryDirectory() as folder:
            widen(pathlib.Path(folder))
            quantized = ["-m", folder, "--quantize", "fp8", "--temp", "0"]
            command = [QIAO, "generate", "-q", "--json", "-p", "The sky is", "-n", "4", "--ignore-eos", *quantized]
            alone = subprocess.run(command, capture_output=True, text=True, timeout=300)
            drafted = subprocess.run([*command, "--draft", str(MODEL)], capture_output=True, text=True, timeout=300)
            for run in (alone, drafted):
                self.assertEqual((run.returncode, run.stderr), (0, ""))
            self.assertEqual(json.loads(drafted.stdout)["tokens"], json.loads(alone.stdout)["tokens"])
        status, _, problem = self.generate("--quantize", "fp8")
        self.assertEqual(status, 1)
        self.assertIn("can be quantized to FP8", problem)

    def test_matrices_that_take_more_than_in_the_file_are_told_of(self):
        with tempfile.TemporaryDirectory() as folder:
            widen(pathlib.Path(folder), microscaled=True)
            command = [QIAO, "generate", "-m", folder, "-p", "The sky is", "-n", "4", "--json"]
            told, quiet = (subprocess.run([*command, *more], capture_output=True, text=True, timeout=300) for more in ([], ["-q"]))
        self.assertEqual((told.returncode, quiet.returncode, quiet.stderr), (0, 0, ""))
        self.assertIn("note: 7 FP8 matrices have no scale for each 128 columns", told.stderr)
        self.assertIn("98.3 kB more than in the file", told.stderr)  # a byte for each of 6 * 128 * 128

    def test_flags_that_mean_nothing_are_refused(self):
        encoder = str(MODEL.parent / "encoders" / "bert")
        for flag, value in (("--quantize", "fp8"), ("--draft", str(MODEL)), ("--lookup", "4")):
            run = subprocess.run([QIAO, "embed", "-m", encoder, "a text", flag, value], capture_output=True, text=True, timeout=300)
            self.assertEqual((run.returncode, run.stderr), (1, f"qiao: {encoder}: an embedding model takes no {flag}; leave it out\n"))
        status, _, problem = self.generate("--kv-type", "fp8", "-ctk", "q8_0", "-ctv", "q8_0")
        self.assertEqual(status, 2)
        self.assertIn("--kv-type excludes --cache-type-k", problem)

    def test_a_draft_changes_no_token(self):
        for temperature in ("0", "0.8", "1.5"):
            drawn = ["--temp", temperature, "--seed", "11"]
            alone = self.tokens(*drawn)
            self.assertEqual(self.tokens(*drawn, "--draft", str(MODEL)), alone)
            self.assertEqual(self.tokens(*drawn, "-md", str(MODEL), "--draft-max", "2", "--lookup", "4"), alone)

    def test_a_draft_of_another_vocabulary_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            other = pathlib.Path(folder) / "other"
            shutil.copytree(MODEL, other)
            tokenizer = json.loads((other / "tokenizer.json").read_text())
            vocabulary = tokenizer["model"]["vocab"]
            vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
            (other / "tokenizer.json").write_text(json.dumps(tokenizer))
            status, _, problem = self.generate("--draft", str(other))
            self.assertEqual(status, 1)
            self.assertIn("draft model", problem)
            self.assertIn('"a"', problem)
        status, _, problem = self.generate("--draft", "/nowhere/model.gguf")
        self.assertEqual(status, 1)
        self.assertIn("/nowhere/model.gguf", problem)

    def test_one_type_for_keys_and_values(self):
        half = self.tokens("--temp", "0")
        self.assertEqual(self.tokens("--temp", "0", "-ctk", "f16", "-ctv", "f16"), half)
        for given in (["-ctk", "f32"], ["-ctk", "f32", "-ctv", "bf16"]):
            status, _, problem = self.generate(*given)
            self.assertEqual(status, 1)
            self.assertIn("one type", problem)

    def test_heads_that_are_no_whole_blocks(self):
        status, _, problem = self.generate("--kv-type", "q8_0")  # the model's heads are 16 wide
        self.assertEqual(status, 1)
        self.assertIn("16", problem)
        self.assertIn("f16, bf16 or f32", problem)

    def test_fp8(self):
        alone = self.tokens("--temp", "0", "--kv-type", "fp8")
        self.assertEqual(len(alone), 40)
        self.assertEqual(self.tokens("--temp", "0", "-ctk", "fp8", "-ctv", "fp8", "-b", "3"), alone)
        self.assertEqual(self.tokens("--temp", "0", "--kv-type", "fp8", "--draft", str(MODEL)), alone)
        run = subprocess.run(
            [QIAO, "bench", "-m", str(MODEL), "-p", "4", "-n", "4", "--kv-type", "fp8", "--json"],
            capture_output=True, text=True, timeout=300)
        self.assertEqual(json.loads(run.stdout)["kv_type"], "fp8")
        self.assertNotIn("biases", run.stderr)
        status, _, problem = self.generate("--kv-type", "f8")
        self.assertNotEqual(status, 0)
        self.assertIn("fp8", problem)
        self.assertIn("q8_0", problem)

    def test_fp8_for_keys_with_biases_is_warned_of(self):
        with tempfile.TemporaryDirectory() as biased:
            add_biases(pathlib.Path(biased))
            run = subprocess.run([QIAO, "bench", "-m", biased, "-p", "4", "-n", "4", "--kv-type", "fp8"], capture_output=True, text=True, timeout=300)
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertIn("keys have biases", run.stderr)

    def test_a_benchmark_feeds_random_tokens(self):
        run = subprocess.run([QIAO, "bench", "-m", str(MODEL), "--draft", str(MODEL)], capture_output=True, text=True, timeout=300)
        self.assertEqual(run.returncode, 1)
        self.assertIn("--draft", run.stderr)


if __name__ == "__main__":
    unittest.main()
