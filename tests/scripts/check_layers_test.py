"""cmake/check_layers.py must find what is planted, and nothing in a tree that keeps the rules."""

import contextlib
import importlib.util
import io
import pathlib
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "cmake" / "check_layers.py"

# Read as a module: a program for each planted file would take seconds.
SPEC = importlib.util.spec_from_file_location("check_layers", SCRIPT)
CHECK_LAYERS = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(CHECK_LAYERS)

CLEAN = {
    "src/base/error.h": "#pragma once\n",
    "src/tensor/tensor.h": '#include "base/error.h"\n',
    "src/backend/backend.h": '#include "backend/ops/norm.h"\n#include "tensor/tensor.h"\n',
    "src/backend/ops/norm.h": '#include "tensor/tensor.h"\n',
    "src/backend/cpu/norm.h": '#include <immintrin.h>\n#include "backend/backend.h"\n__m256 x;\n',
    "src/backend/reference/norm.cc": '#include "backend/ops/norm.h"\n',
    "src/backend/conformance/norm.cc": '#include "backend/reference/norm.h"\n',
    "src/backend/reference/norm.h": "\n",
    "src/backend/registry/registry.cc": '#include "backend/cpu/norm.h"\n',
    "src/formats/gguf.h": '#include "base/error.h"\n',
    "src/text/tokenizer.h": '#include "formats/gguf.h"\n',
    "src/nn/layer.h": '#include "backend/backend.h"\n',
    "src/models/decoder.h": '#include "nn/layer.h"\n#include "formats/gguf.h"\n',
    "src/infer/engine.h": '#include "models/decoder.h"\n#include "text/tokenizer.h"\n',
    "src/cli/chat.cc": '#include "infer/engine.h"\n// uses __m256 and cudaStream_t of nothing\n',
}


class CheckLayers(unittest.TestCase):
    def run_on(self, extra):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in {**CLEAN, **extra}.items():
                path = pathlib.Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            output = io.StringIO()
            with mock.patch.object(sys, "argv", [str(SCRIPT), folder]), contextlib.redirect_stdout(output), \
                    contextlib.redirect_stderr(io.StringIO()):
                status = CHECK_LAYERS.main()
            return status, output.getvalue().splitlines()

    def expect(self, extra, *lines):
        status, output = self.run_on(extra)
        self.assertEqual(status, 1, output)
        self.assertEqual(len(output), len(lines), output)
        for got, wanted in zip(output, lines):
            self.assertIn(wanted, got)

    def test_a_clean_tree_passes(self):
        self.assertEqual(self.run_on({}), (0, []))

    def test_as_a_program(self):
        with tempfile.TemporaryDirectory() as folder:
            for text, status, said in (("\n", 0, "layers: clean\n"), ("__m512i x;\n", 1, "layers: 1 violations\n")):
                path = pathlib.Path(folder, "src/nn/x.cc")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
                run = subprocess.run([sys.executable, "-B", SCRIPT, folder], capture_output=True, text=True)
                self.assertEqual((run.returncode, run.stderr), (status, said))
            run = subprocess.run([sys.executable, "-B", SCRIPT, folder + "/src"], capture_output=True, text=True)
            self.assertEqual(run.returncode, 1)
            self.assertIn("has no folder src", run.stderr)

    def test_an_include_of_a_higher_layer(self):
        self.expect({"src/base/log.h": '#include "cli/chat.cc"\n'}, "src/base/log.h:1: base may not include cli")
        self.expect({"src/tensor/x.cc": '\n#  include "backend/backend.h"\n'}, "src/tensor/x.cc:2: tensor may not")
        self.expect({"src/formats/x.cc": '#include "models/decoder.h"\n'}, "src/formats/x.cc:1: formats may not")

    def test_a_chip_belongs_to_the_registry_alone(self):
        self.expect({"src/nn/x.cc": '#include "backend/cpu/norm.h"\n'}, "src/nn/x.cc:1: only backend/registry")
        self.expect({"src/backend/backend.cc": '#include "backend/cpu/norm.h"\n'}, "only backend/registry")
        self.expect({"src/backend/reference/x.cc": '#include "backend/cpu/norm.h"\n'}, "only backend/registry")
        self.expect({"src/backend/conformance/x.cc": '#include "backend/cpu/norm.h"\n'}, "only backend/registry")

    def test_a_chip_may_not_look_up(self):
        self.expect({"src/backend/cpu/x.cc": '#include "formats/gguf.h"\n'}, "a chip may include backend")

    def test_neighbours_that_include_each_other(self):
        self.expect({"src/formats/x.cc": '#include "text/tokenizer.h"\n'}, "formats and text include each other")

    def test_insides_of_a_neighbour(self):
        self.expect({"src/formats/internal.h": "\n", "src/text/x.cc": '#include "formats/internal.h"\n'},
                    "src/text/x.cc:1: formats/internal.h is an inside of formats")

    def test_a_folder_without_a_layer(self):
        self.expect({"src/misc/x.cc": '#include "base/error.h"\n'}, "folder misc is not in the table")

    def test_an_include_that_is_no_file(self):
        self.expect({"src/nn/x.cc": '#include "layer.h"\n'}, "is no file of src/")

    def test_chip_words_outside_a_chip(self):
        self.expect({"src/nn/x.cc": "\n__m512i x;\n"}, "src/nn/x.cc:2: a chip's types")
        self.expect({"src/nn/x.cc": "auto y = _mm256_add_ps(a, b);\n"}, "a chip's types")
        self.expect({"src/infer/x.h": "cudaStream_t stream;\n"}, "a chip's types")
        self.expect({"src/cli/x.cc": "#include <immintrin.h>\n"}, "a chip's types")
        self.expect({"src/cli/x.cc": "#ifdef CUDA\n#endif\n"}, "a chip's types")

    def test_a_long_file(self):
        self.assertEqual(self.run_on({"src/nn/x.cc": "\n" * 800}), (0, []))
        self.expect({"tests/nn/x.cc": "\n" * 801}, "tests/nn/x.cc:801: 801 lines")

    def test_a_path_of_one_machine(self):
        place = "/ho" + "me/somebody/x"
        self.expect({"tests/nn/x.cc": f'open("{place}");\n'}, "an absolute path")
        self.assertEqual(self.run_on({"tests/nn/x.cc": f'open("$HOME{place}");\n'}), (0, []))


if __name__ == "__main__":
    unittest.main()
