// What a configuration says of quantized matrices: what is read, what is refused, and what is advised.
#include "formats/quantization_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/expect_error.h"

namespace qiao {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

Json json_of(const std::string& text) { return parse_json(text, "config.json"); }

std::vector<std::pair<int64_t, int64_t>> blocks(const std::string& quantization) {
  std::vector<std::pair<int64_t, int64_t>> sizes;
  for (const ScaleBlock& block :
       scale_blocks(json_of(R"({"quantization_config":)" + quantization + "}"), "m"))
    sizes.emplace_back(block.rows, block.columns);
  return sizes;
}

TEST(QuantizationConfigTest, BlocksOfEachGroup) {
  using Sizes = std::vector<std::pair<int64_t, int64_t>>;
  EXPECT_EQ(blocks(R"({"weight_block_size":[64,128]})"), (Sizes{{64, 128}}));
  EXPECT_EQ(blocks(R"({"config_groups":{"a":{"weights":{"block_structure":[128,64]}},"b":{"weights":null},
                       "c":{"weights":{"strategy":"group","group_size":32}},
                       "d":{"weights":{"strategy":"channel","group_size":7}}}})"),
            (Sizes{{128, 64}, {1, 32}}));
  for (const std::string other :
       {"null", "7", "\"fp8\"", "[]", "{}", R"({"config_groups":[]})", R"({"config_groups":{"a":3}})",
        R"({"config_groups":{"a":{"weights":[1]}}})", R"({"weight_block_size":null})"}) {
    EXPECT_EQ(blocks(other), Sizes()) << other;
  }
  EXPECT_EQ(
      scale_blocks(json_of(R"({"text_config":{"quantization_config":{"weight_block_size":[1,2]}}})"), "m")
          .front()
          .columns,
      2);
}

void check(const std::string& quantization) {
  check_quantization(json_of(R"({"quantization_config":)" + quantization + "}"), "model");
}

TEST(QuantizationConfigTest, RefusesWhatProductsWouldNeed) {
  const auto transforms = [](const std::string& location) {
    return R"({"transform_config":{"config_groups":{"R":{"type":"hadamard","apply":[{"location":"weight_input"},
               {"location":)" +
           location + "}]}}}}";
  };
  for (const std::string location : {"\"input\"", "\"q_attn\"", "\"output\"", "3", "null"})
    EXPECT_QIAO_ERROR(check(transforms(location)), kUnsupported, "model: ", "transform_config",
                      "take the model");
  check(transforms("\"weight_output\""));
  const auto symmetric = [](const std::string& type, const std::string& value) {
    return R"({"config_groups":{"g":{"weights":{"type":")" + type + R"(","symmetric":)" + value + "}}}}";
  };
  EXPECT_QIAO_ERROR(check(symmetric("float", "false")), kUnsupported, "symmetric is false", "take the model");
  check(symmetric("float", "true"));
  check(symmetric("float", "0"));
  check(symmetric("int", "false"));  // its tensors are refused by name
  for (const std::string other :
       {R"({"transform_config":{}})", R"({"transform_config":[]})",
        R"({"transform_config":{"config_groups":{"R":{"apply":3}}}})", "null", "[]"}) {
    check(other);
  }
}

TEST(QuantizationConfigTest, AdvisesByTensorsOrMethod) {
  const auto advice = [](const std::string& tensor, const std::string& config) {
    TensorInfo info;
    info.name = tensor;
    return quantization_advice(json_of(config), {&info, 1});
  };
  const std::pair<std::string, std::string> kinds[] = {
      {"q_proj.qweight", "GPTQ or AWQ"},
      {"q_proj.weight_packed", "compressed-tensors in packed integers or FP4"},
      {"q_proj.weight_scale_2", "NVFP4"},
      {"q_proj.weight.absmax", "bitsandbytes"},
      {"q_proj.SCB", "bitsandbytes"},
      {"experts.down_proj_blocks", "MXFP4"}};
  for (const auto& [tensor, name] : kinds)
    EXPECT_THAT(advice(tensor, "{}"), AllOf(HasSubstr(name), HasSubstr("take the model"))) << tensor;
  EXPECT_THAT(advice("a", R"({"quantization_config":{"quant_method":"bit\nnet"}})"),
              AllOf(HasSubstr("quant_method"), HasSubstr("take the model"), ::testing::Not(HasSubstr("\n"))));
  for (const std::string config : {"{}", R"({"quantization_config":{"quant_method":"fp8"}})",
                                   R"({"quantization_config":{"quant_method":3}})"})
    EXPECT_EQ(advice("q_proj.weight", config), "") << config;
}

}  // namespace
}  // namespace qiao
