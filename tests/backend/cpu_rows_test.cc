// The CPU chip's ops whose rows stand alone: norm, rotary embedding, gated activation, experts, row gather.
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>

#include "cpu_test_support.h"

namespace qiao::cpu_test {
namespace {

double gamma_of(double terms) { return terms * kUnit / (1 - terms * kUnit); }

struct NormCase {
  int64_t rows, columns;
  bool residual, keep, gamma, in_place;
};

std::vector<float> norm(Backend& backend, const NormCase& c, std::vector<float> x,
                        std::vector<float> residual, std::vector<float> gamma, std::vector<float>* kept) {
  std::vector<float> y(x.size(), kNan);
  AddRmsNorm op;
  op.x = view(x, {c.rows, c.columns});
  if (c.residual) op.residual = view(residual, {c.rows, c.columns});
  if (c.gamma) op.gamma = view(gamma, {c.columns});
  op.gamma_offset = c.gamma ? 1.0f : 0.0f;
  op.epsilon = 1e-5f;
  op.y = c.in_place ? op.x : view(y, {c.rows, c.columns});
  if (c.keep) op.residual_out = c.residual ? op.residual : view(*kept, {c.rows, c.columns});
  backend.add_rms_norm(op);
  if (c.keep && c.residual) *kept = residual;
  return c.in_place ? x : y;
}

TEST(CpuNorm, WithinTheContractsBound) {
  const auto backend = cpu_with(2);
  for (const int64_t columns : {1, 15, 16, 64, 100, 576, 1543}) {
    for (int bits = 0; bits < 16; ++bits) {
      const NormCase c{columns == 576 ? 200 : 3, columns,         (bits & 1) != 0,
                       (bits & 2) != 0,          (bits & 4) != 0, (bits & 8) != 0};
      const auto x = normal_values(c.rows * columns, 1, 3.0f), residual = normal_values(c.rows * columns, 2);
      const auto gamma = normal_values(columns, 3);
      std::vector<float> kept(x.size());
      const auto y = norm(*backend, c, x, residual, gamma, &kept);
      for (int64_t r = 0; r < c.rows; ++r) {
        double squares = 0;
        const auto h = [&](int64_t i) {
          const auto at = static_cast<size_t>(r * columns + i);
          return static_cast<double>(c.residual ? x[at] + residual[at] : x[at]);
        };
        for (int64_t i = 0; i < columns; ++i) squares += h(i) * h(i);
        const double factor =
            1 / std::sqrt(squares / static_cast<double>(columns) + static_cast<double>(1e-5f));
        for (int64_t i = 0; i < columns; ++i) {
          const auto at = static_cast<size_t>(r * columns + i);
          const double g = c.gamma ? static_cast<double>(gamma[static_cast<size_t>(i)]) + 1 : 1.0;
          const double expected = h(i) * factor * g;
          const double bound = gamma_of(static_cast<double>(columns) / 16 + 12) * std::abs(expected);
          ASSERT_FALSE(!(std::abs(y[at] - expected) <= bound)) << columns << " " << bits << " " << i;
          if (c.keep) {
            ASSERT_EQ(kept[at], static_cast<float>(h(i)));
          }
        }
      }
    }
  }
}

TEST(CpuNorm, HeadsOfAFusedProjection) {
  // x is [T, H, D] inside rows of 3 * H * D; only its own elements change.
  const auto backend = cpu_with(1);
  const int64_t tokens = 4, heads = 2, dim = 20, width = 3 * heads * dim;
  std::vector<float> fused = normal_values(tokens * width, 1);
  const std::vector<float> before = fused;
  AddRmsNorm op;
  op.x = view(fused, {tokens, width}).narrow(1, heads * dim, heads * dim).split_last(heads);
  op.y = op.x;
  backend->add_rms_norm(op);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < width; ++i) {
      const auto at = static_cast<size_t>(t * width + i);
      if (i < heads * dim || i >= 2 * heads * dim) {
        ASSERT_EQ(fused[at], before[at]);
        continue;
      }
      double squares = 0;
      const int64_t head = i / dim * dim;
      for (int64_t d = 0; d < dim; ++d) {
        const double value = before[static_cast<size_t>(t * width + head + d)];
        squares += value * value;
      }
      EXPECT_NEAR(fused[at], before[at] / std::sqrt(squares / static_cast<double>(dim) + 1e-6), 1e-5);
    }
  }
}

