// rope_kv_write: norms before and behind the rotation or none, both layouts, whole and partial rotation,
// every pages' dtype. Against the ops apart on the same chip, bit for bit (they are held to the law by tables
// of their own), and against the law within what their bounds come to together.
#include "backend/ops/rope_kv_write.h"

#include <cstring>
#include <numeric>

#include "backend/conformance/harness.h"
#include "backend/reference/exact.h"

namespace qiao::conformance {
namespace {

// Heads [T, H, D] as the law has them so far, and what a chip may have missed them by.
struct Followed {
  int64_t tokens, heads, width;
  std::vector<float> values;
  std::vector<double> errors;

  explicit Followed(const Tensor& x)
      : tokens(x.shape[0]), heads(x.shape[1]), width(x.shape[2]), errors(static_cast<size_t>(x.elements())) {
    for (int64_t i = 0; i < x.elements(); ++i) {
      values.push_back(reference::at(x, i / width / heads, i / width % heads, i % width));
    }
  }
  Tensor tensor() { return Tensor(values.data(), DType::kF32, {tokens, heads, width}); }
  double size(size_t i) const { return std::abs(static_cast<double>(values[i])) + errors[i]; }
  // The law's next step, rounded here.
  void step(const std::vector<double>& exact, const std::vector<double>& missed) {
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<float>(exact[i]);
      errors[i] = missed[i] + kUnit * std::abs(exact[i]) + 0x1p-149;
    }
  }
};

// A row that is missed by d has its mean square's root missed by ||d|| / sqrt(D) at most.
void follow_norm(const RmsNorm& norm, Followed* x) {
  if (!norm.present) return;
  AddRmsNorm law = norm.apart(x->tensor(), x->tensor());
  const std::vector<double> exact = reference::exact_norm(law).y;
  std::vector<double> missed(exact.size());
  const auto width = static_cast<size_t>(x->width);
  for (size_t row = 0; row < exact.size(); row += width) {
    double squares = 0, errors = 0;
    for (size_t c = 0; c < width; ++c) {
      squares += static_cast<double>(x->values[row + c]) * static_cast<double>(x->values[row + c]);
      errors += x->errors[row + c] * x->errors[row + c];
    }
    const auto factor = [&](double length) {
      return 1 / std::sqrt(length * length / static_cast<double>(width) + static_cast<double>(norm.epsilon));
    };
    const double length = std::sqrt(squares), most = factor(std::max(0.0, length - std::sqrt(errors)));
    const double off = std::max(most - factor(length), factor(length) - factor(length + std::sqrt(errors)));
    for (size_t c = 0; c < width; ++c) {
      const double gain = std::abs(static_cast<double>(norm.gamma.present() ? norm.gamma.as<float>()[c] : 1) +
                                   static_cast<double>(norm.gamma_offset));
      const double before = gain * (x->errors[row + c] * most + std::abs(x->values[row + c]) * off);
      missed[row + c] = before + norm_share(x->width) * (std::abs(exact[row + c]) + before) + 0x1p-126;
    }
  }
  x->step(exact, missed);
}

void follow_rope(const Rope& law, Followed* x) {
  const std::vector<double> exact = reference::exact_rope(law, x->tensor());
  std::vector<double> missed(exact.size());
  const auto scale = static_cast<double>(law.scale);
  for (size_t i = 0; i < exact.size(); ++i) {
    const auto d = static_cast<int64_t>(i) % x->width, other = rope_other(law, d);
    const size_t o = i + static_cast<size_t>(other - d);  // d itself where it is not rotated
    missed[i] =
        other == d ? x->errors[i]
                   : scale * (x->errors[i] + x->errors[o] + 6 * kUnit * (x->size(i) + x->size(o))) + 0x1p-126;
  }
  x->step(exact, missed);
}

int64_t keep_width(Harness& h, DType dtype) {
  if (dtype == DType::kQ8_0) return h.pick<int64_t>({32, 64, 96, 128, 256});
  if (dtype == DType::kF8_E4M3) return h.pick<int64_t>({16, 48, 64, 80, 96, 128, 256});
  return h.pick<int64_t>({2, 8, 33, 64, 80, 96, 100, 128, 256});
}

// What the pages hold, canonical.
std::vector<std::byte> contents(Backend& chip, const KvPages& pages) {
  std::vector<std::byte> all(pages.page_bytes() * static_cast<size_t>(pages.spec().pages));
  for (int64_t page = 0; page < pages.spec().pages; ++page) {
    chip.export_kv_page(pages, page, all.data() + static_cast<size_t>(page) * pages.page_bytes());
  }
  return all;
}
std::unique_ptr<KvPages> empty_pages(Backend& chip, const KvPagesSpec& spec) {
  std::unique_ptr<KvPages> pages = chip.make_kv_pages(spec);
  const std::vector<std::byte> zeros(pages->page_bytes());
  for (int64_t page = 0; page < spec.pages; ++page) chip.import_kv_page(*pages, page, zeros.data());
  return pages;
}

void run_apart(Backend& chip, const RopeKvWrite& op) {
  const auto norms = [&] {
    if (op.q_norm.present) chip.add_rms_norm(op.q_norm.apart(op.q, op.q));
    if (op.k_norm.present) chip.add_rms_norm(op.k_norm.apart(op.k, op.k));
  };
  if (!op.norms_after) norms();
  if (op.rotates()) chip.rope(op.rope());
  if (op.norms_after) norms();
  chip.kv_write(op.kv_write());
}

struct KeepShape {
  int64_t tokens, query, kv, width;
};

// q, k and v side by side, as a fused projection leaves them, or q last, behind which nothing may be written.
struct Projected {
  Guarded fused, positions, frequencies, q_gamma, k_gamma, slots;
  KeepShape shape;
  int64_t q_at, k_at;  // their first heads

