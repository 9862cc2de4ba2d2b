// What cuBLASLt needs for the products of a model's layers, beside Qiao's own (qiao conformance --products):
// y [T, N] in F32 = x [T, K] times W [N, K], rows behind each other, in BF16 and in E4M3 with a scale for 128
// columns of x and for 128 x 128 of W.
//
//   nvcc -O2 -std=c++20 -o /tmp/cublaslt_peer bench/h200/cublaslt_peer.cc -lcublasLt
//   /tmp/cublaslt_peer 28672x4096,4096x14336 128,512,2048,8192
//
// Of the first eight algorithms that the library proposes the quickest counts: the least of some runs of
// calls in a row, as conformance times. Before that it multiplies numbers whose sums are exact in any order
// (1 and -1, scales of 1 and 1/2) and compares some results: what is timed is the product that is meant.
// Prints a JSON object a line; exit code 1 where the library fails or is wrong. A kind that it has no
// algorithm for (E4M3 with such scales: Hopper alone) is a row without "seconds".
#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "cublaslt_peer: %s\n", what.c_str());
  std::exit(1);
}
void need(cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail(std::string(what) + ": " + cudaGetErrorString(error));
}
void need(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) fail(std::string(what) + ": cuBLAS status " + std::to_string(status));
}

constexpr int64_t kBlock = 128;  // columns that share a scale
int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