TEST(CpuRope, WithinTheContractsBound) {
  const auto backend = cpu_with(2);
  for (const bool half : {true, false}) {
    for (const int64_t rotated : {2, 10, 32, 64, 128, 200}) {
      const int64_t tokens = 9, heads = 3, dim = rotated + (rotated == 64 ? 16 : 0);
      std::vector<float> q = normal_values(tokens * heads * dim, 1), k = normal_values(tokens * dim, 2);
      const std::vector<float> before = q;
      std::vector<int32_t> positions{0, 1, 2, 77, 4095, 131071, 1000000, 12, 500};
      std::vector<float> frequencies;
      for (int64_t i = 0; i < rotated / 2; ++i) {
        frequencies.push_back(static_cast<float>(
            std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(rotated))));
      }
      Rope op;
      op.q = view(q, {tokens, heads, dim});
      op.k = view(k, {tokens, 1, dim});
      op.positions = view(positions, {tokens});
      op.inverse_frequencies = view(frequencies, {rotated / 2});
      op.layout = half ? Rope::Layout::kHalf : Rope::Layout::kInterleaved;
      op.scale = 1.25f;
      backend->rope(op);
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t h = 0; h < heads; ++h) {
          const auto row = static_cast<size_t>((t * heads + h) * dim);
          for (int64_t i = 0; i < rotated / 2; ++i) {
            const auto first = row + static_cast<size_t>(half ? i : 2 * i);
            const auto second = row + static_cast<size_t>(half ? i + rotated / 2 : 2 * i + 1);
            const float angle =
                static_cast<float>(positions[static_cast<size_t>(t)]) * frequencies[static_cast<size_t>(i)];
            const double cosine = std::cos(static_cast<double>(angle)) * 1.25;
            const double sine = std::sin(static_cast<double>(angle)) * 1.25;
            const double a = before[first], b = before[second];
            const double bound = 6 * kUnit * 1.25 * (std::abs(a) + std::abs(b));
            ASSERT_FALSE(!(std::abs(q[first] - (a * cosine - b * sine)) <= bound))
                << rotated << " " << t << i;
            ASSERT_FALSE(!(std::abs(q[second] - (a * sine + b * cosine)) <= bound))
                << rotated << " " << t << i;
          }
          for (int64_t d = rotated; d < dim; ++d) {
            ASSERT_EQ(q[row + static_cast<size_t>(d)], before[row + static_cast<size_t>(d)]);
          }
        }
      }
    }
  }
}

TEST(CpuGatedActivation, WithinTheContractsBound) {
  const auto backend = cpu_with(2);
  const std::vector<std::pair<Activation, std::function<double(double)>>> kinds = {
      {Activation::kSilu, [](double x) { return x / (1 + std::exp(-x)); }},
      {Activation::kGelu, [](double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }},
      {Activation::kGeluTanh,
       [](double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }}};
  for (const auto& [activation, exact] : kinds) {
    for (const int64_t columns : {1, 16, 37, 1536}) {
      const int64_t tokens = 70;
      std::vector<float> x = normal_values(tokens * 2 * columns, 5, 4.0f);
      x[0] = 1000.0f;
      x[static_cast<size_t>(2 * columns)] = -1000.0f;
      x[static_cast<size_t>(4 * columns)] = 0.0f;
      std::vector<float> y(static_cast<size_t>(tokens * columns), kNan);
      GatedActivation op;
      op.x = view(x, {tokens, 2 * columns});
      op.activation = activation;
      op.y = view(y, {tokens, columns});
      backend->gated_activation(op);
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t f = 0; f < columns; ++f) {
          const double gate = x[static_cast<size_t>(t * 2 * columns + f)];
          const double up = x[static_cast<size_t>(t * 2 * columns + columns + f)];
          const double expected = exact(gate) * up;
          const double bound = 16 * kUnit * (std::abs(gate) * std::abs(up) + std::abs(expected));
          const double got = y[static_cast<size_t>(t * columns + f)];
          ASSERT_FALSE(!(std::abs(got - expected) <= bound)) << static_cast<int>(activation) << " " << gate;
        }
      }
    }
  }
}

