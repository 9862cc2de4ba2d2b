// What the case tables of ops share: random values, guarded memory on the chip, weights on both sides,
// recording and timing.
#pragma once

#include <fmt/format.h>

#include <functional>
#include <random>
#include <span>
#include <string_view>

#include "backend/conformance/conformance.h"

namespace qiao::conformance {

class Harness {
 public:
  Harness(Backend& chip, const Options& options, Report* report);

  Backend& chip() { return chip_; }
  Backend& law() { return *law_; }
  const Options& options() const { return options_; }

  // The line of the table with this name, made on first use.
  size_t line(std::string_view op, std::string_view variant);
  // Runs one case: counts it and turns what it throws into a failure (kUnsupported: missing) of the line.
  void run_case(size_t line, const std::function<void()>& body);
  void fail(size_t line, std::string what);
  // compare(), recorded in the line.
  void element(size_t line, double actual, double expected, double bound, int64_t row, int64_t column);

  // Times `call`, its least of several runs, where benches are asked for. `peak` is the arithmetic it uses.
  enum class Peak { kNone, kF32, kBF16, kInt8, kF8 };
  void bench(size_t line, std::string shape, double bytes, double flops, Peak peak,
             const std::function<void()>& call);
  bool benches() const { return options_.bench; }
  // What was measured of the chip, once something has been timed; 0 without.
  struct Rate {
    double per_second = 0;
    std::string_view of;
  };
  Rate measured(Peak peak) const;

  // Random values; the same seed gives the same cases.
  int64_t between(int64_t low, int64_t high);  // both included
  bool chance(double probability);
  float normal();
  template <typename T>
  T pick(std::initializer_list<T> values) {
    return values.begin()[between(0, static_cast<int64_t>(values.size()) - 1)];
  }

  // A workspace of what the chip asks for `op`, set in it, until the next call.
  template <typename Op>
  void give_workspace(Op* op) {
    op->workspace = workspace_of(chip_.workspace_bytes(*op));
  }

 private:
  Tensor workspace_of(size_t bytes);
  // Whether the last one's guard bytes are as they were; a failure of the case's line.
  void check_workspace();

  Backend& chip_;
  std::unique_ptr<Backend> law_;
  Options options_;
  Report* report_;
  std::mt19937_64 random_;
  Buffer workspace_;
  size_t workspace_bytes_ = 0, line_ = 0;
  bool peaks_measured_ = false;
};

// A tensor on both sides: host() in plain memory for the law, device() on the chip, inside guard bytes. Rows
// may be padded apart. All that is no element holds a canary.
class Guarded {
 public:
  Guarded() = default;
  // gap: elements between rows (runs of the last dimension).
  Guarded(Harness& harness, DType dtype, std::initializer_list<int64_t> shape, int64_t gap = 0);

  const Tensor& host() const { return host_; }
  const Tensor& device() const { return device_; }
  // What the chip wrote, with host()'s strides; after download().
  const Tensor& result() const { return result_; }
  int64_t elements() const { return host_.elements(); }

  void upload();
  // Fetches what the chip left and checks the guards; with `changed` false the elements too. Failures are
  // recorded.
  void download(size_t line, std::string_view name, bool changed = true);

  // Element of the flat (row-major) index.
  template <typename T = float>
  T& host_at(int64_t index) {
    return *reinterpret_cast<T*>(expected_.data() + byte_offset(index));
  }
  template <typename T = float>
  T result_at(int64_t index) const {
    return *reinterpret_cast<const T*>(got_.data() + byte_offset(index));
  }
  // Every element from make().
  template <typename Make>
  void fill(Make make) {
    for (int64_t i = 0; i < elements(); ++i) host_at<std::decay_t<decltype(make())>>(i) = make();
    upload();
  }

 private:
  size_t byte_offset(int64_t index) const;