class Memory {
 public:
  explicit Memory(size_t bytes) { need(cudaMalloc(&data_, bytes), "memory"); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { cudaFree(data_); }
  template <typename T = void>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

// What operands are made of: drawn words, again and again. Their number is odd, so that rows differ.
class Drawn {
 public:
  // Of each drawn word the bits of `free`, and `fixed`.
  Drawn(uint32_t seed, uint32_t free, uint32_t fixed) : words_((1 << 20) + 7) {
    for (uint32_t& word : words_) {
      uint32_t x = ++seed;  // Wellons' lowbias32
      x = (x ^ x >> 16) * 0x7feb352du;
      x = (x ^ x >> 15) * 0x846ca68bu;
      word = ((x ^ x >> 16) & free) | fixed;
    }
  }
  uint32_t word(int64_t at) const { return words_[static_cast<size_t>(at) % words_.size()]; }
  void fill(const Memory& to, int64_t bytes) const {
    const auto all = static_cast<int64_t>(words_.size() * sizeof(uint32_t));
    for (int64_t at = 0; at < bytes; at += all) {
      need(cudaMemcpy(to.as<char>() + at, words_.data(), static_cast<size_t>(std::min(all, bytes - at)),
                      cudaMemcpyHostToDevice),
           "upload");
    }
  }

 private:
  std::vector<uint32_t> words_;
};

// A kind of product: operands to time with (1/2 to 2, of either sign), and to check with (1 and -1).
struct Kind {
  const char* variant;  // as conformance calls it
  cudaDataType type;
  int64_t bytes;  // of a number
  uint32_t free, fixed, one;

  uint32_t sign() const { return bytes == 1 ? 0x80808080u : 0x80008000u; }
  bool scaled() const { return bytes == 1; }
};
constexpr Kind kKinds[] = {{"BF16 bf16", CUDA_R_16BF, 2, 0x80ff80ff, 0x3f003f00, 0x3f803f80},
                           {"F8_128 f8", CUDA_R_8F_E4M3, 1, 0x8f8f8f8f, 0x30303030, 0x38383838}};
constexpr uint32_t kScaleFree = 0x00800000, kScaleFixed = 0x3f000000;  // 1/2 or 1

struct Operands {
  Operands(uint32_t free, uint32_t fixed)
      : w(0, free, fixed), x(1 << 24, free, fixed), scales(1 << 25, kScaleFree, kScaleFixed) {}
  Drawn w, x, scales;
};

struct Shape {
  int64_t tokens, rows, columns;
};

class Product {
 public:
  Product(cublasLtHandle_t library, const Kind& kind, const Shape& shape)
      : library_(library),
        kind_(kind),
        shape_(shape),
        w_(static_cast<size_t>(shape.rows * shape.columns * kind.bytes)),
        x_(static_cast<size_t>(shape.tokens * shape.columns * kind.bytes)),
        y_(static_cast<size_t>(shape.tokens * shape.rows) * sizeof(float)),
        w_scales_(static_cast<size_t>(w_scale_count()) * sizeof(float)),
        x_scales_(static_cast<size_t>(x_scale_count()) * sizeof(float)),
        workspace_(kWorkspaceBytes) {
    // In the library's words, of columns behind each other: D [N, T] = A^T B with A [K, N] and B [K, T].
    need(cublasLtMatmulDescCreate(&product_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "product");
    set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    set(CUBLASLT_MATMUL_DESC_TRANSB, CUBLAS_OP_N);
    if (kind.scaled()) {
      set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F);
      set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F);
      set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, w_scales_.as());
      set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, x_scales_.as());
    }
    const auto n = static_cast<uint64_t>(shape.rows), t = static_cast<uint64_t>(shape.tokens);
    const auto k = static_cast<uint64_t>(shape.columns);
    need(cublasLtMatrixLayoutCreate(&of_w_, kind.type, k, n, shape.columns), "layout of W");
    need(cublasLtMatrixLayoutCreate(&of_x_, kind.type, k, t, shape.columns), "layout of x");
    need(cublasLtMatrixLayoutCreate(&of_y_, CUDA_R_32F, n, t, shape.rows), "layout of y");
    need(cublasLtMatmulPreferenceCreate(&preference_), "preference");
    need(cublasLtMatmulPreferenceSetAttribute(preference_, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                              &kWorkspaceBytes, sizeof kWorkspaceBytes),
         "workspace");
  }
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;
  ~Product() {
    cublasLtMatmulPreferenceDestroy(preference_);
    for (const cublasLtMatrixLayout_t layout : {of_w_, of_x_, of_y_}) cublasLtMatrixLayoutDestroy(layout);
    cublasLtMatmulDescDestroy(product_);
  }

  // What the library proposes, the best by its own judgement first; none where it has none.
  std::vector<cublasLtMatmulHeuristicResult_t> algorithms() const {
    std::vector<cublasLtMatmulHeuristicResult_t> found(8);
    int count = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(library_, product_, of_w_, of_x_, of_y_, of_y_, preference_,
                                       static_cast<int>(found.size()), found.data(), &count);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED) need(status, "algorithms");
    found.resize(static_cast<size_t>(count));
    std::erase_if(found, [](const auto& each) { return each.state != CUBLAS_STATUS_SUCCESS; });
    return found;
  }

  void call(const cublasLtMatmulHeuristicResult_t& by) const {
    const float one = 1, zero = 0;
    need(cublasLtMatmul(library_, product_, &one, w_.as(), of_w_, x_.as(), of_x_, &zero, y_.as(), of_y_,
                        y_.as(), of_y_, &by.algo, workspace_.as(), kWorkspaceBytes, nullptr),
         "cublasLtMatmul");
  }

  // Exits where results are not those of x W^T.
  void check(const cublasLtMatmulHeuristicResult_t& by) const {
    const Operands operands(kind_.sign(), kind_.one);
    fill(operands);
    call(by);
    std::vector<float> row(static_cast<size_t>(shape_.rows));
    for (const int64_t t : {int64_t{0}, shape_.tokens / 2, shape_.tokens - 1}) {
      need(cudaMemcpy(row.data(), y_.as<float>() + t * shape_.rows, row.size() * sizeof(float),
                      cudaMemcpyDeviceToHost),
           "download");
      for (int64_t i = 0; i <= ceil_div(shape_.rows, 61); ++i) {
        const int64_t n = std::min(61 * i, shape_.rows - 1);
        const double expected = exact(operands, t, n), got = row[static_cast<size_t>(n)];
        if (!(got == expected)) {
          fail(std::string(kind_.variant) + ": y[" + std::to_string(t) + ", " + std::to_string(n) + "] of " +
               name() + " is " + std::to_string(got) + " in place of " + std::to_string(expected) +
               ": operands do not lie as the library takes them");
        }
      }
    }
  }

  // Seconds of a call.
  double time(const std::vector<cublasLtMatmulHeuristicResult_t>& algorithms) const {
    fill(Operands(kind_.free, kind_.fixed));
    size_t quickest = 0;
    double least = 1e9;
    for (size_t i = 0; i < algorithms.size(); ++i) {
      const double seconds = best_of(algorithms[i], 0.01);
      if (seconds < least) least = seconds, quickest = i;
    }
    return std::min(least, best_of(algorithms[quickest], 0.15));
  }

  std::string name() const {
    return "T=" + std::to_string(shape_.tokens) + " N=" + std::to_string(shape_.rows) +
           " K=" + std::to_string(shape_.columns);
  }

 private:
  static constexpr size_t kWorkspaceBytes = size_t{32} << 20;

  template <typename T>
  void set(cublasLtMatmulDescAttributes_t which, const T& value) {
    need(cublasLtMatmulDescSetAttribute(product_, which, &value, sizeof value), "attribute");
  }

  // W's scales: [128 rows][128 columns, padded to fours]; x's: [128 columns][token].
  int64_t w_scale_stride() const { return ceil_div(ceil_div(shape_.columns, kBlock), 4) * 4; }
  int64_t w_scale_count() const { return ceil_div(shape_.rows, kBlock) * w_scale_stride(); }
  int64_t x_scale_count() const { return ceil_div(shape_.columns, kBlock) * shape_.tokens; }

  void fill(const Operands& operands) const {
    operands.w.fill(w_, shape_.rows * shape_.columns * kind_.bytes);
    operands.x.fill(x_, shape_.tokens * shape_.columns * kind_.bytes);
    operands.scales.fill(w_scales_, w_scale_count() * 4);
    operands.scales.fill(x_scales_, x_scale_count() * 4);
  }

  // y[t, n] of operands of 1 and -1: sums of quarters, exact in F32.
  double exact(const Operands& operands, int64_t t, int64_t n) const {
    const auto negative = [&](const Drawn& signs, int64_t at) {
      const int64_t byte = at * kind_.bytes + kind_.bytes - 1;  // the sign's
      return (signs.word(byte / 4) >> (byte % 4 * 8 + 7) & 1) != 0;
    };
    const auto scale = [&](int64_t at) { return (operands.scales.word(at) & kScaleFree) != 0 ? 1.0 : 0.5; };
    double sum = 0;
    for (int64_t begin = 0; begin < shape_.columns; begin += kBlock) {
      const int64_t end = std::min(begin + kBlock, shape_.columns), block = begin / kBlock;
      double inside = 0;
      for (int64_t k = begin; k < end; ++k) {
        const bool x = negative(operands.x, t * shape_.columns + k);
        inside += x == negative(operands.w, n * shape_.columns + k) ? 1 : -1;
      }
      sum += kind_.scaled()
                 ? inside * scale(n / kBlock * w_scale_stride() + block) * scale(block * shape_.tokens + t)
                 : inside;
    }
    return sum;
  }

  // The least of runs of calls in a row, over so many seconds, three runs at least.
  double best_of(const cublasLtMatmulHeuristicResult_t& by, double seconds_wanted) const {
    cudaEvent_t begin = nullptr, end = nullptr;
    need(cudaEventCreate(&begin), "event");
    need(cudaEventCreate(&end), "event");
    double best = 1e9, total = 0;
    int calls = 1;
    for (int run = 0; run < 1000 && (run < 3 || total < seconds_wanted); ++run) {
      need(cudaEventRecord(begin, nullptr), "event");
      for (int i = 0; i < calls; ++i) call(by);
      need(cudaEventRecord(end, nullptr), "event");
      need(cudaEventSynchronize(end), "products");
      float milliseconds = 0;
      need(cudaEventElapsedTime(&milliseconds, begin, end), "time");
      const double seconds = std::max(1e-9, milliseconds * 1e-3);
      best = std::min(best, seconds / calls);
      total += seconds;
      calls = static_cast<int>(std::clamp(1e-3 / best, 1.0, 64.0));
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    return best;
  }

  cublasLtHandle_t library_;
  Kind kind_;
  Shape shape_;
  Memory w_, x_, y_, w_scales_, x_scales_, workspace_;
  cublasLtMatmulDesc_t product_ = nullptr;
  cublasLtMatrixLayout_t of_w_ = nullptr, of_x_ = nullptr, of_y_ = nullptr;
  cublasLtMatmulPreference_t preference_ = nullptr;
};