TEST(CpuMoe, RoutesByHand) {
  const auto backend = cpu_with(1);
  std::vector<float> logits{0.0f, std::log(2.0f), std::log(2.0f), std::log(3.0f)};  // of 8: 1, 2, 2, 3
  std::vector<int32_t> ids(3);
  std::vector<float> weights(3);
  MoeRoute op;
  op.logits = view(logits, {1, 4});
  op.ids = view(ids, {1, 3});
  op.weights = view(weights, {1, 3});
  backend->moe_route(op);
  EXPECT_EQ(ids, (std::vector<int32_t>{3, 1, 2}));
  EXPECT_NEAR(weights[0], 3.0 / 8, 1e-7);
  EXPECT_NEAR(weights[2], 2.0 / 8, 1e-7);
  op.normalize = true;
  op.scale = 2.0f;
  backend->moe_route(op);
  EXPECT_NEAR(weights[0], 2 * 3.0 / 7, 1e-6);
  op.kind = MoeRoute::Kind::kSigmoid;  // 1/2, 2/3, 2/3, 3/4
  op.normalize = false;
  op.scale = 1.0f;
  backend->moe_route(op);
  EXPECT_NEAR(weights[0], 3.0 / 4, 1e-7);
  EXPECT_NEAR(weights[1], 2.0 / 3, 1e-7);
}

TEST(CpuMoe, PermutesByHandAndCombines) {
  const auto backend = cpu_with(3);
  std::vector<float> x{1, 2, 10, 20, 100, 200}, sorted(12, kNan);  // three tokens, two picks each
  std::vector<int32_t> ids{2, 0, 0, 2, 3, 2}, counts(5, -1), places(6, -1);
  MoePermute permute;
  permute.x = view(x, {3, 2});
  permute.ids = view(ids, {3, 2});
  permute.sorted = view(sorted, {6, 2});
  permute.counts = view(counts, {5});
  permute.places = view(places, {3, 2});
  backend->moe_permute(permute);
  EXPECT_EQ(counts, (std::vector<int32_t>{2, 0, 3, 1, 0}));
  EXPECT_EQ(places, (std::vector<int32_t>{2, 0, 1, 3, 5, 4}));
  EXPECT_EQ(sorted, (std::vector<float>{1, 2, 10, 20, 1, 2, 10, 20, 100, 200, 100, 200}));

  std::vector<float> weights{0.5f, 0.25f, 1.0f, 2.0f, -1.0f, 4.0f}, residual{1, 1, 1, 1, 1, 1};
  MoeCombine combine;
  combine.sorted = permute.sorted;
  combine.places = permute.places;
  combine.weights = view(weights, {3, 2});
  combine.residual = view(residual, {3, 2});
  combine.y = combine.residual;  // in place
  backend->moe_combine(combine);
  EXPECT_EQ(residual, (std::vector<float>{1.75f, 2.5f, 31, 61, 301, 601}));
}

TEST(CpuMoe, CombinesManyColumns) {
  const auto backend = cpu_with(2);
  const int64_t tokens = 300, picks = 3, columns = 150;
  std::vector<float> sorted = normal_values(tokens * picks * columns, 1),
                     weights = normal_values(tokens * picks, 2);
  std::vector<int32_t> places(static_cast<size_t>(tokens * picks));
  for (size_t i = 0; i < places.size(); ++i) places[i] = static_cast<int32_t>((i * 7) % places.size());
  std::vector<float> y(static_cast<size_t>(tokens * columns), kNan);
  MoeCombine op;
  op.sorted = view(sorted, {tokens * picks, columns});
  op.places = view(places, {tokens, picks});
  op.weights = view(weights, {tokens, picks});
  op.y = view(y, {tokens, columns});
  backend->moe_combine(op);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t c = 0; c < columns; ++c) {
      double sum = 0, magnitude = 0;
      for (int64_t j = 0; j < picks; ++j) {
        const auto pick = static_cast<size_t>(t * picks + j);
        const double term =
            static_cast<double>(weights[pick]) * sorted[static_cast<size_t>(places[pick] * columns + c)];
        sum += term;
        magnitude += std::abs(term);
      }
      const double got = y[static_cast<size_t>(t * columns + c)];
      ASSERT_FALSE(!(std::abs(got - sum) <= gamma_of(picks + 1) * magnitude));
    }
  }
}

