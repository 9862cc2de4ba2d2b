// The chips of this program pass; a chip that is wrong in any of many ways does not.
#include "backend/conformance/conformance.h"

#include <cmath>
#include <cstring>
#include <functional>

#include "backend/conformance/harness.h"
#include "backend/op_test.h"

namespace qiao::conformance {
namespace {

Options quick(std::string op = "") {
  Options options;
  options.op = std::move(op);
  options.quick = true;
  options.bench = false;
  return options;
}

// For chips that are wrong: nothing is left to learn of a line that has failed.
Options until_failure(const std::string& op) {
  Options options = quick(op);
  options.until_failure = true;
  return options;
}

using ChipAndOp = std::tuple<std::string_view, std::string_view>;
class ChipConformanceTest : public ::testing::TestWithParam<ChipAndOp> {};

TEST_P(ChipConformanceTest, IsGreen) {
  const auto& [name, op] = GetParam();
  const std::unique_ptr<Backend> chip = make_backend(name, BackendOptions{2});
  const Report report = run(*chip, quick(std::string(op)));
  EXPECT_TRUE(report.green) << to_table(report);
  EXPECT_TRUE(report.green_for_train) << to_table(report);
}

INSTANTIATE_TEST_SUITE_P(Chips, ChipConformanceTest,
                         ::testing::Combine(::testing::ValuesIn(chip_names()),
                                            ::testing::ValuesIn(op_names())),
                         [](const auto& info) {
                           return fmt::format("{}_{}", std::get<0>(info.param), std::get<1>(info.param));
                         });

// The reference, with something done to what an op wrote (or instead of it).
class MeddledChip final : public Backend {
 public:
  using Meddle = std::function<void(const Tensor& out)>;
  MeddledChip(std::string op, Meddle meddle) : op_(std::move(op)), meddle_(std::move(meddle)) {}

  std::string_view chip() const override { return "meddled"; }
  DeviceInfo describe() const override { return law_->describe(); }
  DevicePeaks measure_peaks() override { return peaks; }
  std::span<const MissingOp> missing() const override { return listed; }
  void upload(void* device, const void* host, size_t bytes) override { law_->upload(device, host, bytes); }
  void download(void* host, const void* device, size_t bytes) override {
    law_->download(host, device, bytes);
  }
  void synchronize() override {}

  std::vector<MissingOp> listed;
  DevicePeaks peaks;

 protected:
  void* do_allocate(size_t bytes) override { return ::operator new (bytes, std::align_val_t{64}); }
  void do_free(void* data, size_t) override { ::operator delete (data, std::align_val_t{64}); }
  std::unique_ptr<Weight> do_make_weight(const WeightSource& source) override {
    return law_->make_weight(source);
  }
  void do_read_weight(const Weight& weight, int64_t expert, size_t segment, std::byte* bytes) override {
    law_->read_weight(weight, expert, segment, bytes);
    if (op_ == "read_weight") bytes[0] ^= std::byte{1};
  }
  std::unique_ptr<KvPages> do_make_kv_pages(const KvPagesSpec& spec) override {
    return law_->make_kv_pages(spec);
  }
  void do_export_kv_page(const KvPages& pages, int64_t page, std::byte* bytes) override {
    law_->export_kv_page(pages, page, bytes);
  }
  void do_import_kv_page(KvPages& pages, int64_t page, const std::byte* bytes) override {
    law_->import_kv_page(pages, page, bytes);
  }

