// Every family spread over 2 and 4 ranks: Transformers' logits, within the bound that each chip is held to;
// and part by part, against the whole model, within the bound of the sums' other order.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "models/families.h"
#include "models/golden_cases.h"
#include "models/logits.h"
#include "models/model_folder.h"
#include "models/shards.h"
#include "models/spread_decoder.h"
#include "models/step_driver.h"
#include "models/weights.h"
#include "support/expect_error.h"

namespace qiao {
namespace {

using testing::golden_models;
using testing::ModelFolder;
using testing::read_floats;
using testing::SpreadDecoder;
using testing::StepDriver;
using testing::worst_position;

struct SpreadCase : testing::GoldenCase {
  std::string chip;
  int size = 2;
};

void PrintTo(const SpreadCase& test, std::ostream* out) { *out << test.name; }

std::vector<SpreadCase> spread_cases() {
  std::vector<SpreadCase> cases;
  for (const testing::GoldenCase& golden : testing::golden_cases()) {
    for (const auto& [chip, size] : {std::pair("cpu", 2), {"cpu", 4}, {"reference", 2}}) {
      if (!golden.gguf.empty() && chip != std::string_view("cpu")) continue;
      cases.push_back({golden, chip, size});
      std::string& name = cases.back().name;
      name = fmt::format("{}_{}_of_{}", golden.name, chip, size);
      std::ranges::replace(name, '-', '_');
    }
  }
  return cases;
}

class SpreadParityTest : public ::testing::TestWithParam<SpreadCase> {};

TEST_P(SpreadParityTest, LogitsAreTransformers) {
  const SpreadCase& test = GetParam();
  const ModelFolder folder(test.folder, test.config);
  folder.open();  // writes its configuration
  const auto path = test.gguf.empty() ? folder.path() : golden_models() / test.folder / test.gguf;
  const DecoderOptions options = {.compute = DecoderOptions::Policy::kF32, .context = test.context};
  const DecoderConfig config = read_decoder_config(*ModelFiles::open(path), test.context);
  if (!share_out(config, {}, 0, test.size)) {
    EXPECT_LT(config.num_attention_heads, test.size);  // of the golden models all others can be shared out
    EXPECT_QIAO_ERROR(SpreadDecoder(path, test.size, test.chip, options), kUnsupported,
                      "numbers of processes that it can be spread over: 1, 2");
    return;
  }
  const SpreadDecoder decoder(path, test.size, test.chip, options);
  EXPECT_EQ(decoder->ranks(), test.size);
  const auto expected = read_floats(golden_models() / test.folder / test.expected);
  const auto vocabulary = static_cast<size_t>(decoder->config().vocabulary_size);
  const auto tokens = static_cast<int64_t>(test.prompt.size());
  std::vector<float> whole;
  for (const size_t chunk : {test.prompt.size(), size_t{1}, size_t{3}, size_t{7}}) {
    const auto got = StepDriver(*decoder, tokens).feed_in_chunks(test.prompt, chunk);
    ASSERT_EQ(got.size(), expected.size());
    EXPECT_LE(worst_position(expected, got, vocabulary), 1e-4) << "in chunks of " << chunk;
    if (whole.empty()) whole = got;
    // Batch invariance within one number of ranks: chunks change no bit.
    EXPECT_EQ(std::memcmp(whole.data(), got.data(), got.size() * sizeof(float)), 0) << "chunks of " << chunk;
  }
}

INSTANTIATE_TEST_SUITE_P(Families, SpreadParityTest, ::testing::ValuesIn(spread_cases()),
                         [](const auto& param) { return param.param.name; });

// A rank that only has a number: what it loads can be looked at.
class NumberedRank final : public Communicator {
 public:
  NumberedRank(int rank, int size) : rank_(rank), size_(size) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string name(int rank) const override { return fmt::format("rank {}", rank); }
  int sharing_cores() const override { return 1; }
  int sharing_host() const override { return 1; }
  int place_on_host() const override { return 0; }
  void send(int, std::span<const std::byte>) override { FAIL(); }
  void receive(int, std::span<std::byte>) override { FAIL(); }
  void finish() override {}
  void end_all(const std::string& why) override { throw_error(ErrorKind::kUnavailable, "{}", why); }

 private:
  int rank_, size_;
};

// A family's weights, whole and in parts.
class SpreadWeightsTest : public ::testing::TestWithParam<std::string> {
 protected:
  static constexpr int64_t kRows = 5;

