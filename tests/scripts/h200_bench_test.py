"""bench/h200 without a GPU: run.sh with stand-ins for what it calls, its table, and the peer of cuBLASLt's products on loops in the library's place."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench" / "h200"
STAND_IN = pathlib.Path(__file__).resolve().parent / "cublaslt_stand_in"
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")

# Prints what the program would, in round numbers, and keeps its arguments.
QIAO = """#!{python}
import json, os, sys
arguments = sys.argv[1:]
open(os.environ["CALLS"], "a").write(" ".join(arguments) + "\\n")
after = lambda name, other=None: arguments[arguments.index(name) + 1] if name in arguments else other
if arguments[0] == "devices":
    print(os.environ.get("DEVICES") or json.dumps([{{"chip": "cuda", "name": "NVIDIA H200", "memory_bytes": 141 * 10**9, "read_bytes_per_second": 4e12, "f32_flops": 6e13, "bf16_flops": 8e14,
                                                     "int8_ops": 1e15, "f8_flops": 16e14}}, {{"chip": "cpu"}}]))
elif arguments[0] == "conformance" and "--products" in arguments:
    tera = 700e12 if "--fast" in arguments else 500e12
    lines = []
    for variant, speed in (("BF16 bf16", 1), ("F8_128 f8", 2)):
        benches = []
        for product in after("--products").split(","):
            n, k = map(int, product.split("x"))
            for t in map(int, after("--tokens").split(",")):
                benches.append({{"shape": f"T={{t}} N={{n}} K={{k}}", "seconds": 2 * t * n * k / tera / speed}})
        lines.append({{"op": "linear", "variant": variant, "benches": benches}})
    print(json.dumps({{"batch_invariant": "--fast" not in arguments, "lines": lines}}, indent=2))
elif arguments[0] == "conformance":
    print(json.dumps({{"lines": [{{"op": "rope", "variant": "f32", "max_share_of_bound": 0.25, "benches": [{{"shape": "T=1", "seconds": 3e-6, "roofline_share": 0.5, "roofline_of": "read"}}]}}]}}))
elif arguments[0] == "bench":
    common = {{"model": os.path.basename(after("-m")), "quantize": after("--quantize"), "kv_type": after("--kv-type", "f16"), "fast": "--fast" in arguments, "decode_tokens": int(after("-n"))}}
    for p in map(int, after("-p").split(",")):
        for s in map(int, after("-s", "1").split(",")):
            row = common | {{"prompt_tokens": p, "sequences": s, "depth": int(after("-d", "0"))}}
            row |= {{"prefill_tokens_per_second": {{"median": 40000.0}}, "prefill_share_of_peak": 0.7, "peak": {{"kind": "bf16"}}}} if p else {{}}
            print(json.dumps(row | {{"decode_tokens_per_second": {{"median": 200.0 * s}}, "decode_share_of_bandwidth": 0.8}}))
else:
    sys.exit(f"unexpected: {{arguments}}")
"""
# Scripts that need PyTorch print a row; the rest is Python's.
PYTHON = """#!/bin/bash
case $1 in
  */make_model.py)
    [[ " $* " == *" --products "* ]] && exec {python} "$@"
    [[ " $* " == *" --bytes "* ]] && echo "${{BYTES:-1000}}" && exit
    mkdir -p "$3" ;;
  */pytorch_peer.py)
    echo '{{"what": "upload", "model": "llama-3.1-8b", "bytes": 16e9, "bytes_per_second": 4e9}}'
    echo '{{"what": "decode", "model": "llama-3.1-8b", "sequences": 8, "depth": 1000, "tokens_per_second": 1000}}'
    echo '{{"what": "prefill", "model": "llama-3.1-8b", "tokens": 2048, "tokens_per_second": 50000}}' ;;
  */serve_throughput.py)
    echo '{{"what": "serve", "model": "llama-3.1-8b", "quantize": null, "kv_type": "f16", "clients": 128, "input": 1000, "output": 1000, "start_seconds": 8, "output_tokens_per_second": 4000,
            "first_token_seconds": 1.5, "gap_seconds": null}}' ;;
  */training.py)
    echo '{{"what": "train", "model": "'"$2"'", "sequences": 16, "tokens": 1024, "small_states": false, "dtype": "bf16", "tokens_per_second": 30000, "flops": 4e14}}' ;;
  *) exec {python} "$@" ;;
