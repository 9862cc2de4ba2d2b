// Wrong models: each gives one message with file, key or tensor, and what was expected, before any memory of
// the chip is taken.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "base/units.h"
#include "models/decoder.h"
#include "models/spoiled_files.h"

namespace qiao {
namespace {

using ::testing::AllOf;
using testing::golden_models;
using ::testing::HasSubstr;
using testing::ModelFolder;
using testing::SpoiledGguf;
using testing::UntouchableBackend;

std::string refusal(const std::function<std::shared_ptr<ModelFiles>()>& open, ErrorKind kind,
                    const DecoderOptions& options = {}) {
  UntouchableBackend backend;
  try {
    Decoder::load(*open(), backend, options);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.what();
  }
  ADD_FAILURE() << "not refused";
  return "";
}

struct WrongConfig {
  std::string name, folder, patch;  // a JSON merge patch of config.json; null removes a key
  std::vector<std::string> expected;
  ErrorKind kind = ErrorKind::kInvalidInput;
};

void PrintTo(const WrongConfig& test, std::ostream* out) { *out << test.name; }

class WrongConfigTest : public ::testing::TestWithParam<WrongConfig> {};

TEST_P(WrongConfigTest, IsRefused) {
  const WrongConfig& test = GetParam();
  ModelFolder folder(test.folder);
  folder.json.merge_patch(parse_json(test.patch, "patch"));
  const std::string message = refusal([&] { return folder.open(); }, test.kind);
  for (const std::string& part : test.expected) EXPECT_THAT(message, HasSubstr(part));
}

const WrongConfig kWrongConfigs[] = {
    {"ABillionLayers",
     "llama",
     R"({"num_hidden_layers": 1000000000})",
     {"config.json: num_hidden_layers is 1000000000; an integer from 1 to 4096 was expected"}},
    {"MoreLayersThanTensors",
     "llama",
     R"({"num_hidden_layers": 4000})",
     {"tensor model.layers.2.input_layernorm.weight is missing; [32] was expected"}},
    {"NoLayers", "llama", R"({"num_hidden_layers": 0})", {"num_hidden_layers is 0"}},
    {"NegativeWidth", "llama", R"({"hidden_size": -32})", {"hidden_size is -32"}},
    {"HugeWidth", "llama", R"({"hidden_size": 18446744073709551615})", {"hidden_size is"}},
    {"WidthAsText", "llama", R"({"hidden_size": "32"})", {"hidden_size is", "an integer from 1"}},
    {"WidthAsFraction", "llama", R"({"hidden_size": 32.5})", {"hidden_size is", "an integer"}},
    {"NoWidth", "llama", R"({"hidden_size": null})", {"hidden_size is missing"}},
    {"HeadsThatDoNotDivide",
     "llama",
     R"({"num_key_value_heads": 3})",
     {"num_key_value_heads is 3; a divisor of num_attention_heads (4) was expected"}},
    {"HeadsThatDoNotDivideWidth",
     "llama",
     R"({"head_dim": null, "num_attention_heads": 6})",
     {"num_attention_heads is 6; a divisor of hidden_size (32) was expected"}},
    {"NoHeads", "llama", R"({"num_attention_heads": 0})", {"num_attention_heads is 0"}},
    {"OddHeads", "llama", R"({"head_dim": 7})", {"makes 7 dimensions of a head rotate", "an even number"}},
    {"HugeHeads", "llama", R"({"head_dim": 1000000})", {"head_dim is 1000000"}},
    {"NegativeEpsilon", "llama", R"({"rms_norm_eps": -1e-5})", {"rms_norm_eps is -1e-05"}},
    {"NoEpsilon", "llama", R"({"rms_norm_eps": null})", {"rms_norm_eps is missing"}},
    {"ZeroEpsilon", "llama", R"({"rms_norm_eps": 0})", {"rms_norm_eps is 0"}},
    {"NoPositions", "llama", R"({"max_position_embeddings": 0})", {"max_position_embeddings is 0"}},
    {"AnotherVocabulary",
     "llama",
     R"({"vocab_size": 97})",
     {"tensor model.embed_tokens.weight is F32[96, 32]; [97, 32] was expected"}},
    {"HugeVocabulary", "llama", R"({"vocab_size": 1000000000000})", {"vocab_size is 1000000000000"}},
    {"AnotherIntermediate",
     "llama",
     R"({"intermediate_size": 48})",
     {"tensor model.layers.0.mlp.gate_proj.weight is F32[40, 32]; [48, 32] was expected"}},
    {"UnknownArchitecture",
     "llama",
     R"({"model_type": "mamba"})",
     {"architecture \"mamba\" is not supported; supported are: llama, mistral, ", "hunyuan_v1_moe"},
     ErrorKind::kUnsupported},
    {"NoArchitecture", "llama", R"({"model_type": null})", {"model_type is missing"}},
    {"UnknownActivation",
     "llama",
     R"({"hidden_act": "relu2"})",
     {"hidden_act \"relu2\" is not supported"},
     ErrorKind::kUnsupported},
    {"BiasesThatAreNotThere",
     "llama",
     R"({"attention_bias": true})",
     {"tensor model.layers.0.self_attn.q_proj.bias is missing"}},
    {"BiasesThatNobodyNamed",
     "llama-biases",
     R"({"attention_bias": false})",
     {".self_attn.", ".bias\" (F32[", "belongs to no model of this architecture"},
     ErrorKind::kUnsupported},
    {"NoOutput",
     "qwen2",
     R"({"tie_word_embeddings": false})",
     {"tensor lm_head.weight is missing; [96, 32]"}},
    {"ThetaZero", "llama", R"({"rope_parameters": {"rope_theta": 0}})", {"rope_parameters.rope_theta is 0"}},
    {"UnknownRope",
     "llama",
     R"({"rope_parameters": {"rope_type": "spiral"}})",
     {"rope_parameters.rope_type \"spiral\" is not supported; supported are: default"},
     ErrorKind::kUnsupported},
    {"RopeNotAnObject",
     "llama",
     R"({"rope_parameters": 5})",
     {"rope_parameters is", "an object was expected"}},
    {"LinearWithoutFactor",
     "llama",
     R"({"rope_parameters": {"rope_type": "linear"}})",
     {"rope_parameters.factor is missing"}},
    {"FactorZero",
     "llama",
     R"({"rope_parameters": {"rope_type": "linear", "factor": 0}})",
     {"rope_parameters.factor is 0"}},
    {"Llama3BandsCrossed",
     "llama",
     R"({"rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}})",
     {"high_freq_factor is 4; more than low_freq_factor (4) was expected"}},
    {"TooFewLongFactors",
     "phi3",
     R"({"rope_parameters": {"long_factor": [1, 2, 3]}})",
     {"rope_parameters.long_factor is a list of 3; one of 4,"}},
    {"NegativeLongFactor",
     "phi3",
     R"({"rope_parameters": {"long_factor": [1, 2, 3, -4]}})",
     {"rope_parameters.long_factor is a list with -4"}},
    {"NoShortFactors",
     "phi3",
     R"({"rope_parameters": {"short_factor": null}})",
     {"rope_parameters.short_factor is missing"}},
    {"NothingRotates",
     "phi3",
     R"({"rope_parameters": {"partial_rotary_factor": 0.01}})",
     {"makes 0 dimensions of a head rotate"}},
    {"MoreThanAllRotates",
     "phi3",
     R"({"rope_parameters": {"partial_rotary_factor": 1.5}})",
     {"partial_rotary_factor is 1.5"}},
    {"LayerTypesTooFew",
     "gemma2",
     R"({"layer_types": ["sliding_attention"]})",
     {"layer_types is a list of 1; one for each of the 3 layers was expected"}},
    {"LayerTypeUnknown",
     "qwen2",
     R"({"use_sliding_window": true, "sliding_window": 8, "layer_types": ["full_attention", "linear_attention"]})",
     {"layers of kind \"linear_attention\" are not supported"},
     ErrorKind::kUnsupported},
    {"NegativeWindow", "mistral", R"({"sliding_window": -8})", {"sliding_window is -8"}},
    {"NoRopeListTooLong",
     "smollm3",
     R"({"no_rope_layers": [1, 1, 1, 0, 1]})",
     {"no_rope_layers is a list of 5"}},
    {"HugeSoftCap", "gemma2", R"({"attn_logit_softcapping": 1e300})", {"attn_logit_softcapping is 1e+300"}},
    {"ScalarZero", "gemma2", R"({"query_pre_attn_scalar": 0})", {"query_pre_attn_scalar is 0"}},
    {"BothWays",
     "gemma3",
     R"({"use_bidirectional_attention": true})",
     {"only causal attention"},
     ErrorKind::kUnsupported},
    {"MorePicksThanExperts",
     "qwen3-moe",
     R"({"num_experts_per_tok": 6})",
     {"num_experts_per_tok is 6; an integer from 1 to 5 was expected"}},
    {"ATrillionExperts",
     "qwen3-moe",
     R"({"num_local_experts": 1000000000000})",
     {"num_local_experts is 1000000000000"}},
    {"WiderExpertsThanStacked",
     "qwen3-moe",
     R"({"moe_intermediate_size": 24})",
     {"experts.gate_up_proj is F32[5, 32, 32]; [5, 48, 32] was expected"}},
    {"MoreExpertsThanTensors",
     "hunyuan-moe",
     R"({"num_experts": 5, "num_local_experts": 5})",
     {"tensor model.layers.0.mlp.gate.wg.weight is F32[4, 32]; [5, 32] was expected"}},
    {"ExpertsThatDifferByLayer",
     "hunyuan-moe",
     R"({"moe_topk": [2, 3]})",
     {"moe_topk is", "the same integer for all layers was expected"}},
    {"NoPicks", "hunyuan-moe", R"({"moe_topk": []})", {"moe_topk is []"}},
};