  Projected(Harness& h, const KeepShape& of, int64_t gap, int64_t pairs, int64_t all_slots)
      : fused(h, DType::kF32, {of.tokens, of.query + 2 * of.kv, of.width}, gap),
        positions(h, DType::kI32, {of.tokens}),
        frequencies(h, DType::kF32, {std::max<int64_t>(pairs, 1)}),
        q_gamma(h, DType::kF32, {of.width}),
        k_gamma(h, DType::kF32, {of.width}),
        slots(h, DType::kI32, {of.tokens}),
        shape(of),
        q_at(h.chance(0.5) ? 0 : 2 * of.kv),
        k_at(q_at == 0 ? of.query : 0) {
    fill_activations(h, &fused, 1e15f);
    positions.fill([&] {
      return static_cast<int32_t>(h.pick<int64_t>({0, 1, h.between(0, 4096), 131071, 1 << 20}));
    });
    for (int64_t i = 0; i < pairs; ++i) {
      frequencies.host_at(i) =
          static_cast<float>(std::pow(1e4, -static_cast<double>(i) / static_cast<double>(pairs)));
    }
    frequencies.upload();
    for (Guarded* gamma : {&q_gamma, &k_gamma}) gamma->fill([&] { return h.normal(); });
    std::vector<int32_t> order(static_cast<size_t>(all_slots));
    std::iota(order.begin(), order.end(), 0);
    for (size_t i = 0; i < static_cast<size_t>(of.tokens); ++i) {
      std::swap(order[i], order[static_cast<size_t>(h.between(static_cast<int64_t>(i), all_slots - 1))]);
      slots.host_at<int32_t>(static_cast<int64_t>(i)) = order[i];
    }
    slots.upload();
  }