TEST(CpuGatherRows, CopiesRows) {
  const auto backend = cpu_with(2);
  std::vector<float> x = normal_values(50 * 3000, 1), out(40 * 3000, kNan);
  std::vector<int32_t> rows;
  for (int32_t s = 0; s < 40; ++s) rows.push_back((s * 13) % 50);
  GatherRows op;
  op.x = view(x, {50, 3000});
  op.rows = view(rows, {40});
  op.out = view(out, {40, 3000});
  backend->gather_rows(op);
  for (size_t s = 0; s < 40; ++s) {
    for (size_t c = 0; c < 3000; ++c)
      ASSERT_EQ(out[s * 3000 + c], x[static_cast<size_t>(rows[s]) * 3000 + c]);
  }
}

// A row's bytes are the same alone, in a batch, and on any number of threads.
TEST(CpuRows, NothingButTheRowDecides) {
  const int64_t tokens = 257, columns = 600, dim = 40;
  const auto x = normal_values(tokens * 2 * columns, 1);
  const auto run = [&](int threads, int64_t first, int64_t count) {
    const auto backend = cpu_with(threads);
    std::vector<float> in(x.begin() + first * 2 * columns, x.begin() + (first + count) * 2 * columns);
    std::vector<float> normed(in.size()), y(static_cast<size_t>(count * columns));
    std::vector<float> frequencies(dim / 2, 0.37f);
    std::vector<int32_t> positions(static_cast<size_t>(count));
    for (int64_t t = 0; t < count; ++t) positions[static_cast<size_t>(t)] = static_cast<int32_t>(first + t);
    AddRmsNorm norm;
    norm.x = view(in, {count, 2 * columns});
    norm.y = view(normed, {count, 2 * columns});
    backend->add_rms_norm(norm);
    GatedActivation gated;
    gated.x = norm.y;
    gated.y = view(y, {count, columns});
    backend->gated_activation(gated);
    Rope rope;
    rope.q = gated.y.split_last(columns / dim);
    rope.positions = view(positions, {count});
    rope.inverse_frequencies = view(frequencies, {dim / 2});
    backend->rope(rope);
    return y;
  };
  const auto all = run(1, 0, tokens);
  EXPECT_TRUE(same_bytes(run(2, 0, tokens), all));
  EXPECT_TRUE(same_bytes(run(3, 0, tokens), all));
  for (const int64_t t : {0, 100, 256}) {
    const std::vector<float> row(all.begin() + t * columns, all.begin() + (t + 1) * columns);
    EXPECT_TRUE(same_bytes(run(1, t, 1), row));
  }
}

// Each instruction set that this machine has passes the chip's tests: the set is read once a process, so each
// has a process of its own.
TEST(CpuEveryIsa, PassesTheseTests) {
  const std::string program = std::filesystem::read_symlink("/proc/self/exe");
  for (const std::string isa : {"generic", "avx2", "avx512"}) {
#if defined(__x86_64__)
    if (isa == "avx2" && !__builtin_cpu_supports("avx2")) continue;
    if (isa == "avx512" && !__builtin_cpu_supports("avx512bw")) continue;
#else
    if (isa != "generic") continue;
#endif
    const std::string command = "QIAO_CPU_ISA=" + isa + " '" + program +
                                "' --gtest_brief=1 "
                                "--gtest_filter='CpuNorm.*:CpuRope.*:CpuGated*:CpuMoe.*:CpuSample.*:"
                                "CpuAttention.WithinTheContractsBound' > /dev/null";
    EXPECT_EQ(std::system(command.c_str()), 0) << isa;
  }
}

}  // namespace
}  // namespace qiao::cpu_test