INSTANTIATE_TEST_SUITE_P(Configs, WrongConfigTest, ::testing::ValuesIn(kWrongConfigs),
                         [](const auto& param) { return param.param.name; });

// The same directory unspoiled must get as far as the chip, or the tests above prove nothing.
TEST(HostileModelTest, TheUnspoiledModelReachesTheChip) {
  UntouchableBackend backend;
  EXPECT_THROW(Decoder::load(*ModelFolder("llama").open(), backend), std::logic_error);
  EXPECT_THROW(Decoder::load(*SpoiledGguf("llama", "model.gguf").open(), backend), std::logic_error);
}

// ModelFolder with its weights replaced by an edited copy.
std::string refusal_of_tensors(const std::function<void(Json&)>& edit, ErrorKind kind) {
  const ModelFolder folder("llama");
  std::filesystem::remove(folder.path() / "model.safetensors");
  testing::rewrite_safetensors(golden_models() / "llama" / "model.safetensors",
                               folder.path() / "model.safetensors", edit);
  return refusal([&] { return folder.open(); }, kind);
}

constexpr const char* kQuery = "model.layers.1.self_attn.q_proj.weight";

TEST(HostileTensorTest, AMissingTensorIsNamed) {
  const auto message = refusal_of_tensors(
      [](Json& header) {
        header["another"] = header[kQuery];
        header.erase(kQuery);
      },
      ErrorKind::kInvalidInput);
  EXPECT_THAT(message, HasSubstr("tensor model.layers.1.self_attn.q_proj.weight is missing; [32, 32]"));
}