  void do_gather(const Gather& op) override { law_->gather(op), meddle("gather", op.out); }
  void do_gather_rows(const GatherRows& op) override { law_->gather_rows(op), meddle("gather_rows", op.out); }
  void do_linear(const Linear& op) override { law_->linear(op), meddle("linear", op.y); }
  void do_grouped_linear(const GroupedLinear& op) override {
    law_->grouped_linear(op), meddle("grouped_linear", op.y);
  }
  void do_moe_route(const MoeRoute& op) override { law_->moe_route(op), meddle("moe_route", op.weights); }
  void do_moe_permute(const MoePermute& op) override {
    law_->moe_permute(op), meddle("moe_permute", op.sorted);
  }
  void do_moe_combine(const MoeCombine& op) override { law_->moe_combine(op), meddle("moe_combine", op.y); }
  void do_add_rms_norm(const AddRmsNorm& op) override {
    law_->add_rms_norm(op), meddle("add_rms_norm", op.y);
  }
  void do_layer_norm(const LayerNorm& op) override { law_->layer_norm(op), meddle("layer_norm", op.y); }
  void do_rope(const Rope& op) override { law_->rope(op), meddle("rope", op.q); }
  void do_gated_activation(const GatedActivation& op) override {
    law_->gated_activation(op), meddle("gated_activation", op.y);
  }
  void do_kv_write(const KvWrite& op) override {
    law_->kv_write(op);
    // Its output is opaque: rows of v are written to each other's slots instead.
    if (op_ == "kv_write" && op.v.shape[0] > 1) {
      KvWrite wrong = op;
      wrong.v = op.v.slice(0, 1), wrong.k = op.k.slice(0, 1), wrong.slots = op.slots.slice(1, 1);
      law_->kv_write(wrong);
    }
  }
  void do_rope_kv_write(const RopeKvWrite& op) override {
    law_->rope_kv_write(op), meddle("rope_kv_write", op.q);
    // Its other output is opaque: the first token is kept in the second's slot instead.
    if (op_ != "kept rows" || op.k.shape[0] < 2) return;
    law_->kv_write({op.k.slice(0, 1), op.v.slice(0, 1), op.slots.slice(1, 1), op.pages});
  }
  void do_attention_paged(const AttentionPaged& op) override {
    law_->attention_paged(op), meddle("attention_paged", op.out);
  }
  void do_attention_varlen(const AttentionVarlen& op) override {
    law_->attention_varlen(op), meddle("attention_varlen", op.out);
  }
  void do_write_weight(Weight& weight, int64_t expert, const Tensor& values) override {
    if (op_ != "write_weight") law_->write_weight(weight, expert, values);
  }
  void do_feed_drawn(const FeedDrawn& op) override { law_->feed_drawn(op), meddle("feed_drawn", op.tokens); }
  void do_embedding_bag(const EmbeddingBag& op) override {
    law_->embedding_bag(op), meddle("embedding_bag", op.out);
  }
  void do_vector_search(const VectorSearch& op) override {
    law_->vector_search(op), meddle("vector_search", op.scores);
    if (op_ == "vector_search ids" && op.scores.shape[1] > 1) {  // the best one is left out
      for (int64_t b = 0; b < op.ids.shape[0]; ++b) {
        int32_t* ids = op.ids.as<int32_t>() + b * op.ids.stride[0];
        std::rotate(ids, ids + 1, ids + op.ids.shape[1]);
      }
    }
  }
  void do_embedding_bag_backward(const EmbeddingBagBackward& op) override {
    law_->embedding_bag_backward(op);
    meddle("embedding_bag_backward", op.dtable.present() ? op.dtable : op.drows);
    meddle("embedding_bag_backward dweights", op.dweights);
  }
  void do_gather_backward(const GatherBackward& op) override {
    law_->gather_backward(op), meddle("gather_backward", op.dtable);
  }
  void do_linear_backward(const LinearBackward& op) override {
    law_->linear_backward(op), meddle("linear_backward", op.dx), meddle("linear_backward dw", op.dw);
  }
  void do_grouped_linear_backward(const GroupedLinearBackward& op) override {
    law_->grouped_linear_backward(op), meddle("grouped_linear_backward", op.dx);
    meddle("grouped_linear_backward dw", op.dw);
  }
  void do_moe_route_backward(const MoeRouteBackward& op) override {
    law_->moe_route_backward(op), meddle("moe_route_backward", op.dlogits);
  }
  void do_moe_permute_backward(const MoePermuteBackward& op) override {
    law_->moe_permute_backward(op), meddle("moe_permute_backward", op.dx);
  }
  void do_moe_combine_backward(const MoeCombineBackward& op) override {
    law_->moe_combine_backward(op), meddle("moe_combine_backward", op.dsorted);
    meddle("moe_combine_backward dweights", op.dweights);
  }
  void do_add_rms_norm_backward(const AddRmsNormBackward& op) override {
    law_->add_rms_norm_backward(op), meddle("add_rms_norm_backward", op.dh);
    meddle("add_rms_norm_backward dgamma", op.dgamma);
  }
  void do_gated_activation_backward(const GatedActivationBackward& op) override {
    law_->gated_activation_backward(op), meddle("gated_activation_backward", op.dx);
  }
  void do_sample(const Sample& op) override {
    if (op_ == "sample missing") return Backend::do_sample(op);
    law_->sample(op);
    if (op_ == "sample" && op.ids.elements() > 0) op.ids.as<int32_t>()[0] = 0;
  }
  void do_attention_varlen_backward(const AttentionVarlenBackward& op) override {
    law_->attention_varlen_backward(op), meddle("attention_varlen_backward", op.dq);
  }
  void do_token_logprob(const TokenLogprob& op) override {
    law_->token_logprob(op), meddle("token_logprob", op.logprob);
  }
  void do_token_logprob_backward(const TokenLogprobBackward& op) override {
    law_->token_logprob_backward(op);
    meddle("token_logprob_backward", op.dx.present() ? op.dx : op.dw);
  }
  void do_sum_of_squares(const SumOfSquares& op) override {
    law_->sum_of_squares(op);
    if (op_ == "sum_of_squares") op.sum.as<double>()[0] *= 1 + 1e-9;
  }
  void do_token_loss(const TokenLoss& op) override { law_->token_loss(op), meddle("token_loss", op.dx); }
  void do_dropout(const Dropout& op) override { law_->dropout(op), meddle("dropout", op.y); }
  void do_accumulate(const Accumulate& op) override { law_->accumulate(op), meddle("accumulate", op.sum); }
  void do_adamw(const AdamW& op) override {
    law_->adamw(op), meddle("adamw", op.parameters);
    if (op.first_moment.dtype == DType::kF32) {
      meddle("adamw moments", op.first_moment);
    } else if (op_ == "adamw moments" && op.second_moment.elements() > 0) {
      // A code, or a bit of a BF16, that is one too many.
      for (int64_t i = 0; i < op.second_moment.bytes(); i += 2) ++op.second_moment.as<uint8_t>()[i];
    }
  }
  void do_muon(const Muon& op) override {
    Muon longer = op;
    if (op_ == "muon update") longer.learning_rate *= 1.01;
    law_->muon(longer), meddle("muon", op.parameters), meddle("muon momentum", op.momentum);
  }

