// Wrong LoRA adapters: each gives one line with file, key or tensor, and what was expected.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/units.h"
#include "models/lora.h"
#include "models/spoiled_files.h"

namespace qiao {
namespace {

using testing::golden_models;
namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::ModelFolder;
using testing::rewrite_safetensors;
using testing::TemporaryFolder;
using testing::write_text;

fs::path lora_of(const std::string& name) { return fs::path(QIAO_TEST_DATA) / "golden" / "lora" / name; }

std::shared_ptr<Decoder> base_of(Backend& backend, const std::string& folder, const std::string& gguf = "") {
  const auto files =
      gguf.empty() ? ModelFolder(folder).open() : ModelFiles::open(golden_models() / folder / gguf);
  return Decoder::load(*files, backend);
}

// What loading the adapter on the golden model `base` says; empty where it loads.
std::string refusal_of(const fs::path& adapter, ErrorKind kind, const std::string& base = "llama",
                       const std::string& gguf = "") {
  const auto backend = make_backend("reference", {.threads = 1});
  const auto decoder = base_of(*backend, base, gguf);
  const uint64_t before = decoder->weight_bytes();
  try {
    decoder->add_adapter(*LoraFiles::open(adapter));
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    EXPECT_EQ(decoder->weight_bytes(), before);
    EXPECT_EQ(decoder->adapters(), 0);
    return error.what();
  }
  ADD_FAILURE() << "not refused";
  return "";
}

// A copy of a golden adapter of PEFT, with a merge patch of its configuration and its header edited.
class SpoiledAdapter {
 public:
  explicit SpoiledAdapter(
      const std::string& patch, const std::function<void(Json&)>& edit = [](Json&) {},
      const std::string& name = "llama") {
    Json config = parse_json(read_file(lora_of(name) / "adapter_config.json"), "adapter_config.json");
    config.merge_patch(parse_json(patch, "patch"));
    write_text(folder_.path() / "adapter_config.json", dump_json(config));
    rewrite_safetensors(lora_of(name) / "adapter_model.safetensors",
                        folder_.path() / "adapter_model.safetensors", edit);
  }
  const fs::path& path() const { return folder_.path(); }