  DecoderWeights load(int rank, int size) {
    NumberedRank ranks(rank, size);
    const DecoderConfig config = read_decoder_config(*files_);
    return load_weights(*files_, *backend_, config,
                        {.compute = DecoderOptions::Policy::kF32, .ranks = &ranks});
  }
  // A layer's outputs [T, N] of these inputs.
  std::vector<float> outputs(const nn::LinearLayer& layer, const std::vector<float>& x, int64_t rows) {
    const int64_t inputs = std::ssize(x) / rows;
    const Buffer in = backend_->allocate(x.size() * sizeof(float)),
                 out = backend_->allocate(static_cast<size_t>(rows * layer.rows()) * sizeof(float)),
                 scratch = backend_->allocate(1 << 20);
    backend_->upload(in.data(), x.data(), x.size() * sizeof(float));
    nn::Context context(*backend_, scratch.data(), scratch.bytes());
    layer.forward(context, Tensor(in.data(), DType::kF32, {rows, inputs}),
                  Tensor(out.data(), DType::kF32, {rows, layer.rows()}));
    std::vector<float> y(static_cast<size_t>(rows * layer.rows()));
    backend_->download(y.data(), out.data(), y.size() * sizeof(float));
    return y;
  }
  static std::vector<float> numbers(int64_t rows, int64_t columns) {
    std::vector<float> x(static_cast<size_t>(rows * columns));
    for (size_t i = 0; i < x.size(); ++i)
      x[i] = std::sin(static_cast<float>(i) * 1.7f) * std::exp2(static_cast<float>(i % 5));
    return x;
  }
  static std::vector<float> some_columns(const std::vector<float>& x, int64_t columns, int64_t first,
                                         int64_t count) {
    std::vector<float> part;
    for (auto row = x.begin(); row != x.end(); row += columns)
      part.insert(part.end(), row + first, row + first + count);
    return part;
  }

  // What is summed over the ranks, against the whole layer. Each of the two is within γ of its additions of
  // the exact result: K of them (and the bias), or K and one for each doubling of the ranks.
  void expect_sums(const nn::LinearLayer& whole, const std::vector<const nn::LinearLayer*>& parts) {
    const int64_t columns = whole.pieces.front().weight->columns(), rows = whole.rows();
    std::vector<float> unit(static_cast<size_t>(columns * columns));
    for (int64_t i = 0; i < columns; ++i) unit[static_cast<size_t>(i * columns + i)] = 1.0f;
    const auto zero = outputs(whole, std::vector<float>(static_cast<size_t>(columns)), 1);  // the bias
    const auto w = outputs(whole, unit, columns);  // W^T and the bias
    const auto x = numbers(kRows, columns), y = outputs(whole, x, kRows);
    std::vector<std::vector<float>> sums;
    int64_t first = 0;
    for (const nn::LinearLayer* part : parts) {
      const int64_t count = part->pieces.front().weight->columns();
      sums.push_back(outputs(*part, some_columns(x, columns, first, count), kRows));
      first += count;
    }
    ASSERT_EQ(first, columns);
    for (size_t distance = 1; distance < sums.size(); distance *= 2)
      for (size_t left = 0; left + distance < sums.size(); left += 2 * distance)
        for (size_t i = 0; i < y.size(); ++i) sums[left][i] += sums[left + distance][i];
    const double unit_roundoff = 0x1p-24, additions = static_cast<double>(columns) + 1,
                 depth = std::ceil(std::log2(static_cast<double>(parts.size())));
    const auto gamma = [&](double n) { return n * unit_roundoff / (1 - n * unit_roundoff); };
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t n = 0; n < rows; ++n) {
        double absolute = std::abs(zero[static_cast<size_t>(n)]);
        for (int64_t k = 0; k < columns; ++k) {
          const double weight = std::abs(static_cast<double>(w[static_cast<size_t>(k * rows + n)]) -
                                         zero[static_cast<size_t>(n)]);
          absolute += std::abs(x[static_cast<size_t>(row * columns + k)]) * (weight + unit_roundoff);
        }
        const auto i = static_cast<size_t>(row * rows + n);
        const double error = std::abs(static_cast<double>(sums[0][i]) - y[i]);
        ASSERT_TRUE(error <= (gamma(additions) + gamma(additions + depth)) * absolute) << row << ", " << n;
      }
    }
  }