TEST(HostileTensorTest, AMisshapenTensorGivesBothShapes) {
  const auto message = refusal_of_tensors(
      [](Json& header) {
        header[kQuery]["shape"] = {16, 64};
      },
      ErrorKind::kInvalidInput);
  EXPECT_THAT(message, HasSubstr("q_proj.weight is F32[16, 64]; [32, 32] was expected"));
}

TEST(HostileTensorTest, ATensorOfAnotherRankGivesBothShapes) {
  const auto message =
      refusal_of_tensors([](Json& header) { header[kQuery]["shape"] = {1024}; }, ErrorKind::kInvalidInput);
  EXPECT_THAT(message, HasSubstr("q_proj.weight is F32[1024]; [32, 32] was expected"));
}

TEST(HostileTensorTest, WeightsOfIntegersAreRefused) {
  const auto message =
      refusal_of_tensors([](Json& header) { header[kQuery]["dtype"] = "I32"; }, ErrorKind::kUnsupported);
  EXPECT_THAT(message, HasSubstr("q_proj.weight is I32[32, 32]; floats or a block format were expected"));
}

TEST(HostileTensorTest, ATensorThatNoLayerHasIsRefused) {
  const auto message = refusal_of_tensors(
      [](Json& header) { header["model.layers.0.self_attn.q_proj.weight_scale"] = header[kQuery]; },
      ErrorKind::kInvalidInput);  // found by the reader already: two tensors on the same bytes
  EXPECT_FALSE(message.empty());
}

struct WrongGguf {
  std::string name;
  std::function<void(SpoiledGguf&)> spoil;
  std::vector<std::string> expected;
  ErrorKind kind = ErrorKind::kInvalidInput;
};

void PrintTo(const WrongGguf& test, std::ostream* out) { *out << test.name; }

class WrongGgufTest : public ::testing::TestWithParam<WrongGguf> {};

