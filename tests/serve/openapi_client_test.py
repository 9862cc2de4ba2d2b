#!/usr/bin/env python3
"""/openapi.json against its own standard, and the server against it: schemathesis asks each endpoint what it says.

  QIAO_BINARY=build/bin/qiao python tests/serve/openapi_client_test.py             under a minute, the same each time
  QIAO_BINARY=build/bin/qiao SCHEMATHESIS_EXAMPLES=300 SCHEMATHESIS_PHASES=coverage,fuzzing python tests/serve/openapi_client_test.py      longer, by hand
"""
import json
import os
import subprocess
import sys
import tempfile
import unittest

import openapi_spec_validator

from openai_client_test import ROOT, Served

PLACE = {"{response_id}": "x", "{model}": "x"}
EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "8")
PHASES = os.environ.get("SCHEMATHESIS_PHASES", "fuzzing")  # by hand also coverage, which takes minutes
SEED = os.environ.get("SCHEMATHESIS_SEED", "7")
ENCODER = str(ROOT / "tests" / "golden" / "encoders" / "bert")
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def filled(path):
    for name, value in PLACE.items():
        path = path.replace(name, value)
    return path


def description(served):
    status, headers, body = served.request("GET", "/openapi.json")
    assert status == 200 and headers["content-type"] == "application/json"
    return json.loads(body)


class OpenApiTest(unittest.TestCase):
    def test_the_document_is_valid(self):
        for served in (Served(), Served("--api-key", "secret"), Served(model=ENCODER)):
            try:
                openapi_spec_validator.validate(description(served))
            finally:
                served.stop()

    def test_keys_are_asked_for_where_there_are_some(self):
        open_one, keyed = Served(), Served("--api-key", "secret")
        try:
            document = description(open_one)
            self.assertNotIn("security", document)
            self.assertNotIn("401", document["paths"]["/v1/chat/completions"]["post"]["responses"])
            document = description(keyed)
            self.assertEqual(document["security"], [{"bearer": []}, {"x-api-key": []}])
            self.assertIn("401", document["paths"]["/v1/chat/completions"]["post"]["responses"])
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    if operation.get("security") != []:
                        self.assertEqual(keyed.request(method.upper(), filled(path), {} if method == "post" else None)[0], 401, path)
        finally:
            open_one.stop()
            keyed.stop()

    def test_every_path_answers(self):
        served = Served()
        try:
            for path, operations in description(served)["paths"].items():
                for method in operations:
                    status, _, body = served.request(method.upper(), filled(path), {} if method == "post" else None)
                    self.assertNotIn(status, (405, 500), path)
                    self.assertNotIn(b"no such path", body, path)
                status, _, _ = served.request("PATCH", filled(path))
                self.assertEqual(status, 405, path)
        finally:
            served.stop()

    def schemathesis(self, *flags, model):
        served = Served("-np", "8", model=model)
        try:
            with tempfile.TemporaryDirectory() as folder:
                run = subprocess.run(
                    [sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{served.port}/openapi.json", "--checks", CHECKS,
                     "--phases", PHASES, "--max-examples", EXAMPLES, "--seed", SEED, "--workers", "4",
                     "--request-timeout", "600", "--generation-database", "none", "--no-color", "--no-shrink",
                     "--continue-on-failure", "--suppress-health-check", "all", *flags],
                    cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=3600)
            self.assertEqual(run.returncode, 0, run.stdout[-6000:])
            self.assertEqual(served.request("GET", "/health")[0], 200)
        finally:
            self.assertEqual(served.stop(), 0)

    def test_schemathesis_finds_nothing(self):
        self.schemathesis(model=str(ROOT / "tests" / "golden" / "chat"))

    def test_schemathesis_finds_nothing_in_an_encoder(self):
        self.schemathesis(model=ENCODER)


if __name__ == "__main__":
    unittest.main(verbosity=1)