  // Rows of the whole, the same bits: `starts` are where each part's runs of rows begin in the whole.
  void expect_rows(const nn::LinearLayer& whole, const nn::LinearLayer& part,
                   const std::vector<Range>& runs) {
    const int64_t columns = whole.pieces.front().weight->columns();
    const auto x = numbers(kRows, columns), y = outputs(whole, x, kRows), own = outputs(part, x, kRows);
    int64_t at = 0;
    for (const Range& run : runs) {
      for (int64_t row = 0; row < kRows; ++row) {
        ASSERT_EQ(std::memcmp(y.data() + row * whole.rows() + run.first, own.data() + row * part.rows() + at,
                              static_cast<size_t>(run.count) * sizeof(float)),
                  0)
            << "row " << row << ", from " << run.first;
      }
      at += run.count;
    }
    ASSERT_EQ(at, part.rows());
  }

  void open(const std::string& folder) {
    folder_.emplace(folder);
    files_ = folder_->open();
    backend_ = make_backend("cpu", {.threads = 1});
  }

  std::optional<ModelFolder> folder_;
  std::shared_ptr<ModelFiles> files_;
  std::unique_ptr<Backend> backend_;
};

TEST_P(SpreadWeightsTest, PartsAreTheWhole) {
  open(GetParam());
  const DecoderConfig config = read_decoder_config(*files_);
  const DecoderWeights whole = load(0, 1);
  EXPECT_TRUE(whole.head_rows.empty());
  int spread = 0;
  for (const int size : {2, 3, 4}) {
    if (!share_out(config, {}, 0, size)) continue;
    ++spread;
    SCOPED_TRACE(size);
    std::vector<DecoderWeights> parts;
    for (int rank = 0; rank < size; ++rank) parts.push_back(load(rank, size));
    int64_t vocabulary = 0;
    for (int rank = 0; rank < size; ++rank) {
      const DecoderWeights& part = parts[static_cast<size_t>(rank)];
      EXPECT_LT(part.bytes, whole.bytes);
      expect_rows(whole.head, part.head, {{vocabulary, part.head.rows()}});
      vocabulary += part.head_rows[static_cast<size_t>(rank)];
    }
    EXPECT_EQ(vocabulary, config.vocabulary_size);
    for (size_t layer = 0; layer < whole.layers.size(); ++layer) {
      const DecoderLayer& all = whole.layers[layer];
      std::vector<const nn::LinearLayer*> attention, down;
      int64_t ffn = 0;
      for (int rank = 0; rank < size; ++rank) {
        const DecoderLayer& own = parts[static_cast<size_t>(rank)].layers[layer];
        const Shards shards = *share_out(config, {}, rank, size);
        const int64_t dim = config.head_dim, heads = config.num_attention_heads,
                      kv_heads = config.num_key_value_heads;
        EXPECT_EQ(own.attention.heads, shards.heads.count);
        EXPECT_EQ(own.attention.kv_heads, shards.kv_heads.count);
        expect_rows(all.attention.qkv, own.attention.qkv,
                    {{shards.heads.first * dim, shards.heads.count * dim},
                     {(heads + shards.kv_heads.first) * dim, shards.kv_heads.count * dim},
                     {(heads + kv_heads + shards.kv_heads.first) * dim, shards.kv_heads.count * dim}});
        attention.push_back(&own.attention.output);
        if (all.is_moe) continue;
        const int64_t inner = config.intermediate_size, count = own.mlp.gate_up.rows() / 2;
        expect_rows(all.mlp.gate_up, own.mlp.gate_up, {{ffn, count}, {inner + ffn, count}});
        down.push_back(&own.mlp.down);
        ffn += count;
      }
      expect_sums(all.attention.output, attention);
      if (!all.is_moe) expect_sums(all.mlp.down, down);
    }
  }
  EXPECT_GT(spread, 0);
}