  // The op over one side's tensors.
  void to(RopeKvWrite* op, bool host) const {
    const auto side = [host](const Guarded& t) { return host ? t.host() : t.device(); };
    op->q = side(fused).narrow(1, q_at, shape.query);
    op->k = side(fused).narrow(1, k_at, shape.kv);
    op->v = side(fused).narrow(1, k_at + shape.kv, shape.kv);
    op->slots = side(slots);
    if (op->rotates()) op->positions = side(positions), op->inverse_frequencies = side(frequencies);
    if (op->q_norm.gamma.present()) op->q_norm.gamma = side(q_gamma);
    if (op->k_norm.gamma.present()) op->k_norm.gamma = side(k_gamma);
  }

  void inputs_are_as_they_were(size_t line) {
    positions.download(line, "positions", false);
    frequencies.download(line, "inverse_frequencies", false);
    q_gamma.download(line, "q_norm.gamma", false);
    k_gamma.download(line, "k_norm.gamma", false);
    slots.download(line, "slots", false);
  }

  // q's elements, where the chip left them.
  std::vector<float> q_result(int64_t from, int64_t count) const {
    std::vector<float> q;
    for (int64_t t = from; t < from + count; ++t) {
      for (int64_t i = 0; i < shape.query * shape.width; ++i)
        q.push_back(fused.result_at((t * (shape.query + 2 * shape.kv) + q_at) * shape.width + i));
    }
    return q;
  }
};

bool equal_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

// Keys and values of pages of F32.
void hold_rows(Harness& h, size_t line, const Projected& in, const KvPagesSpec& spec,
               const std::vector<std::byte>& kept, const Followed& rows, int64_t which) {
  const auto* numbers = reinterpret_cast<const float*>(kept.data());
  for (int64_t t = 0; t < rows.tokens; ++t) {
    const int64_t slot = in.slots.host().as<int32_t>()[t];
    for (int64_t g = 0; g < rows.heads; ++g) {
      const float* row = numbers + ((slot * spec.kv_heads + g) * 2 + which) * spec.head_dim;
      for (int64_t d = 0; d < rows.width; ++d) {
        const auto i = static_cast<size_t>((t * rows.heads + g) * rows.width + d);
        h.element(line, row[d], rows.values[i], rows.errors[i], t * rows.heads + g, d);
      }
    }
  }
}

void keep_case(Harness& h, size_t line, const KeepShape& shape, DType dtype, Rope::Layout layout) {
  const int64_t pairs = h.chance(0.15) ? 0 : h.chance(0.6) ? shape.width / 2 : h.between(1, shape.width / 2);
  KvPagesSpec spec{0, h.pick<int64_t>({1, 5, 16, 32}), shape.kv, shape.width, dtype};
  spec.pages = (shape.tokens + h.between(1, 40) + spec.page_tokens - 1) / spec.page_tokens;
  Projected in(h, shape, h.pick<int64_t>({0, 0, 4, 3}), pairs, spec.pages * spec.page_tokens);
  RopeKvWrite op;
  op.layout = layout;
  op.scale = h.pick({1.0f, 1.0f, 1.2079f});
  op.norms_after = h.chance(0.4);
  for (RmsNorm* norm : {&op.q_norm, &op.k_norm}) {
    norm->present = h.chance(0.6);
    norm->gamma_offset = h.pick({0.0f, 1.0f});
    norm->epsilon = h.pick({1e-6f, 1e-5f, 1e-12f, 1.0f});
    if (norm->present && h.chance(0.8)) norm->gamma = in.q_gamma.host();  // which, to() says
  }
  if (pairs > 0) op.inverse_frequencies = in.frequencies.host();
  RopeKvWrite law = op;
  in.to(&op, false);
  in.to(&law, true);

  const std::unique_ptr<KvPages> pages = empty_pages(h.chip(), spec), apart = empty_pages(h.chip(), spec);
  op.pages = pages.get();
  h.chip().rope_kv_write(op);
  in.inputs_are_as_they_were(line);
  in.fused.download(line, "q, k and v");
  const std::vector<float> q = in.q_result(0, shape.tokens);
  const std::vector<std::byte> kept = contents(h.chip(), *pages);

  Followed of_q(law.q), of_k(law.k);
  const auto norms = [&] { follow_norm(law.q_norm, &of_q), follow_norm(law.k_norm, &of_k); };
  if (!law.norms_after) norms();
  if (law.rotates()) follow_rope(law.rope(), &of_q), follow_rope(law.rope(), &of_k);
  if (law.norms_after) norms();
  for (size_t i = 0; i < q.size(); ++i) {
    const auto at = static_cast<int64_t>(i);
    h.element(line, q[i], of_q.values[i], of_q.errors[i], at / shape.width, at % shape.width);
  }
  if (dtype == DType::kF32) {
    hold_rows(h, line, in, spec, kept, of_k, 0);
    hold_rows(h, line, in, spec, kept, Followed(law.v), 1);
  }

  in.fused.upload();
  op.pages = apart.get();
  run_apart(h.chip(), op);
  in.fused.download(line, "q, k and v");
  if (!equal_bits(q, in.q_result(0, shape.tokens))) h.fail(line, "q is not that of the ops apart");
  if (kept != contents(h.chip(), *apart)) h.fail(line, "the pages are not those of the ops apart");

  if (shape.tokens < 2) return;
  in.fused.upload();
  for (Tensor* tensor : {&op.q, &op.k, &op.v, &op.slots}) *tensor = tensor->slice(shape.tokens - 1, 1);
  if (op.rotates()) op.positions = op.positions.slice(shape.tokens - 1, 1);
  h.chip().rope_kv_write(op);
  in.fused.download(line, "q, k and v");
  const std::vector<float> alone = in.q_result(shape.tokens - 1, 1);
  if (!equal_bits(alone, {q.end() - static_cast<std::ptrdiff_t>(alone.size()), q.end()})) {
    h.fail(line, fmt::format("the last of {} tokens alone differs", shape.tokens));
  }
  if (kept != contents(h.chip(), *apart)) h.fail(line, "the last token alone is kept otherwise");
}

void keep_bench(Harness& h, size_t line, DType dtype, int64_t tokens, bool normed) {
  const KeepShape shape{tokens, 32, 8, 128};
  const KvPagesSpec spec{(tokens + 31) / 32, 32, shape.kv, shape.width, dtype};
  const Projected in(h, shape, 0, shape.width / 2, spec.pages * spec.page_tokens);
  const std::unique_ptr<KvPages> pages = h.chip().make_kv_pages(spec);
  RopeKvWrite op;
  op.inverse_frequencies = in.frequencies.host();
  op.q_norm.present = op.k_norm.present = normed;
  if (normed) op.q_norm.gamma = op.k_norm.gamma = in.q_gamma.host();
  in.to(&op, false);
  op.pages = pages.get();
  h.bench(line, fmt::format("T={} H=32 G=8 D=128{}", tokens, normed ? " normed" : ""), op.bytes(), op.flops(),
          Harness::Peak::kF32, [&] { h.chip().rope_kv_write(op); });
}

}  // namespace

void conform_rope_kv_write(Harness& h) {
  for (const DType dtype : kPageDTypes) {
    const size_t line = h.line("rope_kv_write", traits(dtype).name);
    for (int i = 0; i < (h.options().quick ? 16 : 80); ++i) {
      h.run_case(line, [&] {
        const int64_t kv = h.pick<int64_t>({1, 2, 3});
        const KeepShape shape{h.pick<int64_t>({0, 1, 2, 5, 17, 66}), kv * h.pick<int64_t>({1, 2, 5}), kv,
                              keep_width(h, dtype)};
        keep_case(h, line, shape, dtype, h.chance(0.5) ? Rope::Layout::kHalf : Rope::Layout::kInterleaved);
      });
    }
    h.run_case(line, [&] {
      if (!h.benches()) return;
      for (const int64_t tokens : {1, 512}) {
        for (const bool normed : {false, true}) keep_bench(h, line, dtype, tokens, normed);
      }
    });
  }
}

}  // namespace qiao::conformance
