// attention_varlen: packed sequences of all lengths, empty ones too; shared key heads; strides; a sequence's
// bytes are the same alone and among others.
#include "backend/ops/attention_varlen.h"

#include <algorithm>
#include <cstring>

#include "backend/conformance/harness.h"
#include "backend/reference/exact.h"

namespace qiao::conformance {
namespace {

struct VarlenHeads {
  int64_t query, kv, width;
};

VarlenHeads random_varlen_heads(Harness& h) {
  const int64_t kv = h.pick<int64_t>({1, 2, 3, 4});
  return {kv * h.pick<int64_t>({1, 1, 1, 2, 7}), kv, h.pick<int64_t>({32, 64, 64, 80, 33, 16, 8, 1, 128})};
}

Guarded starts_of(Harness& h, const std::vector<int64_t>& lengths) {
  Guarded starts(h, DType::kI32, {static_cast<int64_t>(lengths.size()) + 1});
  int64_t at = 0;
  for (size_t s = 0; s <= lengths.size(); ++s) {
    starts.host_at<int32_t>(static_cast<int64_t>(s)) = static_cast<int32_t>(at);
    if (s < lengths.size()) at += lengths[s];
  }
  starts.upload();
  return starts;
}

void varlen_case(Harness& h, size_t line) {
  const VarlenHeads heads = random_varlen_heads(h);
  std::vector<int64_t> lengths;
  int64_t tokens = 0;
  const int64_t longest = h.options().quick ? 90 : 300;
  for (int64_t s = h.between(1, 6); s > 0; --s) {
    lengths.push_back(h.pick<int64_t>({0, 1, 2, 15, 16, 17, 64, 65, h.between(1, longest)}));
    tokens += lengths.back();
  }
  const Guarded starts = starts_of(h, lengths);
  Guarded q(h, DType::kF32, {tokens, heads.query, heads.width}, h.between(0, 3));
  Guarded k(h, DType::kF32, {tokens, heads.kv, heads.width}, h.between(0, 3));
  Guarded v(h, DType::kF32, {tokens, heads.kv, heads.width}, h.between(0, 3));
  Guarded out(h, DType::kF32, {tokens, heads.query, heads.width}, h.between(0, 3));
  const float size = h.pick({0.0f, 1.0f, 1.0f, 30.0f});
  q.fill([&] { return h.normal(); });
  k.fill([&] { return size * h.normal(); });
  v.fill([&] { return h.normal(); });
  AttentionVarlen op, law;
  op.scale = h.pick({1.0f / std::sqrt(static_cast<float>(heads.width)), 1.0f, 0.0f, -0.3f});
  const int64_t most = *std::max_element(lengths.begin(), lengths.end());
  Guarded bias(h, DType::kF32, {heads.query, 2 * std::max<int64_t>(most, 1) - 1 + 2 * h.between(0, 2)});
  bias.fill([&] { return 3 * h.normal(); });
  const bool biased = h.pick({true, false});
  law = op;
  if (biased) law.bias = bias.host(), op.bias = bias.device();
  law.q = q.host(), law.k = k.host(), law.v = v.host(), law.out = out.host(), law.starts = starts.host();
  op.q = q.device(), op.k = k.device(), op.v = v.device(), op.out = out.device();
  op.starts = starts.device();
  h.give_workspace(&op);
  h.chip().attention_varlen(op);
  out.download(line, "out");
  q.download(line, "q", false);
  k.download(line, "k", false);
  v.download(line, "v", false);
  const reference::AttentionTerms terms = reference::exact_attention_varlen(law);
  for (int64_t i = 0; i < out.elements(); ++i) {
    const auto at = static_cast<size_t>(i);
    const int64_t row = i / heads.width;
    const double exponent =
        2 * gamma(static_cast<double>(heads.width) + 16) * terms.score[static_cast<size_t>(row)];
    const auto keys = static_cast<double>(terms.keys[static_cast<size_t>(row / heads.query)]);
    const double bound = (std::expm1(exponent) + gamma(2 * keys + 16)) * terms.magnitude[at] + 0x1p-126;
    h.element(line, out.result_at(i), terms.out[at], bound, row, i % heads.width);
  }
}

// Sequences alone, then packed: the same bytes.
void varlen_invariance(Harness& h, size_t line, const VarlenHeads& heads,
                       const std::vector<int64_t>& lengths) {
  int64_t tokens = 0;
  for (const int64_t length : lengths) tokens += length;
  Guarded q(h, DType::kF32, {tokens, heads.query, heads.width}),
      k(h, DType::kF32, {tokens, heads.kv, heads.width});
  Guarded v(h, DType::kF32, {tokens, heads.kv, heads.width});
  Guarded all(h, DType::kF32, {tokens, heads.query, heads.width});
  Guarded alone(h, DType::kF32, {tokens, heads.query, heads.width});
  for (Guarded* tensor : {&q, &k, &v}) tensor->fill([&] { return h.normal(); });
  const Guarded starts = starts_of(h, lengths);
  AttentionVarlen op;
  op.scale = 0.3f;
  Guarded bias(h, DType::kF32, {heads.query, 2 * tokens - 1});
  bias.fill([&] { return h.normal(); });
  if (h.pick({true, false})) op.bias = bias.device();
  op.q = q.device(), op.k = k.device(), op.v = v.device(), op.out = all.device();
  op.starts = starts.device();
  h.give_workspace(&op);
  h.chip().attention_varlen(op);
  all.download(line, "out");
  int64_t begin = 0;
  for (const int64_t length : lengths) {
    const Guarded own = starts_of(h, {length});
    op.q = q.device().slice(begin, length), op.k = k.device().slice(begin, length);
    op.v = v.device().slice(begin, length), op.out = alone.device().slice(begin, length);
    op.starts = own.device();
    h.give_workspace(&op);
    h.chip().attention_varlen(op);
    begin += length;
  }
  alone.download(line, "out");
  const auto bytes = static_cast<size_t>(all.elements()) * sizeof(float);
  if (std::memcmp(all.result().as<float>(), alone.result().as<float>(), bytes) != 0) {
    h.fail(line, fmt::format("{} sequences of {} heads of {} differ when each is alone", lengths.size(),
                             heads.query, heads.width));
  }
}

}  // namespace

void conform_attention_varlen(Harness& h) {
  const size_t line = h.line("attention_varlen", "F32");
  const bool quick = h.options().quick;
  for (int i = 0; i < (quick ? 16 : 120); ++i) h.run_case(line, [&] { varlen_case(h, line); });
  for (int i = 0; i < (quick ? 2 : 8); ++i) {
    h.run_case(line, [&] {
      varlen_invariance(h, line, random_varlen_heads(h), {h.between(1, 200), 1, h.between(1, 70), 16, 130});
    });
  }
  h.run_case(line, [&] {
    if (!h.benches()) return;
    for (const int64_t length : {32, 256}) {
      const int64_t sequences = 2048 / length;
      Guarded fused(h, DType::kF32, {2048, 3 * 12 * 32}), out(h, DType::kF32, {2048, 12, 32});
      fused.fill([&] { return h.normal(); });
      const Guarded starts = starts_of(h, std::vector<int64_t>(static_cast<size_t>(sequences), length));
      AttentionVarlen op;
      op.scale = 0.18f;
      op.q = fused.device().narrow(1, 0, 384).split_last(12);
      op.k = fused.device().narrow(1, 384, 384).split_last(12);
      op.v = fused.device().narrow(1, 768, 384).split_last(12);
      op.out = out.device(), op.starts = starts.device();
      h.give_workspace(&op);
      h.bench(line, fmt::format("S={} length={} H=12 D=32", sequences, length), op.bytes(),
              op.flops(2048 * length), Harness::Peak::kF32, [&] { h.chip().attention_varlen(op); });
    }
  });
}

}  // namespace qiao::conformance