// Numbers between commas, of which each has `count` with an x between.
std::vector<std::vector<int64_t>> numbers(std::string_view text, size_t count) {
  std::vector<std::vector<int64_t>> all(1);
  const char *at = text.data(), *const end = at + text.size();
  while (true) {
    int64_t value = 0;
    const auto [next, error] = std::from_chars(at, end, value);
    if (error != std::errc() || value < 1 || value > 1 << 20) break;
    all.back().push_back(value);
    at = next;
    if (all.back().size() == count) {
      if (at == end) return all;
      if (*at != ',') break;
      all.emplace_back();
    } else if (at == end || *at != 'x') {
      break;
    }
    ++at;
  }
  fail("usage: cublaslt_peer NxK[,NxK…] T[,T…], each number from 1 to 1048576; not " + std::string(text));
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) fail("usage: cublaslt_peer NxK[,NxK…] T[,T…]");
  const auto weights = numbers(arguments[1], 2), tokens = numbers(arguments[2], 1);
  cublasLtHandle_t library = nullptr;
  need(cublasLtCreate(&library), "cublasLtCreate");
  for (const Kind& kind : kKinds) {
    for (const auto& weight : weights) {
      if (kind.scaled() && weight[1] % kBlock != 0) continue;  // as conformance does
      for (const auto& rows : tokens) {
        const Product product(library, kind, {rows[0], weight[0], weight[1]});
        const auto algorithms = product.algorithms();
        std::string row = std::string(R"({"variant": ")") + kind.variant + R"(", "shape": ")" +
                          product.name() + R"(", "algorithms": )" + std::to_string(algorithms.size());
        if (!algorithms.empty()) {
          product.check(algorithms.front());
          char seconds[32];
          std::snprintf(seconds, sizeof seconds, "%.9g", product.time(algorithms));
          row += std::string(R"(, "seconds": )") + seconds;
        }
        std::printf("%s}\n", row.c_str());
        std::fflush(stdout);
      }
    }
  }
  cublasLtDestroy(library);
  return 0;
}
