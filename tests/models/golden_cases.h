// The golden models of tests/golden/models, each as a directory and, where there is one, as a GGUF file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/model_folder.h"

namespace qiao::testing {

struct GoldenCase {
  std::string name;  // "llama-directory", "llama-gguf"
  std::string folder, config, gguf, expected;
  std::vector<int32_t> prompt;
  int64_t context = 0;
};

inline std::vector<GoldenCase> golden_cases() {
  std::vector<GoldenCase> cases;
  for (const Json& entry : parse_json(read_file(golden_models() / "cases.json"), "cases.json")) {
    const auto name = entry.at("name").get<std::string>();
    GoldenCase test;
    test.name = name + "-directory";
    test.folder = entry.at("folder").get<std::string>();
    test.config = entry.at("config").get<std::string>();
    test.expected = entry.at("expected").get<std::string>();
    test.prompt = entry.at("prompt").get<std::vector<int32_t>>();
    test.context = entry.at("context").get<int64_t>();
    cases.push_back(test);
    if (!entry.contains("gguf")) continue;
    test.name = name + "-gguf";
    test.gguf = entry.at("gguf").get<std::string>();
    cases.push_back(test);
  }
  return cases;
}

}  // namespace qiao::testing