INSTANTIATE_TEST_SUITE_P(Families, SpreadWeightsTest,
                         ::testing::Values("llama", "llama-biases", "phi3", "gemma3", "qwen2", "qwen3-moe",
                                           "qwen3-moe-some-dense", "hunyuan-moe"),
                         [](const auto& param) {
                           std::string name = param.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

DecoderConfig shape(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t ffn) {
  DecoderConfig config;
  config.num_attention_heads = heads;
  config.num_key_value_heads = kv_heads;
  config.head_dim = head_dim;
  config.intermediate_size = ffn;
  config.vocabulary_size = 1000;
  config.num_hidden_layers = 1;
  config.layer_is_moe = {false};
  return config;
}

// What all ranks have together: every query head once, each with its key/value head.
void expect_whole(const DecoderConfig& config, const ShardBlocks& blocks, int size) {
  int64_t head = 0, ffn = 0, row = 0;
  const int64_t group = config.num_attention_heads / config.num_key_value_heads;
  for (int rank = 0; rank < size; ++rank) {
    const auto shards = share_out(config, blocks, rank, size);
    ASSERT_TRUE(shards);
    EXPECT_EQ(shards->heads.first, head);
    EXPECT_EQ(shards->heads.first * config.head_dim % blocks.attention, 0);
    EXPECT_GT(shards->heads.count, 0);
    EXPECT_EQ(shards->heads.count % shards->kv_heads.count, 0);
    EXPECT_EQ(shards->heads.first / group, shards->kv_heads.first);
    EXPECT_EQ((shards->heads.first + shards->heads.count - 1) / group,
              shards->kv_heads.first + shards->kv_heads.count - 1);
    head += shards->heads.count;
    EXPECT_EQ(shards->ffn.first, ffn);
    EXPECT_EQ(shards->ffn.first % blocks.ffn, 0);
    EXPECT_GT(shards->ffn.count, 0);
    ffn += shards->ffn.count;
    EXPECT_EQ(shards->own_vocabulary().first, row);
    row += shards->own_vocabulary().count;
  }
  EXPECT_EQ(head, config.num_attention_heads);
  EXPECT_EQ(ffn, config.intermediate_size);
  EXPECT_EQ(row, config.vocabulary_size);
}

TEST(ShardsTest, EveryPartIsOnOneRank) {
  for (const int size : {1, 2, 3, 4, 8}) expect_whole(shape(32, 8, 128, 14336), {256, 256}, size);
  for (const int size : {1, 2, 3, 9}) expect_whole(shape(9, 3, 64, 1536), {32, 32}, size);  // SmolLM2
  for (const int size : {1, 2, 4, 6})
    expect_whole(shape(12, 2, 128, 8960), {256, 256}, size);                                // Qwen2.5 1.5B
  for (const int size : {1, 2, 4}) expect_whole(shape(4, 1, 256, 2048), {256, 256}, size);  // Gemma 3 270M
}

TEST(ShardsTest, EvenWhereItCanBe) {
  for (int rank = 0; rank < 8; ++rank) {
    const auto shards = share_out(shape(32, 8, 128, 14336), {256, 256}, rank, 8);
    EXPECT_EQ(shards->heads.count, 4);
    EXPECT_EQ(shards->kv_heads.count, 1);
    EXPECT_EQ(shards->ffn.count, 1792);
  }
  EXPECT_EQ(share_out(shape(32, 8, 128, 8960), {}, 1, 2)->ffn.count, 4480);
  // Blocks before evenness; the first ranks have more.
  EXPECT_EQ(share_out(shape(32, 8, 128, 8960), {256, 256}, 0, 2)->ffn.count, 18 * 256);
  EXPECT_EQ(share_out(shape(9, 3, 64, 1536), {}, 0, 2)->kv_heads.count, 2);
}

TEST(ShardsTest, RefusesNamingWhatWorks) {
  EXPECT_FALSE(share_out(shape(9, 3, 64, 1536), {}, 0, 4));  // no multiple of the key/value heads
  EXPECT_QIAO_ERROR(
      need_shards(shape(9, 3, 64, 1536), {32, 32}, 0, 4, "some.gguf"), kUnsupported,
      "some.gguf: cannot be spread over 4 processes: it has 9 heads of 64 with 3 for keys and values, "
      "in blocks of 32, a feed-forward width of 1536 in blocks of 32; numbers of processes that it can "
      "be spread over: 1, 2, 3, 6, 9");
  // Blocks of 256 are four heads of 64: a border every four of them.
  EXPECT_QIAO_ERROR(need_shards(shape(8, 8, 64, 1024), {256, 256}, 0, 4, "some.gguf"), kUnsupported,
                    "over: 1, 2");
  EXPECT_QIAO_ERROR(need_shards(shape(8, 8, 64, 512), {1, 256}, 0, 4, "some.gguf"), kUnsupported,
                    "over: 1, 2");
  // Where all layers are experts a configuration's dense width is of none.
  DecoderConfig experts = shape(9, 3, 64, 1536);
  experts.layer_is_moe.assign(experts.layer_is_moe.size(), true);
  experts.num_experts = 4, experts.moe_intermediate_size = 96;
  EXPECT_QIAO_ERROR(need_shards(experts, {}, 0, 4, "some.gguf"), kUnsupported,
                    "in blocks of 1, experts' widths of 96 in blocks of 1; numbers of processes");
}

}  // namespace
}  // namespace qiao