 private:
  TemporaryFolder folder_;
};

struct WrongLoraConfig {
  std::string name, patch, expected;
  ErrorKind kind = ErrorKind::kInvalidInput;
};

void PrintTo(const WrongLoraConfig& test, std::ostream* out) { *out << test.name; }

class WrongLoraConfigTest : public ::testing::TestWithParam<WrongLoraConfig> {};

TEST_P(WrongLoraConfigTest, IsRefused) {
  const SpoiledAdapter adapter(GetParam().patch);
  const std::string message = refusal_of(adapter.path(), GetParam().kind);
  EXPECT_THAT(message, HasSubstr("adapter_config.json"));
  EXPECT_THAT(message, HasSubstr(GetParam().expected));
}

const WrongLoraConfig kWrongLoraConfigs[] = {
    {"AnotherKind", R"({"peft_type": "IA3"})", "peft_type is \"IA3\"; \"LORA\" was expected",
     ErrorKind::kUnsupported},
    {"NoKind", R"({"peft_type": null})", "peft_type is missing", ErrorKind::kUnsupported},
    {"NoRank", R"({"r": null})", "r is missing"},
    {"RankOfZero", R"({"r": 0})", "r is 0; an integer from 1 to 65536 was expected"},
    {"NegativeRank", R"({"r": -4})", "r is -4; an integer"},
    {"HugeRank", R"({"r": 18446744073709551615})", "r is 18446744073709551615; an integer"},
    {"RankAsText", R"({"r": "4"})", "r is \"4\"; an integer"},
    {"AnotherRank", R"({"r": 8})", "a rank of 8 was expected"},
    {"NoAlpha", R"({"lora_alpha": null})", "lora_alpha is missing"},
    {"AlphaAsText", R"({"lora_alpha": "8"})", "lora_alpha is \"8\"; a number"},
    {"HugeAlpha", R"({"lora_alpha": 1e300})", "lora_alpha is 1e+300; a number"},
    {"RankPatternAsList", R"({"rank_pattern": [4]})", "rank_pattern is [4]; an object"},
    {"RankPatternOfZero", R"({"rank_pattern": {"q_proj": 0}})", "rank_pattern: \"q_proj\" is 0; an integer"},
    {"RankPatternThatDoesNotFit", R"({"rank_pattern": {"q_proj": 5}})", "a rank of 5 was expected"},
    {"WrongExpression", R"({"alpha_pattern": {"(q_proj": 4}})", "alpha_pattern: \"(q_proj\""},
    {"AlphaPatternAsText", R"({"alpha_pattern": {"q_proj": "x"}})",
     "alpha_pattern: \"q_proj\" is \"x\"; a number"},
    {"Stabilised", R"({"use_rslora": 1})", "use_rslora is 1; true or false"},
    {"TargetsAsNumber", R"({"target_modules": 7})", "target_modules is 7; a list of names"},
    {"TargetOfANumber", R"({"target_modules": [7]})", "target_modules is 7; a module's name"},
    {"ModuleThatIsNoTarget", R"({"target_modules": ["q_proj"]})", "not of target_modules"},
    {"LayerThatIsNoTarget", R"({"layers_to_transform": 0})", "not of target_modules and layers_to_transform"},
    {"LayersAsText", R"({"layers_to_transform": "all"})", "layers_to_transform is \"all\"; a layer's index"},
    {"NegativeLayer", R"({"layers_to_transform": [-1]})", "layers_to_transform is -1; a layer's index"},
    {"Dora", R"({"use_dora": true})", "use_dora is true: not supported", ErrorKind::kUnsupported},
    {"Bias", R"({"bias": "all"})", "bias is \"all\"", ErrorKind::kUnsupported},
    {"LoraBias", R"({"lora_bias": true})", "lora_bias is true", ErrorKind::kUnsupported},
    {"ModulesToSave", R"({"modules_to_save": ["lm_head"]})", "modules_to_save is [\"lm_head\"]",
     ErrorKind::kUnsupported},
    {"TokenIndices", R"({"trainable_token_indices": [3]})", "trainable_token_indices is [3]",
     ErrorKind::kUnsupported},
    {"LayerReplication", R"({"layer_replication": [[0, 1]]})", "layer_replication is",
     ErrorKind::kUnsupported},
    {"Experts", R"({"target_parameters": ["down_proj"]})", "target_parameters is", ErrorKind::kUnsupported},
    {"ActivatedLora", R"({"alora_invocation_tokens": [1, 2]})", "alora_invocation_tokens is [1,2]",
     ErrorKind::kUnsupported},
    {"Pissa", R"({"init_lora_weights": "pissa_niter_16"})", "init_lora_weights is \"pissa_niter_16\"",
     ErrorKind::kUnsupported},
    {"UnknownKey", R"({"quantum": {"spin": 1}})", "quantum is {\"spin\":1}: not supported",
     ErrorKind::kUnsupported},
};

INSTANTIATE_TEST_SUITE_P(All, WrongLoraConfigTest, ::testing::ValuesIn(kWrongLoraConfigs),
                         [](const auto& param) { return param.param.name; });

constexpr std::string_view kQueryModule = "base_model.model.model.layers.0.self_attn.q_proj";

void rename(Json& header, const std::string& from, const std::string& to) {
  const Json entry = header.at(from);
  header.erase(from);
  header[to] = entry;
}

TEST(LoraTensorsTest, WrongOnesAreRefusedByName) {
  const std::string a = fmt::format("{}.lora_A.weight", kQueryModule),
                    b = fmt::format("{}.lora_B.weight", kQueryModule);
  const auto says = [](const std::function<void(Json&)>& edit, ErrorKind kind = ErrorKind::kInvalidInput) {
    return refusal_of(SpoiledAdapter("{}", edit).path(), kind);
  };
  const auto renamed = [&](const std::string& from, const std::string& to) {
    return says([&](Json& header) { rename(header, from, to); }, ErrorKind::kUnsupported);
  };
  EXPECT_THAT(says([&](Json& header) {
                header[a]["shape"] = {8, 16};
              }),
              HasSubstr("q_proj.lora_B.weight\" is F32[32, 4]; [rows, 8] was expected"));
  EXPECT_THAT(says([&](Json& header) { header[a]["shape"] = {128}; }),
              HasSubstr("[rank, columns] was expected"));
  EXPECT_THAT(says([&](Json& header) {
                header[a]["shape"] = {4, 2, 16};
              }),
              HasSubstr("is F32[4, 2, 16]; [rank, columns] was expected"));
  EXPECT_THAT(says([&](Json& header) {
                header[a]["shape"] = {2, 64};
                header[b]["shape"] = {64, 2};
              }),
              HasSubstr("q_proj.lora_A.weight\" is F32[2, 64]; [2, 32] was expected"));
  EXPECT_THAT(says([&](Json& header) { header[a]["dtype"] = "I32"; }, ErrorKind::kUnsupported),
              HasSubstr("I32"));
  EXPECT_THAT(says([&](Json& header) {
                rename(header, a, "base_model.model.model.layers.1.self_attn.qq_proj.lora_A.weight");
              }),
              HasSubstr("q_proj.lora_B.weight\" (F32[32, 4]) stands alone"));
  EXPECT_THAT(renamed(a, fmt::format("{}.lora_magnitude_vector", kQueryModule)),
              HasSubstr("DoRA is not supported"));
  EXPECT_THAT(renamed(a, fmt::format("{}.lora_embedding_A", kQueryModule)),
              HasSubstr("embeddings are not supported"));
  EXPECT_THAT(renamed(a, "base_model.model.lm_head.weight"), HasSubstr("modules_to_save"));
  EXPECT_THAT(renamed(a, fmt::format("{}.lora_A.bias", kQueryModule)), HasSubstr("biases are not supported"));
}

TEST(LoraTensorsTest, ModulesThatTakeNoneAreRefusedByName) {
  const auto says = [](const std::string& module) {
    const SpoiledAdapter adapter(R"({"target_modules": null})", [&](Json& header) {
      for (const char* half : {".lora_A.weight", ".lora_B.weight"})
        rename(header, std::string(kQueryModule) + half, "base_model.model." + module + half);
    });
    return refusal_of(adapter.path(), ErrorKind::kUnsupported);
  };
  EXPECT_THAT(says("lm_head"), HasSubstr("adapters of the output matrix are not supported"));
  EXPECT_THAT(says("model.embed_tokens"), HasSubstr("adapters of embeddings are not supported"));
  EXPECT_THAT(says("model.layers.0.mlp.experts.1.up_proj"),
              HasSubstr("adapters of experts are not supported"));
  EXPECT_THAT(says("model.layers.7.self_attn.q_proj"), HasSubstr("the base has no such module"));
  EXPECT_THAT(says("model.layers.0.self_attn.qq"), HasSubstr("layers.0.self_attn.qq.lora_A.weight"));
  EXPECT_THAT(says("model.layers.99999999999999999999.self_attn.q_proj"),
              HasSubstr("the base has no such module"));
}

TEST(LoraFilesTest, WhatIsNotThereIsNamed) {
  const TemporaryFolder folder;
  EXPECT_THAT(refusal_of(folder.path() / "nowhere", ErrorKind::kNotFound), HasSubstr("no such file"));
  EXPECT_THAT(refusal_of(folder.path(), ErrorKind::kNotFound), HasSubstr("there is no adapter_config.json"));
  fs::copy_file(lora_of("llama") / "adapter_config.json", folder.path() / "adapter_config.json");
  EXPECT_THAT(refusal_of(folder.path(), ErrorKind::kNotFound),
              HasSubstr("there is no adapter_model.safetensors"));
  write_text(folder.path() / "adapter_model.bin", "pickle");
  EXPECT_THAT(refusal_of(folder.path(), ErrorKind::kUnsupported), HasSubstr("may run code"));
  write_text(folder.path() / "adapter_model.safetensors", "xx");
  EXPECT_THAT(refusal_of(folder.path(), ErrorKind::kInvalidInput), HasSubstr("adapter_model.safetensors"));
  write_text(folder.path() / "adapter_config.json", "[]");
  EXPECT_THAT(refusal_of(folder.path(), ErrorKind::kInvalidInput), HasSubstr("a JSON object was expected"));
}

TEST(LoraFilesTest, AnAdapterOfAnotherModelIsRefused) {
  EXPECT_THAT(refusal_of(lora_of("qwen3"), ErrorKind::kInvalidInput), HasSubstr("was expected"));
  EXPECT_THAT(
      refusal_of(lora_of("qwen3") / "adapter.gguf", ErrorKind::kInvalidInput),
      HasSubstr(
          "general.architecture is \"qwen3\": an adapter of another architecture than the model's (Llama)"));
  EXPECT_THAT(refusal_of(lora_of("llama") / "adapter.gguf", ErrorKind::kInvalidInput, "qwen3"),
              HasSubstr("another architecture"));
  EXPECT_THAT(refusal_of(lora_of("llama-biases") / "adapter.gguf", ErrorKind::kInvalidInput),
              HasSubstr("was expected"));
}

TEST(LoraFilesTest, AGgufThatIsNoAdapterIsRefused) {
  EXPECT_THAT(refusal_of(golden_models() / "llama" / "model.gguf", ErrorKind::kInvalidInput),
              HasSubstr("general.type is \"model\"; \"adapter\" was expected"));
  const TemporaryFolder folder;
  const std::string bytes = read_file(lora_of("llama") / "adapter.gguf");
  const auto changed = [&](const std::string& text, const std::string& with) {
    std::string copy = bytes;
    copy.replace(copy.find(text), text.size(), with);
    write_text(folder.path() / "adapter.gguf", copy);
    return folder.path() / "adapter.gguf";
  };
  EXPECT_THAT(refusal_of(changed("adapter.type", "adapter.typo"), ErrorKind::kInvalidInput),
              HasSubstr("adapter.type is missing"));
  EXPECT_THAT(refusal_of(changed("adapter.lora.alpha", "adapter.lora.alphq"), ErrorKind::kInvalidInput),
              HasSubstr("adapter.lora.alpha is missing"));
  EXPECT_THAT(refusal_of(changed("blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_x"),
                         ErrorKind::kUnsupported),
              HasSubstr("blk.0.attn_q.weight.lora_x"));
  EXPECT_THAT(refusal_of(changed("blk.0.attn_q.weight.lora_a", "blk.7.attn_q.weight.lora_a"),
                         ErrorKind::kInvalidInput),
              HasSubstr("stands alone"));
  for (size_t cut = 0; cut < bytes.size(); cut += 97) {
    write_text(folder.path() / "adapter.gguf", bytes.substr(0, cut));
    EXPECT_FALSE(refusal_of(folder.path() / "adapter.gguf", ErrorKind::kInvalidInput).empty()) << cut;
  }
}

TEST(LoraFilesTest, OneThatDoesNotFitInMemoryIsRefusedWithBothSizes) {
  const auto files = ModelFolder("llama").open();
  const auto backend = make_backend("reference", {.threads = 1});
  const DecoderConfig config = read_decoder_config(*files);
  DecoderWeights weights = load_weights(*files, *backend, config, {});
  testing::UntouchableBackend small(1000);
  try {
    add_lora(*LoraFiles::open(lora_of("llama")), {config, find_family(ConfigReader(*files)), false}, small, 0,
             weights);
    ADD_FAILURE() << "not refused";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kTooLarge);
    EXPECT_THAT(error.what(), HasSubstr(fmt::format("its matrices take {}, chip untouchable has {} free",
                                                    format_bytes(14080), format_bytes(1000))));
  }
}

}  // namespace
}  // namespace qiao