  Harness* harness_ = nullptr;
  Buffer buffer_;
  std::vector<std::byte> expected_, got_;
  Tensor host_, device_, result_;
};

// The same random weight on the chip and for the law. Blocks are random bytes with scales of ordinary size.
struct WeightPair {
  std::unique_ptr<Weight> chip, law;
};
struct SegmentSpec {
  DType dtype;
  int64_t rows;
};
// Of F8_128: kSquare, the same scale for 128 rows (Weight::square_scales).
enum class Scales { kOfRows, kSquare };
WeightPair make_weights(Harness& harness, std::span<const SegmentSpec> segments, int64_t columns,
                        int64_t experts = 1, Scales scales = Scales::kOfRows);
// Random rows in this format.
std::vector<std::byte> random_rows(Harness& harness, DType dtype, int64_t rows, int64_t columns);

// Activations: rows of ordinary size, and now and then one of zeros, subnormals, large values or one outlier.
void fill_activations(Harness& harness, Guarded* x, float huge = 1e12f);

// What pages may be of.
inline constexpr DType kPageDTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0,
                                        DType::kF8_E4M3};

// The weight formats, and the compute kinds that take each.
std::span<const DType> weight_dtypes();
std::vector<Compute> computes_of(DType dtype);
std::string_view name(Compute compute);
Harness::Peak peak_of(Compute compute);
// The bound of a sum of `columns` products and one more addition (ops/linear.h), on this chip.
double sum_bound(const Backend& chip, Compute compute, int64_t columns, double magnitude, double x_sum,
                 double w_sum);
// What sums inside blocks of kF8 may miss, of `terms` products: e there.
double block_sum_bound(const Backend& chip, int64_t terms, double magnitude);

// Of add_rms_norm, the share of |y| that its bound is; of rope, the other element of d's pair, d where none
// is.
double norm_share(int64_t width);
int64_t rope_other(const Rope& op, int64_t d);

// The case tables, one file an op.
void conform_gather(Harness& harness);
void conform_gather_rows(Harness& harness);
void conform_linear(Harness& harness);
void conform_grouped_linear(Harness& harness);
// Lines of those two tables: with a norm before the product, a gate behind it.
void conform_linear_around(Harness& harness, DType dtype, Compute compute);
void conform_grouped_linear_around(Harness& harness, DType dtype, Compute compute);
void conform_moe_route(Harness& harness);
void conform_moe_permute(Harness& harness);
void conform_moe_combine(Harness& harness);
void conform_add_rms_norm(Harness& harness);
void conform_layer_norm(Harness& harness);
void conform_rope(Harness& harness);
void conform_gated_activation(Harness& harness);
void conform_kv_write(Harness& harness);
void conform_rope_kv_write(Harness& harness);
void conform_attention_paged(Harness& harness);
void conform_attention_varlen(Harness& harness);
void conform_sample(Harness& harness);
void conform_embedding_bag(Harness& harness);
void conform_vector_search(Harness& harness);
void conform_write_weight(Harness& harness);
void conform_gather_backward(Harness& harness);
void conform_embedding_bag_backward(Harness& harness);
void conform_linear_backward(Harness& harness);
void conform_grouped_linear_backward(Harness& harness);
void conform_moe_route_backward(Harness& harness);
void conform_moe_permute_backward(Harness& harness);
void conform_moe_combine_backward(Harness& harness);
void conform_add_rms_norm_backward(Harness& harness);
void conform_gated_activation_backward(Harness& harness);
void conform_attention_varlen_backward(Harness& harness);
void conform_token_logprob(Harness& harness);
void conform_token_logprob_backward(Harness& harness);
void conform_sum_of_squares(Harness& harness);
void conform_token_loss(Harness& harness);
void conform_dropout(Harness& harness);
void conform_feed_drawn(Harness& harness);
void conform_accumulate(Harness& harness);
void conform_adamw(Harness& harness);
void conform_muon(Harness& harness);

}  // namespace qiao::conformance