TEST_P(WrongGgufTest, IsRefused) {
  SpoiledGguf file("llama", "model.linear.gguf");
  GetParam().spoil(file);
  const std::string message = refusal([&] { return file.open(); }, GetParam().kind);
  for (const std::string& part : GetParam().expected) EXPECT_THAT(message, HasSubstr(part));
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

const WrongGguf kWrongGgufs[] = {
    {"FourBillionLayers",
     [](SpoiledGguf& f) { f.set("llama.block_count", UINT32_MAX); },
     {"model.gguf: llama.block_count is 4294967295; an integer from 1 to 4096 was expected"}},
    {"NoHeads",
     [](SpoiledGguf& f) { f.set("llama.attention.head_count", 0u); },
     {"llama.attention.head_count is 0"}},
    {"HeadsThatDoNotDivide",
     [](SpoiledGguf& f) { f.set("llama.attention.head_count_kv", 3u); },
     {"llama.attention.head_count_kv is 3; a divisor of llama.attention.head_count (4)"}},
    {"NoContext", [](SpoiledGguf& f) { f.set("llama.context_length", 0u); }, {"llama.context_length is 0"}},
    {"AnotherWidth",
     [](SpoiledGguf& f) { f.set("llama.embedding_length", 64u); },
     {"tensor token_embd.weight is F32[96, 32]; [96, 64] was expected"}},
    {"AnotherVocabulary",
     [](SpoiledGguf& f) { f.set("llama.vocab_size", 100u); },
     {"tensor token_embd.weight is F32[96, 32]; [100, 32] was expected"}},
    {"ValueLength",
     [](SpoiledGguf& f) { f.set("llama.attention.value_length", 16u); },
     {"llama.attention.value_length is 16; the key length 8 was expected"}},
    {"EpsilonNan",
     [](SpoiledGguf& f) { f.set("llama.attention.layer_norm_rms_epsilon", kNan); },
     {"llama.attention.layer_norm_rms_epsilon is nan"}},
    {"ThetaNan",
     [](SpoiledGguf& f) { f.set("llama.rope.freq_base", kNan); },
     {"llama.rope.freq_base is nan"}},
    {"ThetaInfinite",
     [](SpoiledGguf& f) { f.set("llama.rope.freq_base", kInfinity); },
     {"llama.rope.freq_base is inf"}},
    {"FactorNan",
     [](SpoiledGguf& f) { f.set("llama.rope.scaling.factor", kNan); },
     {"llama.rope.scaling.factor is nan"}},
    {"UnknownScaling",
     [](SpoiledGguf& f) { f.replace("linear", "linens"); },
     {"llama.rope.scaling.type is \"linens\"; none, linear, yarn or longrope was expected"}},
    {"OddRotation",
     [](SpoiledGguf& f) { f.set("llama.rope.dimension_count", 7u); },
     {"llama.rope.dimension_count makes 7 dimensions of a head rotate"}},
    {"RotationPastTheHead",
     [](SpoiledGguf& f) { f.set("llama.rope.dimension_count", 4096u); },
     {"llama.rope.dimension_count makes 4096 dimensions"}},
    {"MissingTensor",
     [](SpoiledGguf& f) { f.replace("blk.1.ffn_norm.weight", "blk.9.ffn_norm.weight"); },
     {"tensor blk.1.ffn_norm.weight is missing; [32] was expected"}},
    {"TensorOfAnotherKind",
     [](SpoiledGguf& f) { f.replace("output_norm.weight", "blk.0.attn_sinks.w"); },
     {"tensor output_norm.weight is missing"}},
};

INSTANTIATE_TEST_SUITE_P(Ggufs, WrongGgufTest, ::testing::ValuesIn(kWrongGgufs),
                         [](const auto& param) { return param.param.name; });

TEST(HostileModelTest, AnUnknownGgufArchitectureListsTheKnown) {
  SpoiledGguf file("qwen3", "model.gguf");
  file.replace("qwen3", "qwen9");  // general.architecture's value stands before every key
  const auto message = refusal([&] { return file.open(); }, ErrorKind::kUnsupported);
  EXPECT_THAT(message, AllOf(HasSubstr("architecture \"qwen9\" is not supported; supported are: llama"),
                             HasSubstr("hunyuan-dense"), HasSubstr("qwen3moe")));
}

TEST(HostileModelTest, AbsurdContextsAreRefused) {
  const ModelFolder folder("llama");
  for (const int64_t context : {int64_t{-1}, int64_t{1} << 40}) {
    const auto message =
        refusal([&] { return folder.open(); }, ErrorKind::kInvalidInput, {.context = context});
    EXPECT_THAT(message, HasSubstr("context"));
  }
}

TEST(HostileModelTest, AModelThatDoesNotFitIsRefusedWithBothSizes) {
  const auto files = ModelFolder("llama").open();
  UntouchableBackend backend(1000);
  try {
    Decoder::load(*files, backend);
    FAIL() << "not refused";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kTooLarge);
    EXPECT_THAT(error.what(), HasSubstr(format_bytes(files->weight_bytes())));
    EXPECT_THAT(error.what(), HasSubstr(format_bytes(1000) + " free"));
  }
}

}  // namespace
}  // namespace qiao