esac
"""
# Builds the peer with loops in cuBLASLt's place.
NVCC = '#!/bin/bash\n[[ -z $BREAK_NVCC ]] || {{ echo "nvcc: no cublasLt.h"; exit 1; }}\nexec {compiler} -I{stand_in} "${{@:1:$#-1}}"\n'


class RunScript(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="qiao h200 ")
        self.addCleanup(folder.cleanup)
        self.base = pathlib.Path(folder.name)
        tools = self.base / "tools"
        tools.mkdir()
        names = {"python": sys.executable, "compiler": COMPILER, "stand_in": STAND_IN}
        for name, text in {"qiao": QIAO, "python3": PYTHON, "nvcc": NVCC}.items():
            (tools / name).write_text(text.format(**names))
            (tools / name).chmod(0o755)
        self.environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "CALLS": str(self.base / "calls"), "TMPDIR": str(self.base)}
        self.tools = tools

    def run_it(self, *arguments, **environment):
        done = subprocess.run([BENCH / "run.sh", "--qiao", self.tools / "qiao", "--out", self.base / "out", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=100,
                              env={**self.environment, **environment}, check=False)
        return done.returncode, done.stdout, done.stderr

    # The peer's loops would take minutes for a real model's products: here it cannot be built.
    def test_a_whole_run_ends_in_a_table(self):
        code, table, said = self.run_it(BREAK_NVCC="1")
        self.assertEqual(code, 0, said)
        self.assertNotIn("failed", said)
        self.assertIn("no cuBLASLt beside them", said)
        for line in ("NVIDIA H200: reads 4000 GB/s, f32 60.0, bf16 800, fp8 1600 TFLOP/s, int8 1000 TOP/s",
                     "| llama-3.1-8b | decode 8 x at 1000 | 1600 | 80% of read (67%) | 1000 | 1.60 |  |",
                     "| llama-3.1-8b | prefill 2048 | 40000 | 70% of bf16 (57%) | 50000 | 0.80 | target 70% of the measured |",
                     "| llama-3.1-8b, --fast | prefill 8192 | 40000 | 70% of bf16 (57%) | - | - | target 70% of the measured |",
                     "| llama-3.1-8b, fp8, pages of fp8 | decode 1 x at 8000 | 200 | 80% of read (67%) | - | - | vLLM 53% of the datasheet's reads; target 75% of the measured |",
                     "| llama-3.1-8b | start to ready, 16.0 GB | 8.0 s | | 4.0 s to read them | 2.00 | target 6.8 s |",
                     "| qwen2.5-1.5b | training, 16 x 1024 | 30000 | 50% of bf16 (40%) | 30000 | 1.00 | torchtitan 33 to 39%, llm.c 44% of the datasheet's; target 50% |",
                     "| qwen3-30b-a3b | decode 256 x at 1000 | 51200 | 80% of read (67%) | - | - |  |",
                     "| BF16 bf16 | 2048 | 28672 x 4096 | 962.1 (500) | 687.2 (700) | - | - | - |",
                     "| F8_128 f8 | 8192 | a layer of llama-3.1-8b | 3573.4 (1000) | 2552.4 (1400) | - | - | - |",
                     "| rope | f32 | T=1 | 3.0 | 50% of read | 0.25 |"):
            self.assertIn(line + "\n", table)
        self.assertEqual(list(self.base.glob("tmp.*")), [])
        # Of the first shape alone all is measured.
        calls = (self.base / "calls").read_text()
        self.assertEqual([calls.count(f"--device cuda -q --json -c 16384 {which}") for which in ("-b 8192", "--fast")], [3, 1])

    def test_no_gpu_is_one_line(self):
        for devices, why in (([{"chip": "cuda", "unavailable": "cuda: no NVIDIA driver here"}], "cuda: no NVIDIA driver here"), ([{"chip": "cpu"}], "this program was built without cuda")):
            code, table, said = self.run_it(DEVICES=json.dumps(devices))
            self.assertEqual((code, table, said), (1, "", f"run.sh: no GPU to measure: {why}\n"))

    def test_a_model_that_does_not_fit_is_a_row(self):
        code, table, said = self.run_it("--quick", "--no-training", BYTES=str(10**18))
        self.assertEqual(code, 0, said)
        self.assertIn(f"| llama-3.1-8b | skipped: its weights have {10**18} bytes |", table)
        self.assertEqual((self.base / "calls").read_text().split(), ["devices", "--json"])


    def test_what_has_no_time_is_a_row(self):
        code, table, said = self.run_it("--quick", "--minutes", "00", "--shapes", "llama-3.1-8b qwen3-8b")
        self.assertEqual(code, 0, said)
        for line in ("llama-3.1-8b | skipped: no time was left for writing 0 MB", "llama-124m | skipped: no time was left for training", "qwen3-8b | skipped: no time was left for writing 0 MB"):
            self.assertEqual(table.count(f"| {line} |"), 1, table)
        self.assertEqual((self.base / "calls").read_text().split(), ["devices", "--json"])

    def test_wrong_arguments_are_one_line(self):
        for arguments, why in ((["--minutes"], "--minutes: a value was expected after it"), (["--minutes", "-1"], "--minutes -1: a number of minutes was expected"), (["--minutes", "8x"], "--minutes 8x: a number")):
            code, table, said = self.run_it(*arguments)
            self.assertEqual((code, table), (2, ""))
            self.assertRegex(said, f"^run.sh: {why}.*\n$")


class Report(unittest.TestCase):
    def test_products_stand_beside_cublaslts(self):
        sys.path.insert(0, str(BENCH))
        from make_model import COMMON, SHAPES, products

        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder)
            (out / "devices.json").write_text(json.dumps([{"chip": "cuda:1", "name": "A GPU", "read_bytes_per_second": 1e12, "f32_flops": 1e13, "bf16_flops": 1e14, "f8_flops": 2e14, "int8_ops": 2e14}]))
            shapes = [f"T=512 N={n} K={k}" for n, k in products(COMMON | SHAPES["qwen3-8b"])]
            for fast, seconds in ((False, 4e-4), (True, 2e-4)):
                benches = [{"shape": shape, "seconds": seconds} for shape in shapes]
                with open(out / "products.jsonl", "a") as file:
                    json.dump({"batch_invariant": not fast, "lines": [{"variant": "BF16 bf16", "benches": benches}]}, file, indent=2)
            with open(out / "products.jsonl", "a") as file:
                for shape in shapes:
                    print(json.dumps({"variant": "BF16 bf16", "shape": shape, "algorithms": 8, "seconds": 1e-4}), file=file)
                print('{"variant": "BF16', file=file)  # ended as it wrote
                print(json.dumps({"variant": "F8_128 f8", "shape": shapes[0], "algorithms": 0}), file=file)
            (out / "conformance.json").write_text("")
            done = subprocess.run([sys.executable, "-B", BENCH / "report.py", folder], capture_output=True, text=True, check=True)
        self.assertEqual(done.stderr, """report.py: products.jsonl: left out what is no JSON: '{"variant": "BF16'""" + "\n")
        table = done.stdout
        self.assertIn("| BF16 bf16 | 512 | 24576 x 4096 | 400.0 (258) | 200.0 (515) | 100.0 (1031) | 0.25 | 0.50 |\n", table)
        self.assertIn("| BF16 bf16 | 512 | a layer of qwen3-8b | 1600.0 (123) | 800.0 (247) | 400.0 (494) | 0.25 | 0.50 |\n", table)
        self.assertIn("| F8_128 f8 | 512 | 6144 x 4096 | - | - | - | - | - |\n", table)
        self.assertNotIn("a layer of llama", table)


@unittest.skipUnless(COMPILER, "no C++ compiler")
class Peer(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.program = pathlib.Path(cls.folder.name) / "peer"
        subprocess.run([COMPILER, "-O0", "-std=c++20", "-Wall", "-Wextra", "-Werror", f"-I{STAND_IN}", "-o", cls.program, BENCH / "cublaslt_peer.cc"], check=True)

    def peer(self, *arguments, **environment):
        done = subprocess.run([self.program, *arguments], capture_output=True, text=True, env={**os.environ, **environment}, check=False, timeout=60)
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr

    def test_each_product_is_a_row(self):
        code, rows, said = self.peer("200x256,5x100", "8,3")
        self.assertEqual((code, said), (0, ""))
        self.assertEqual([(row["variant"], row["shape"], row["algorithms"]) for row in rows],
                         [("BF16 bf16", "T=8 N=200 K=256", 2), ("BF16 bf16", "T=3 N=200 K=256", 2), ("BF16 bf16", "T=8 N=5 K=100", 2), ("BF16 bf16", "T=3 N=5 K=100", 2),
                          ("F8_128 f8", "T=8 N=200 K=256", 2), ("F8_128 f8", "T=3 N=200 K=256", 2)])
        self.assertTrue(all(0 < row["seconds"] < 60 for row in rows))

    def test_operands_that_lie_otherwise_are_found(self):
        code, rows, said = self.peer("130x640", "8", STAND_IN_WRONG="1")
        self.assertEqual((code, [row["variant"] for row in rows]), (1, ["BF16 bf16"]))
        self.assertIn("F8_128 f8: y[0, 0] of T=8 N=130 K=640 is ", said)

    def test_a_kind_without_an_algorithm_is_a_row_without_a_time(self):
        code, rows, _ = self.peer("16x128", "4", STAND_IN_WITHOUT_FP8="1")
        self.assertEqual((code, rows[1]), (0, {"variant": "F8_128 f8", "shape": "T=4 N=16 K=128", "algorithms": 0}))

    def test_what_is_wrong_is_one_line(self):
        self.assertEqual(self.peer("16x128", "4", STAND_IN_FULL="1"), (1, [], "cublaslt_peer: memory: out of memory\n"))
        for weights in ("16", "16x", "16x0", "16x128,", "x16", "16x128x4", "-1x4", "16x1048577"):
            code, rows, said = self.peer(weights, "4")
            self.assertEqual((code, rows), (1, []))
            self.assertIn(f"each number from 1 to 1048576; not {weights}", said)

    @unittest.skipUnless(shutil.which("nvcc"), "no CUDA toolkit")
    def test_it_builds_with_the_library(self):
        subprocess.run(["nvcc", "-O2", "-std=c++20", "-o", self.program.with_name("real"), BENCH / "cublaslt_peer.cc", "-lcublasLt"], check=True)


if __name__ == "__main__":
    unittest.main()