 private:
  void meddle(std::string_view op, const Tensor& out) {
    if (op == op_ && out.elements() > 0) meddle_(out);
  }
  std::unique_ptr<Backend> law_ = reference_chip();
  std::string op_;
  Meddle meddle_;
};

// Every element of a tensor of any strides.
void each(const Tensor& out, const std::function<void(float&)>& change) {
  for (int64_t i = 0; i < out.elements(); ++i) {
    int64_t offset = 0, index = i;
    for (int axis = out.rank - 1; axis >= 0; --axis) {
      offset += index % out.shape[static_cast<size_t>(axis)] * out.stride[static_cast<size_t>(axis)];
      index /= out.shape[static_cast<size_t>(axis)];
    }
    change(out.as<float>()[offset]);
  }
}

struct Wrong {
  const char* name;
  MeddledChip::Meddle meddle;
};

const std::vector<Wrong>& wrongs() {
  static const std::vector<Wrong> all = {
      {"Zero", [](const Tensor& out) { each(out, [](float& v) { v = 0; }); }},
      {"Nan", [](const Tensor& out) { *out.as<float>() = NAN; }},
      {"Sign", [](const Tensor& out) { each(out, [](float& v) { v = -v; }); }},
      {"SwappedRow",
       [](const Tensor& out) {
         if (out.shape[0] < 2) return;
         const Tensor first = out.slice(0, 1), second = out.slice(1, 1);
         std::vector<float> kept;
         each(first, [&](float& v) { kept.push_back(v); });
         each(second, [&, i = size_t{0}](float& v) mutable { std::swap(v, kept[i++]); });
         each(first, [&, i = size_t{0}](float& v) mutable { v = kept[i++]; });
       }},
      {"Overrun",
       [](const Tensor& out) {
         const auto last = static_cast<size_t>(out.rank - 1);
         int64_t end = 0;
         for (size_t i = 0; i <= last; ++i) end += (out.shape[i] - 1) * out.stride[i];
         out.as<float>()[end + 40] = 0;  // beyond any gap between rows
       }},
      {"Slightly", [](const Tensor& out) { each(out, [](float& v) { v *= 1.01f; }); }},
  };
  return all;
}

class WrongChipTest : public ::testing::TestWithParam<std::tuple<const char*, size_t>> {};

TEST_P(WrongChipTest, IsNotGreen) {
  const auto& [op, wrong] = GetParam();
  MeddledChip chip(op, wrongs()[wrong].meddle);
  const Report report = run(chip, until_failure(op));
  EXPECT_FALSE(report.green) << to_table(report);
  for (const Line& line : report.lines) EXPECT_FALSE(line.passed()) << line.variant;
}

INSTANTIATE_TEST_SUITE_P(
    Ops, WrongChipTest,
    ::testing::Combine(::testing::Values("gather", "gather_rows", "grouped_linear", "moe_route",
                                         "moe_permute", "moe_combine", "add_rms_norm", "rope",
                                         "rope_kv_write", "gated_activation", "attention_paged", "layer_norm",
                                         "attention_varlen", "gather_backward", "linear_backward",
                                         "add_rms_norm_backward", "gated_activation_backward",
                                         "attention_varlen_backward", "token_logprob",
                                         "token_logprob_backward", "adamw", "grouped_linear_backward",
                                         "moe_route_backward", "moe_permute_backward", "moe_combine_backward",
                                         "muon", "accumulate", "dropout", "token_loss", "embedding_bag",
                                         "embedding_bag_backward", "vector_search"),
                       ::testing::Range(size_t{0}, wrongs().size())),
    [](const auto& info) {
      return std::string(std::get<0>(info.param)) + "_" + wrongs()[std::get<1>(info.param)].name;
    });
INSTANTIATE_TEST_SUITE_P(Linear, WrongChipTest,
                         ::testing::Combine(::testing::Values("linear"),
                                            ::testing::Range(size_t{0}, wrongs().size())),
                         [](const auto& info) {
                           return std::string(wrongs()[std::get<1>(info.param)].name);
                         });

TEST(ConformanceTest, ARowThatDependsOnItsBatchFails) {
  for (const char* op : {"linear",
                         "grouped_linear",
                         "add_rms_norm",
                         "attention_paged",
                         "gated_activation",
                         "rope",
                         "rope_kv_write",
                         "layer_norm",
                         "attention_varlen",
                         "linear_backward",
                         "add_rms_norm_backward",
                         "gated_activation_backward",
                         "attention_varlen_backward",
                         "token_logprob",
                         "token_logprob_backward",
                         "grouped_linear_backward",
                         "moe_route_backward",
                         "moe_permute_backward",
                         "moe_combine_backward",
                         "embedding_bag"}) {
    MeddledChip chip(op, [](const Tensor& out) {
      if (out.shape[0] == 1) each(out, [](float& v) { v = std::nextafter(v, 1e30f); });
    });
    EXPECT_FALSE(run(chip, until_failure(op)).green) << op;
  }
}

TEST(ConformanceTest, AWrongSecondResultFails) {
  for (const auto& [op, result] : {std::pair{"linear_backward", "dw"},
                                   {"add_rms_norm_backward", "dgamma"},
                                   {"grouped_linear_backward", "dw"},
                                   {"moe_combine_backward", "dweights"},
                                   {"embedding_bag_backward", "dweights"},
                                   {"muon", "momentum"},
                                   {"muon", "update"},
                                   {"adamw", "moments"}}) {
    const std::string of_weight = fmt::format("{} {}", op, result);
    MeddledChip chip(of_weight, [](const Tensor& out) { each(out, [](float& v) { v *= 1.01f; }); });
    const Report report = run(chip, quick(op));
    EXPECT_FALSE(report.green) << of_weight;
    if (of_weight != "adamw moments") continue;
    for (const Line& line : report.lines)
      EXPECT_FALSE(line.passed()) << line.variant;  // whatever they are kept in
  }
}

TEST(ConformanceTest, AWriteThatIsLostFails) {
  MeddledChip chip("write_weight", {});
  const Report report = run(chip, quick("write_weight"));
  for (const Line& line : report.lines) EXPECT_FALSE(line.passed()) << line.variant;
}

// Within every bound, and alike alone and in a batch: only what serves the same numbers tells.
TEST(ConformanceTest, TrainingBitsThatAreNotServingsFail) {
  for (const auto& [op, sibling] :
       {std::pair{"attention_varlen", "attention_paged"}, {"token_logprob", "sample"}}) {
    MeddledChip chip(op, [](const Tensor& out) {
      each(out, [](float& v) { v = v == 0 ? v : std::nextafter(v, 1e30f); });
    });
    const Report report = run(chip, quick(op));
    EXPECT_FALSE(report.green) << op;
    for (const Line& line : report.lines) {
      EXPECT_EQ(line.errors.failures, 0) << line.errors.first_failure;
      for (const std::string& failure : line.failures) EXPECT_THAT(failure, ::testing::HasSubstr(sibling));
    }
  }
}

TEST(ConformanceTest, ATokenThatIsNotTheOneDrawnFails) {
  MeddledChip chip("feed_drawn", [](const Tensor& out) { ++out.as<int32_t>()[out.elements() - 1]; });
  EXPECT_FALSE(run(chip, quick("feed_drawn")).green);
}

TEST(ConformanceTest, KeysAndValuesInWrongSlotsFail) {
  MeddledChip chip("kv_write", {});
  EXPECT_FALSE(run(chip, until_failure("kv_write")).green);
}

TEST(ConformanceTest, ProjectionsInWrongSlotsFail) {
  MeddledChip chip("kept rows", {});
  EXPECT_FALSE(run(chip, until_failure("rope_kv_write")).green);
}

TEST(ConformanceTest, ASumThatIsSlightlyWrongFails) {
  MeddledChip chip("sum_of_squares", {});
  EXPECT_FALSE(run(chip, quick("sum_of_squares")).green);
}

TEST(ConformanceTest, ANeighbourThatIsNotTheBestFails) {
  MeddledChip chip("vector_search ids", {});
  EXPECT_FALSE(run(chip, until_failure("vector_search")).green);
}

TEST(ConformanceTest, AWrongTokenFails) {
  MeddledChip chip("sample", {});
  EXPECT_FALSE(run(chip, quick("sample")).green);
}

TEST(ConformanceTest, AWeightThatDoesNotComeBackFails) {
  MeddledChip chip("read_weight", {});
  EXPECT_FALSE(run(chip, quick("gather")).green);
}

TEST(ConformanceTest, AMissingOpMustBeListedAndIsNotGreen) {
  MeddledChip chip("sample missing", {});
  Report report = run(chip, quick("sample"));
  EXPECT_THAT(report.faults, ::testing::ElementsAre("sample: missing, and not listed as missing"));
  chip.listed = {{"sample", "serve", "not written yet"}};
  report = run(chip, quick("sample"));
  EXPECT_TRUE(report.faults.empty());
  EXPECT_FALSE(report.green);
  EXPECT_THAT(to_table(report), ::testing::HasSubstr("meddled is NOT green for profile serve"));
}

TEST(ConformanceTest, AListedOpThatPassesIsAFault) {
  MeddledChip chip("", {});
  chip.listed = {{"sample", "train", "not written yet"}};
  EXPECT_THAT(run(chip, quick("sample")).faults,
              ::testing::ElementsAre("sample: listed as missing, but passes"));
}

TEST(ConformanceTest, WhatTrainingLacksDoesNotStopServing) {
  MeddledChip chip("sample missing", {});
  chip.listed = {{"sample", "train", "not written yet"}};
  const Report report = run(chip, quick("sample"));
  EXPECT_TRUE(report.green);
  EXPECT_FALSE(report.green_for_train);
  EXPECT_THAT(to_table(report), ::testing::HasSubstr("meddled is green for profile serve"));
  EXPECT_THAT(to_table(report), ::testing::HasSubstr("meddled is NOT green for profile train"));
}

TEST(ConformanceTest, ABenchIsNamedByWhatLimitsIt) {
  const auto limits = [](DevicePeaks peaks) {
    MeddledChip chip("", {});
    chip.peaks = peaks;
    Options options = quick();
    options.bench = true;
    Report report;
    Harness harness(chip, options, &report);
    std::string names;
    for (const auto& [peak, flops] : {std::pair{Harness::Peak::kNone, 1e9},
                                      {Harness::Peak::kF32, 1e9},
                                      {Harness::Peak::kBF16, 1e9},
                                      {Harness::Peak::kInt8, 1e9},
                                      {Harness::Peak::kF8, 1e9},
                                      {Harness::Peak::kF8, 0.0}}) {
      const size_t line = harness.line("op", fmt::format("{}", names.size()));
      int calls = 0;
      harness.bench(line, "shape", 1, flops, peak, [&] { ++calls; });
      EXPECT_GT(calls, 0);
      names += fmt::format("{} ", report.lines[line].benches.at(0).of);
    }
    EXPECT_THAT(to_table(report), ::testing::HasSubstr("% of f32"));
    return names;
  };
  EXPECT_EQ(
      limits({.read_bytes_per_second = 1, .f32_flops = 1, .bf16_flops = 1, .int8_ops = 1, .f8_flops = 1}),
      "read f32 bf16 int8 fp8 read ");
  EXPECT_EQ(limits({.f32_flops = 1, .int8_ops = 1}), " f32  int8 f32  ");
}

TEST(ConformanceTest, AnUnknownOpIsNamed) {
  const std::unique_ptr<Backend> chip = reference_chip();
  EXPECT_THROW(run(*chip, quick("liner")), Error);
}

TEST(ConformanceTest, GivenProductsAreTimedAndNothingIsProved) {
  Options options;
  options.products = {{32, 256}, {5, 7}};
  options.tokens = {1, 70};
  MeddledChip chip("", {});
  chip.peaks = {.f32_flops = 1, .bf16_flops = 1};
  const Report report = run(chip, options);
  std::vector<std::string> timed;
  for (const Line& line : report.lines) {
    EXPECT_TRUE(line.passed()) << to_table(report);
    for (const Bench& bench : line.benches) {
      timed.push_back(fmt::format("{} {} {}", line.op, line.variant, bench.shape));
      EXPECT_GT(bench.seconds, 0);
    }
  }
  EXPECT_THAT(timed,
              ::testing::ElementsAre("linear BF16 bf16 T=1 N=32 K=256", "linear BF16 bf16 T=70 N=32 K=256",
                                     "linear BF16 bf16 T=1 N=5 K=7", "linear BF16 bf16 T=70 N=5 K=7",
                                     "linear F8_128 f8 T=1 N=32 K=256", "linear F8_128 f8 T=70 N=32 K=256"));
  EXPECT_THAT(to_table(report), ::testing::Not(::testing::HasSubstr("green")));
  EXPECT_TRUE(to_json(report)["batch_invariant"].get<bool>());
  EXPECT_TRUE(to_json(report)["green_for"].empty());

  MeddledChip wrong("linear", [](const Tensor& out) {
    if (out.shape[0] == 1) each(out, [](float& v) { v = std::nextafter(v, 1e30f); });
  });
  EXPECT_THAT(to_table(run(wrong, options)),
              ::testing::HasSubstr("the last of 70 rows differs from the same row alone"));
}

TEST(ConformanceTest, ProductsThatCannotBeTimedAreRefused) {
  const std::unique_ptr<Backend> chip = reference_chip();
  Options options = quick();
  options.products = {{16, 16}};
  EXPECT_THROW(run(*chip, options), Error);
  options.bench = true, options.op = "rope";
  EXPECT_THROW(run(*chip, options), Error);
}

TEST(ConformanceTest, TheSameSeedGivesTheSameReport) {
  const std::unique_ptr<Backend> chip = reference_chip();
  EXPECT_EQ(to_json(run(*chip, quick("rope"))), to_json(run(*chip, quick("rope"))));
}

}  // namespace
}  // namespace qiao::conformance
