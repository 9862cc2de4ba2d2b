// Encoders against Transformers: tiny random models (tests/golden/make_embeddings.py), ids, hidden states of
// each position, pooled vectors, scores of cross-encoders; the engine; and all-MiniLM-L6-v2 where it is here.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <future>

#include "base/error.h"
#include "base/file.h"
#include "infer/encoder_engine.h"

namespace qiao {
namespace {

namespace fs = std::filesystem;

fs::path golden() { return fs::path(QIAO_TEST_DATA) / "golden"; }

std::shared_ptr<EmbeddingModel> load_encoder(const fs::path& path, const std::string& device = "cpu",
                                             int threads = 1) {
  LanguageModelOptions options;
  options.device = device;
  options.threads = threads;
  return EmbeddingModel::load(path, options);
}

Json expected_of(const std::string& name) {
  return parse_json(read_file(golden() / "encoders" / name / "expected.json"), name);
}

std::vector<float> hidden_of(const EmbeddingModel& model, const std::vector<EncoderInput>& inputs) {
  std::vector<int32_t> tokens, types, starts = {0};
  for (const EncoderInput& input : inputs) {
    tokens.insert(tokens.end(), input.tokens.begin(), input.tokens.end());
    types.insert(types.end(), input.types.begin(), input.types.end());
    types.resize(tokens.size());
    starts.push_back(static_cast<int32_t>(tokens.size()));
  }
  const auto workspace = model.encoder().make_workspace(
      {static_cast<int64_t>(tokens.size()), static_cast<int64_t>(inputs.size())});
  const Tensor hidden = model.encoder().forward({tokens, types, starts}, *workspace);
  std::vector<float> rows(static_cast<size_t>(hidden.elements()));
  model.backend().download(rows.data(), hidden.data, rows.size() * sizeof(float));
  return rows;
}

double cosine(const std::vector<float>& a, const std::vector<float>& b) {
  double dot = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    dot += static_cast<double>(a[i]) * b[i];
    aa += static_cast<double>(a[i]) * a[i];
    bb += static_cast<double>(b[i]) * b[i];
  }
  return dot / std::sqrt(aa * bb);
}

EncoderOutcome ask(EncoderEngine& engine, std::vector<EncoderInput> inputs) {
  std::promise<EncoderOutcome> promise;
  engine.submit(std::move(inputs), [&](const EncoderOutcome& outcome) { promise.set_value(outcome); });
  return promise.get_future().get();
}

std::vector<EncoderInput> inputs_of(const EmbeddingModel& model, const Json& texts) {
  std::vector<EncoderInput> inputs;
  for (const Json& entry : texts) {
    inputs.push_back(model.encode(entry.at("text").get<std::string>()));
    model.truncate(inputs.back(), model.max_tokens());
  }
  return inputs;
}

struct EncoderCase {
  std::string folder, chip;
};
void PrintTo(const EncoderCase& test, std::ostream* out) { *out << test.folder << " on " << test.chip; }

class EncoderParityTest : public ::testing::TestWithParam<EncoderCase> {};

TEST_P(EncoderParityTest, IsTransformers) {
  const auto model = load_encoder(golden() / "encoders" / GetParam().folder, GetParam().chip);
  const Json texts = expected_of(GetParam().folder).at("texts");
  const std::vector<EncoderInput> inputs = inputs_of(*model, texts);
  for (size_t i = 0; i < inputs.size(); ++i)
    EXPECT_EQ(inputs[i].tokens, texts[i].at("ids").get<std::vector<int32_t>>()) << texts[i].at("text");

  const std::vector<float> got = hidden_of(*model, inputs);
  const std::string bytes = read_file(golden() / "encoders" / GetParam().folder / "hidden.f32");
  ASSERT_EQ(bytes.size(), got.size() * sizeof(float));
  std::vector<float> expected(got.size());
  std::memcpy(expected.data(), bytes.data(), bytes.size());
  const auto width = static_cast<size_t>(model->encoder().config().hidden_size);
  for (size_t row = 0; row < got.size() / width; ++row) {
    double difference = 0, largest = 0;
    for (size_t i = row * width; i < (row + 1) * width; ++i) {
      ASSERT_FALSE(std::isnan(got[i])) << row;
      difference = std::max(difference, std::abs(static_cast<double>(expected[i]) - got[i]));
      largest = std::max(largest, std::abs(static_cast<double>(expected[i])));
    }
    EXPECT_LE(difference / largest, 1e-4) << "position " << row;
  }

  EncoderEngine engine(model);
  const EncoderOutcome outcome = ask(engine, inputs);
  ASSERT_EQ(outcome.finish, FinishReason::kStop);
  for (size_t i = 0; i < inputs.size(); ++i) {
    const auto vector = texts[i].at("embedding").get<std::vector<float>>();
    ASSERT_EQ(outcome.vectors[i].size(), vector.size());
    EXPECT_GE(cosine(outcome.vectors[i], vector), 0.9999) << texts[i].at("text");
    double squares = 0, other = 0;  // lengths too: not all models normalize
    for (size_t c = 0; c < vector.size(); ++c) {
      squares += static_cast<double>(vector[c]) * vector[c];
      other += static_cast<double>(outcome.vectors[i][c]) * outcome.vectors[i][c];
    }
    EXPECT_NEAR(other / squares, 1.0, 1e-4) << texts[i].at("text");
  }
}

// A text's vector has the same bytes alone and beside others, on any number of threads.
TEST_P(EncoderParityTest, NeighboursChangeNothing) {
  const fs::path path = golden() / "encoders" / GetParam().folder;
  const auto model = load_encoder(path, GetParam().chip), threaded = load_encoder(path, GetParam().chip, 3);
  const std::vector<EncoderInput> inputs = inputs_of(*model, expected_of(GetParam().folder).at("texts"));
  const std::vector<float> packed = hidden_of(*model, inputs);
  EXPECT_EQ(hidden_of(*threaded, inputs), packed);
  std::vector<float> alone;
  for (const EncoderInput& input : inputs) {
    const std::vector<float> rows = hidden_of(*model, {input});
    alone.insert(alone.end(), rows.begin(), rows.end());
  }
  EXPECT_EQ(alone, packed);
}

INSTANTIATE_TEST_SUITE_P(Encoders, EncoderParityTest,
                         ::testing::Values(EncoderCase{"bert", "reference"}, EncoderCase{"bert", "cpu"},
                                           EncoderCase{"bert-all-modes", "cpu"},
                                           EncoderCase{"roberta", "cpu"}, EncoderCase{"roberta", "reference"},
                                           EncoderCase{"distilbert", "cpu"}, EncoderCase{"mpnet", "cpu"},
                                           EncoderCase{"mpnet", "reference"}, EncoderCase{"electra", "cpu"}),
                         [](const auto& info) {
                           std::string name = info.param.folder + "_" + info.param.chip;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

class CrossEncoderTest : public ::testing::TestWithParam<std::string> {};

TEST_P(CrossEncoderTest, ScoresAreTransformers) {
  const auto model = load_encoder(golden() / "encoders" / GetParam());
  ASSERT_TRUE(model->is_cross_encoder());
  const Json pairs = expected_of(GetParam()).at("pairs");
  std::vector<EncoderInput> inputs;
  for (const Json& pair : pairs) {
    inputs.push_back(model->encode_pair(model->encode_plain(pair.at("query").get<std::string>()),
                                        model->encode_plain(pair.at("document").get<std::string>()),
                                        model->max_tokens()));
    EXPECT_EQ(inputs.back().tokens, pair.at("ids").get<std::vector<int32_t>>()) << pair.at("query");
  }
  EncoderEngine engine(model);
  const EncoderOutcome outcome = ask(engine, inputs);
  ASSERT_EQ(outcome.finish, FinishReason::kStop) << outcome.error;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const double score = pairs[i].at("score").get<double>();
    EXPECT_NEAR(outcome.vectors[i].at(0), score, 1e-4 * std::max(1.0, std::abs(score)));
  }
}

INSTANTIATE_TEST_SUITE_P(Encoders, CrossEncoderTest,
                         ::testing::Values("cross-bert", "cross-xlm-roberta", "cross-mpnet",
                                           "cross-distilbert", "cross-electra"),
                         [](const auto& info) {
                           std::string name = info.param.substr(6);
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(MiniLmTest, IsTransformers) {
  const fs::path path = qiao_home() / "models" / "minilm";
  if (!fs::exists(path)) GTEST_SKIP() << "not here; qiao pull minilm fetches it";
  const auto model = load_encoder(path, "cpu", 2);
  EXPECT_EQ(model->max_tokens(), 256);
  EXPECT_EQ(model->pooling().dimensions, 384);
  const Json texts = parse_json(read_file(golden() / "minilm.json"), "minilm.json").at("texts");
  const std::vector<EncoderInput> inputs = inputs_of(*model, texts);
  EncoderEngine engine(model);
  const EncoderOutcome outcome = ask(engine, inputs);
  for (size_t i = 0; i < inputs.size(); ++i) {
    EXPECT_EQ(inputs[i].tokens.size(), texts[i].at("tokens").get<size_t>()) << texts[i].at("text");
    EXPECT_GE(cosine(outcome.vectors[i], texts[i].at("embedding").get<std::vector<float>>()), 0.9999)
        << texts[i].at("text");
  }
}

TEST(EncoderEngineTest, SmallBatchesGiveTheSameBytes) {
  const auto model = load_encoder(golden() / "encoders" / "bert");
  const std::vector<EncoderInput> inputs = inputs_of(*model, expected_of("bert").at("texts"));
  EncoderEngine large(model);
  const EncoderOutcome whole = ask(large, inputs);
  const auto again = load_encoder(golden() / "encoders" / "bert");
  EncoderEngine small(again, {.batch_tokens = 1});
  const EncoderOutcome pieces = ask(small, inputs);
  EXPECT_EQ(pieces.vectors, whole.vectors);
  EXPECT_GT(small.stats().steps, large.stats().steps);
  EXPECT_EQ(small.stats().finished, 1);
  EXPECT_EQ(small.stats().waiting, 0);
}

TEST(EncoderEngineTest, RefusesWhatItCannotDo) {
  const auto model = load_encoder(golden() / "encoders" / "bert");
  EncoderEngine engine(model, {.max_queued = 2});
  const auto refused = [&](std::vector<EncoderInput> inputs) -> std::string {
    try {
      engine.submit(std::move(inputs), [](const EncoderOutcome&) {});
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(refused({}), "input: is empty");
  EXPECT_EQ(refused({{{2, 3}, {}}, {{}, {}}}), "input[1]: 0 tokens; the model takes 1 to 48");
  EXPECT_EQ(refused({{std::vector<TokenId>(49, 5), {}}}), "input[0]: 49 tokens; the model takes 1 to 48");
  EXPECT_EQ(refused({{{2, 300}, {}}}), "input[0]: 300 is no token of this model");
  EXPECT_EQ(refused({{{2}, {}}, {{2}, {}}, {{2}, {}}}),
            "0 inputs are waiting, at most 2 may; try again later");
  engine.drain();
  EXPECT_EQ(refused({{{2, 3}, {}}}), "the server is shutting down");
}

TEST(EncoderEngineTest, EachRequestIsAnsweredOnce) {
  const auto model = load_encoder(golden() / "encoders" / "bert");
  std::atomic<int> answers = 0, cancelled = 0;
  {
    std::promise<void> all_there;  // the first answer holds the engine until then
    const std::shared_future<void> there = all_there.get_future().share();
    EncoderEngine engine(model, {.batch_tokens = 1});
    for (int i = 0; i < 20; ++i) {
      const std::vector<EncoderInput> inputs(5, {{2, 5, 6, 3}, {}});
      const auto handle = engine.submit(inputs, [&](const EncoderOutcome& outcome) {
        ++answers;
        if (outcome.finish == FinishReason::kCancelled) {
          ++cancelled;
          EXPECT_TRUE(outcome.vectors.empty());
        }
        there.wait();
      });
      if (i % 3 == 0) handle->cancel();
    }
    all_there.set_value();
  }  // the end cancels what waits
  EXPECT_EQ(answers, 20);
  EXPECT_GT(cancelled, 0);
}

// A copy of the tiny BERT's folder with one file changed.
class SpoiledEncoderTest : public ::testing::Test {
 protected:
  SpoiledEncoderTest() {
    std::string name = (fs::temp_directory_path() / "qiao-encoder-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw Error(ErrorKind::kIo, "no temporary folder");
    folder_ = name;
    fs::copy(golden() / "encoders" / "bert", folder_, fs::copy_options::recursive);
  }
  ~SpoiledEncoderTest() override {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }
  std::string refusal_with(const std::string& file, const std::string& text) {
    write_file_atomically(folder_ / file, text);
    return refusal();
  }
  std::string refusal() {
    try {
      load_encoder(folder_);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }
  std::string config_with(const std::string& key, Json value) {
    Json json = parse_json(read_file(golden() / "encoders" / "bert" / "config.json"), "config.json");
    json[key] = std::move(value);
    return refusal_with("config.json", dump_json(json));
  }
  fs::path folder_;
};

TEST_F(SpoiledEncoderTest, IsRefusedByName) {
  const auto holds = [](const std::string& message, const std::string& part) {
    return message.find(part) != std::string::npos ? "" : message + " lacks: " + part;
  };
  EXPECT_EQ(refusal(), "");
  EXPECT_EQ(
      holds(config_with("num_attention_heads", 5), "num_attention_heads is 5; a divisor of hidden_size"), "");
  EXPECT_EQ(
      holds(config_with("hidden_size", 64), "embeddings.word_embeddings.weight is F32[300, 32]; [300, 64]"),
      "");
  EXPECT_EQ(holds(config_with("num_hidden_layers", 3), "encoder.layer.2"), "");
  EXPECT_EQ(holds(config_with("num_hidden_layers", 1000000000), "num_hidden_layers is 1000000000"), "");
  EXPECT_EQ(holds(config_with("max_position_embeddings", 63), "position_embeddings"), "");
  EXPECT_EQ(holds(config_with("type_vocab_size", -1), "type_vocab_size is -1"), "");
  EXPECT_EQ(holds(config_with("hidden_act", "relu"), "hidden_act"), "");
  EXPECT_EQ(holds(config_with("position_embedding_type", "relative_key"), "relative_key"), "");
  EXPECT_EQ(holds(config_with("is_decoder", true), "is_decoder"), "");
  EXPECT_EQ(holds(config_with("model_type", "bloom"), "is not an encoder that Qiao knows"), "");
  EXPECT_EQ(config_with("model_type", "bert"), "");
  const auto modules = [](const std::string& path, const std::string& kind) {
    return R"([{"path": ")" + path + R"(", "type": "sentence_transformers.models.)" + kind + R"("}])";
  };
  EXPECT_EQ(holds(refusal_with("modules.json", modules("../bert", "Pooling")), "is not a folder's name"), "");
  EXPECT_EQ(holds(refusal_with("modules.json", modules("/etc", "Pooling")), "is not a folder's name"), "");
  EXPECT_EQ(holds(refusal_with("modules.json", modules("3_CNN", "CNN")), "CNN"), "");
  EXPECT_EQ(holds(refusal_with("modules.json", modules("2_Dense", "Dense")), "in_features"), "");
  EXPECT_EQ(holds(refusal_with("modules.json", "{}"), "a list of at most"), "");
}

}  // namespace
}  // namespace qiao
