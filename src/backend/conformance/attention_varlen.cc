// attention_varlen and attention_varlen_backward: packed sequences of all lengths, empty ones too; shared key
// heads; strides; a sequence's bytes are the same alone and among others, and causal ones attention_paged's.
#include "backend/ops/attention_varlen.h"

#include <algorithm>
#include <cstring>
#include <numeric>

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

template <typename Op>
void random_varlen_rule(Harness& h, int64_t width, Op* op) {
  op->causal = h.chance(0.6);
  if (op->causal) op->window = h.pick<int64_t>({0, 0, 1, 7, 33, 100});
  op->soft_cap = h.pick({0.0f, 0.0f, 2.0f, 50.0f});
  op->scale = h.pick({1.0f / std::sqrt(static_cast<float>(width)), 1.0f, 0.0f, -0.3f});
}

std::vector<int64_t> random_lengths(Harness& h, int64_t most, int64_t longest) {
  std::vector<int64_t> lengths;
  for (int64_t s = h.between(1, most); s > 0; --s) {
    lengths.push_back(h.pick<int64_t>({0, 1, 2, 15, 16, 17, 64, 65, h.between(1, longest)}));
  }
  return lengths;
}

int64_t sum_of(const std::vector<int64_t>& lengths) {
  return std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
}

void varlen_case(Harness& h, size_t line, Compute compute) {
  const VarlenHeads heads = random_varlen_heads(h);
  const std::vector<int64_t> lengths = random_lengths(h, 6, h.options().quick ? 90 : 300);
  const int64_t tokens = sum_of(lengths);
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
  random_varlen_rule(h, heads.width, &op);
  op.compute = compute;
  Guarded log_sum_exp(h, DType::kF32, {tokens, heads.query});
  const int64_t most = *std::max_element(lengths.begin(), lengths.end());
  Guarded bias(h, DType::kF32, {heads.query, 2 * std::max<int64_t>(most, 1) - 1 + 2 * h.between(0, 2)});
  bias.fill([&] { return 3 * h.normal(); });
  const bool biased = h.pick({true, false});
  law = op;
  if (biased) law.bias = bias.host(), op.bias = bias.device();
  law.q = q.host(), law.k = k.host(), law.v = v.host(), law.out = out.host(), law.starts = starts.host();
  op.q = q.device(), op.k = k.device(), op.v = v.device(), op.out = out.device();
  op.starts = starts.device();
  const bool summed = h.chance(0.7);
  if (summed) op.log_sum_exp = log_sum_exp.device();
  h.give_workspace(&op);
  h.chip().attention_varlen(op);
  out.download(line, "out");
  log_sum_exp.download(line, "log_sum_exp", summed);
  q.download(line, "q", false);
  k.download(line, "k", false);
  v.download(line, "v", false);
  const reference::AttentionTerms terms = reference::exact_attention_varlen(law);
  const double kept = compute == Compute::kBF16 ? (1 + 0x1p-8) * (1 + 0x1p-8) : 1;  // of two rounded numbers
  const double score = kept * (1 + gamma(static_cast<double>(heads.width) + 16)) - 1;  // its relative error
  for (int64_t i = 0; i < out.elements(); ++i) {
    const auto at = static_cast<size_t>(i);
    const int64_t row = i / heads.width;
    const double exponent = 2 * score * terms.score[static_cast<size_t>(row)];
    const auto keys = static_cast<double>(terms.keys[static_cast<size_t>(row / heads.query)]);
    const double moved = compute == Compute::kBF16
                             ? std::exp(exponent) * kept * (1 + gamma(2 * keys + 16)) - 1
                             : std::expm1(exponent) + gamma(2 * keys + 16);
    const double bound = moved * terms.magnitude[at] + 0x1p-126;
    h.element(line, out.result_at(i), terms.out[at], bound, row, i % heads.width);
  }
  for (int64_t i = 0; summed && i < log_sum_exp.elements(); ++i) {
    const auto at = static_cast<size_t>(i);
    const auto keys = static_cast<double>(terms.keys[static_cast<size_t>(i / heads.query)]);
    const double bound =
        score * terms.score[at] + gamma(2 * keys + 16) + kUnit * std::abs(terms.log_sum_exp[at]);
    h.element(line, log_sum_exp.result_at(i), terms.log_sum_exp[at], bound, i / heads.query, i % heads.query);
  }
}

// Sequences alone, then packed: the same bytes.
void varlen_invariance(Harness& h, size_t line, Compute compute, const VarlenHeads& heads,
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
  Guarded bias(h, DType::kF32, {heads.query, 2 * tokens - 1});
  bias.fill([&] { return h.normal(); });
  if (h.pick({true, false})) op.bias = bias.device();
  random_varlen_rule(h, heads.width, &op);
  op.compute = compute;
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

// One causal sequence, and the same through pages in chunks: the same bytes. In kBF16 through pages of BF16,
// where the chip rounds.
void varlen_like_paged(Harness& h, size_t line, Compute compute, const VarlenHeads& heads, int64_t length) {
  Guarded q(h, DType::kF32, {length, heads.query, heads.width}),
      out(h, DType::kF32, {length, heads.query, heads.width});
  Guarded k(h, DType::kF32, {length, heads.kv, heads.width}),
      v(h, DType::kF32, {length, heads.kv, heads.width});
  Guarded paged(h, DType::kF32, {length, heads.query, heads.width});
  for (Guarded* tensor : {&q, &k, &v}) tensor->fill([&] { return h.normal(); });
  AttentionVarlen op;
  random_varlen_rule(h, heads.width, &op);
  op.causal = true;
  op.compute = compute;
  op.window = h.pick<int64_t>({0, 0, 1, 33, 100, 600});
  const Guarded starts = starts_of(h, {length});
  op.q = q.device(), op.k = k.device(), op.v = v.device(), op.out = out.device();
  op.starts = starts.device();
  h.give_workspace(&op);
  h.chip().attention_varlen(op);
  out.download(line, "out");

  const bool rounds = compute == Compute::kBF16 && h.chip().rounds_packed_attention();
  const int64_t page_tokens = h.pick<int64_t>({5, 16, 32});
  const int64_t count = (length + page_tokens - 1) / page_tokens;
  const auto pages = h.chip().make_kv_pages(
      {count, page_tokens, heads.kv, heads.width, rounds ? DType::kBF16 : DType::kF32});
  Guarded table(h, DType::kI32, {1, count}), slots(h, DType::kI32, {length});
  for (int64_t i = 0; i < count; ++i) table.host_at<int32_t>(i) = static_cast<int32_t>(count - 1 - i);
  for (int64_t j = 0; j < length; ++j) {
    slots.host_at<int32_t>(j) =
        static_cast<int32_t>(table.host_at<int32_t>(j / page_tokens) * page_tokens + j % page_tokens);
  }
  table.upload();
  slots.upload();
  const int64_t chunk = h.pick<int64_t>({1, 7, 16, 100, length});
  for (int64_t begin = 0; begin < length; begin += chunk) {
    const int64_t rows = std::min(chunk, length - begin);
    h.chip().kv_write({k.device().slice(begin, rows), v.device().slice(begin, rows),
                       slots.device().slice(begin, rows), pages.get()});
    const Guarded lengths = starts_of(h, {begin + rows}), query_starts = starts_of(h, {rows});
    AttentionPaged step;
    step.q = q.device().slice(begin, rows), step.out = paged.device().slice(begin, rows);
    step.pages = pages.get(), step.page_table = table.device();
    step.lengths = lengths.device().slice(1, 1), step.query_starts = query_starts.device();
    step.window = op.window, step.scale = op.scale, step.soft_cap = op.soft_cap, step.compute = compute;
    h.give_workspace(&step);
    h.chip().attention_paged(step);
  }
  paged.download(line, "out");
  const auto bytes = static_cast<size_t>(out.elements()) * sizeof(float);
  if (std::memcmp(out.result().as<float>(), paged.result().as<float>(), bytes) != 0) {
    h.fail(line, fmt::format("{} causal tokens, window {}: differ from attention_paged in chunks of {}",
                             length, op.window, chunk));
  }
}

// Arguments of the way back: out and log_sum_exp are the law's.
struct BackwardCase {
  VarlenHeads heads;
  Guarded starts, q, k, v, out, log_sum_exp, dout, dq, dk, dv;
  AttentionVarlenBackward op, law;

  BackwardCase(Harness& h, const VarlenHeads& of, const std::vector<int64_t>& lengths, bool gaps,
               Compute compute)
      : heads(of), starts(starts_of(h, lengths)) {
    const int64_t tokens = sum_of(lengths);
    const auto make = [&](int64_t count) {
      return Guarded(h, DType::kF32, {tokens, count, heads.width}, gaps ? h.between(0, 3) : 0);
    };
    q = make(heads.query), k = make(heads.kv), v = make(heads.kv), out = make(heads.query);
    dout = make(heads.query), dq = make(heads.query), dk = make(heads.kv), dv = make(heads.kv);
    log_sum_exp = Guarded(h, DType::kF32, {tokens, heads.query});
    const float size = h.pick({0.0f, 1.0f, 1.0f, 5.0f});
    q.fill([&] { return h.normal(); });
    k.fill([&] { return size * h.normal(); });
    v.fill([&] { return h.normal(); });
    dout.fill([&] { return h.chance(0.05) ? 0.0f : h.normal(); });
    random_varlen_rule(h, heads.width, &op);
    op.compute = compute;
    AttentionVarlen forward;
    forward.scale = op.scale, forward.causal = op.causal, forward.window = op.window;
    forward.soft_cap = op.soft_cap;
    forward.q = q.host(), forward.k = k.host(), forward.v = v.host(), forward.starts = starts.host();
    forward.out = out.host(), forward.log_sum_exp = log_sum_exp.host();
    h.law().attention_varlen(forward);
    out.upload();
    log_sum_exp.upload();
    law = op;
    const auto set = [&](AttentionVarlenBackward* to, auto side) {
      to->q = side(q), to->k = side(k), to->v = side(v), to->starts = side(starts), to->out = side(out);
      to->log_sum_exp = side(log_sum_exp), to->dout = side(dout);
      to->dq = side(dq), to->dk = side(dk), to->dv = side(dv);
    };
    set(&op, [](const Guarded& tensor) { return tensor.device(); });
    set(&law, [](const Guarded& tensor) { return tensor.host(); });
  }
  void run(Harness& h, size_t line) {
    h.give_workspace(&op);
    h.chip().attention_varlen_backward(op);
    dq.download(line, "dq");
    dk.download(line, "dk");
    dv.download(line, "dv");
  }
};

void backward_case(Harness& h, size_t line, Compute compute) {
  BackwardCase c(h, random_varlen_heads(h), random_lengths(h, 4, h.options().quick ? 80 : 200), true,
                 compute);
  c.run(h, line);
  c.q.download(line, "q", false);
  c.k.download(line, "k", false);
  c.v.download(line, "v", false);
  c.dout.download(line, "dout", false);
  const reference::AttentionGradients exact = reference::exact_attention_varlen_backward(c.law);
  const auto width = static_cast<double>(c.heads.width);
  const double cap = c.op.soft_cap;
  const bool rounded = compute == Compute::kBF16;
  // Of one row, or of some with the largest of both.
  struct Shares {
    double p, ds;  // the contract's P and F, in kBF16 with the rounding of p and ds
  };
  const auto shares = [&](double score, double log_sum_exp) {
    const double kept = rounded ? (1 + 0x1p-8) * (1 + 0x1p-8) : 1;
    const double moved = (kept * (1 + gamma(width + 16)) - 1) * score;
    Shares s;
    s.p = std::expm1(moved + 3 * kUnit * (score + log_sum_exp) + 8 * kUnit);
    const double slope = cap > 0 ? (1 + moved / cap) * (1 + moved / cap) : 1;
    s.ds = (1 + s.p) * (1 + gamma(width + 4)) * (slope + 8 * kUnit) - 1;
    if (rounded) s.p += 0x1p-8 * (1 + s.p), s.ds += 0x1p-8 * (1 + s.ds);
    return s;
  };
  const auto compare_all = [&](const Guarded& got, const reference::AttentionGradients::Gradient& gradient,
                               int64_t first, int64_t end, double share, double terms, double adds) {
    for (int64_t i = first; i < end; ++i) {
      const auto at = static_cast<size_t>(i);
      const double bound = ((1 + share) * (1 + gamma(terms + adds)) - 1) * gradient.magnitude[at] +
                           0x1p-125 * (1 + gradient.span[at]);
      h.element(line, got.result_at(i), gradient.value[at], bound, i / c.heads.width, i % c.heads.width);
    }
  };
  const int64_t heads = c.heads.query, kv_heads = c.heads.kv, share = heads / kv_heads;
  for (int64_t s = 0; s + 1 < c.starts.elements(); ++s) {
    const int64_t begin = c.starts.host_at<int32_t>(s), end = c.starts.host_at<int32_t>(s + 1);
    for (int64_t group = 0; group < kv_heads; ++group) {
      double score = 0, largest = 0;
      for (int64_t t = begin; t < end; ++t) {
        for (int64_t head = group * share; head < (group + 1) * share; ++head) {
          const int64_t row = t * heads + head;
          const double own = exact.score[static_cast<size_t>(row)];
          const double sum = std::abs(static_cast<double>(c.log_sum_exp.host_at(row)));
          score = std::max(score, own);
          largest = std::max(largest, sum);
          compare_all(c.dq, exact.dq, row * c.heads.width, (row + 1) * c.heads.width, shares(own, sum).ds,
                      static_cast<double>(end - begin), 4);
        }
      }
      const Shares all = shares(score, largest);
      const auto terms = static_cast<double>((end - begin) * share);
      for (int64_t t = begin; t < end; ++t) {
        const int64_t first = (t * kv_heads + group) * c.heads.width;
        compare_all(c.dk, exact.dk, first, first + c.heads.width, all.ds, terms, 4);
        compare_all(c.dv, exact.dv, first, first + c.heads.width, all.p, terms, 1);
      }
    }
  }
}

// Each sequence alone, then packed: the same bytes.
void backward_invariance(Harness& h, size_t line, const std::vector<int64_t>& lengths, Compute compute) {
  BackwardCase c(h, random_varlen_heads(h), lengths, false, compute);
  c.run(h, line);
  const auto bytes_of = [](const Guarded& tensor) {
    const auto* data = tensor.result().as<float>();
    return std::vector<float>(data, data + tensor.elements());
  };
  const std::vector<float> packed[] = {bytes_of(c.dq), bytes_of(c.dk), bytes_of(c.dv)};
  const AttentionVarlenBackward all = c.op;
  int64_t begin = 0;
  for (const int64_t length : lengths) {
    const Guarded own = starts_of(h, {length});
    const auto part = [&](const Tensor& tensor) { return tensor.slice(begin, length); };
    c.op.q = part(all.q), c.op.k = part(all.k), c.op.v = part(all.v), c.op.out = part(all.out);
    c.op.log_sum_exp = part(all.log_sum_exp), c.op.dout = part(all.dout);
    c.op.dq = part(all.dq), c.op.dk = part(all.dk), c.op.dv = part(all.dv);
    c.op.starts = own.device();
    h.give_workspace(&c.op);
    h.chip().attention_varlen_backward(c.op);
    begin += length;
  }
  Guarded* alone[] = {&c.dq, &c.dk, &c.dv};
  for (size_t i = 0; i < 3; ++i) {
    Guarded& tensor = *alone[i];
    tensor.download(line, "a gradient");
    if (std::memcmp(packed[i].data(), tensor.result().as<float>(), packed[i].size() * sizeof(float)) != 0) {
      h.fail(line, fmt::format("{} sequences of {} heads of {} differ when each is alone", lengths.size(),
                               c.heads.query, c.heads.width));
    }
  }
}

// A training step's: Llama-shaped heads.
constexpr VarlenHeads kTrained = {9, 3, 64};
constexpr int64_t kTrainedLength = 512, kTrainedSequences = 4;
constexpr int64_t kTrainedPairs = kTrainedSequences * kTrainedLength * (kTrainedLength + 1) / 2;

void trained_bench(Harness& h, size_t line, Compute compute) {
  Guarded q(h, DType::kF32, {kTrainedSequences * kTrainedLength, kTrained.query, kTrained.width});
  Guarded k(h, DType::kF32, {kTrainedSequences * kTrainedLength, kTrained.kv, kTrained.width});
  Guarded out(h, DType::kF32, {kTrainedSequences * kTrainedLength, kTrained.query, kTrained.width});
  q.fill([&] { return h.normal(); });
  k.fill([&] { return h.normal(); });
  const Guarded starts = starts_of(h, std::vector<int64_t>(kTrainedSequences, kTrainedLength));
  AttentionVarlen op;
  op.scale = 0.125f, op.causal = true, op.compute = compute;
  op.q = q.device(), op.k = op.v = k.device(), op.out = out.device(), op.starts = starts.device();
  h.give_workspace(&op);
  h.bench(line, "S=4 length=512 H=9 G=3 D=64 causal", op.bytes(), op.flops(kTrainedPairs), peak_of(compute),
          [&] { h.chip().attention_varlen(op); });
}

void encoder_benches(Harness& h, size_t line) {
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
}

}  // namespace

void conform_attention_varlen_backward(Harness& h) {
  const bool quick = h.options().quick;
  for (const Compute compute : {Compute::kF32, Compute::kBF16}) {
    const size_t line = h.line("attention_varlen_backward", compute == Compute::kF32 ? "F32" : "F32 bf16");
    for (int i = 0; i < (quick ? 12 : 80); ++i) h.run_case(line, [&] { backward_case(h, line, compute); });
    for (int i = 0; i < (quick ? 2 : 8); ++i) {
      h.run_case(line, [&] {
        backward_invariance(h, line, {h.between(1, 150), 1, h.between(1, 70), 16, 130}, compute);
      });
    }
    h.run_case(line, [&] {
      if (!h.benches()) return;
      BackwardCase c(h, kTrained, std::vector<int64_t>(kTrainedSequences, kTrainedLength), false, compute);
      c.op.causal = true, c.op.window = 0, c.op.soft_cap = 0;
      h.give_workspace(&c.op);
      h.bench(line, "S=4 length=512 H=9 G=3 D=64 causal", c.op.bytes(), c.op.flops(kTrainedPairs),
              peak_of(compute), [&] { h.chip().attention_varlen_backward(c.op); });
    });
  }
}

void conform_attention_varlen(Harness& h) {
  const bool quick = h.options().quick;
  for (const Compute compute : {Compute::kF32, Compute::kBF16}) {
    const size_t line = h.line("attention_varlen", compute == Compute::kF32 ? "F32" : "F32 bf16");
    for (int i = 0; i < (quick ? 16 : 120); ++i) h.run_case(line, [&] { varlen_case(h, line, compute); });
    for (int i = 0; i < (quick ? 2 : 8); ++i) {
      h.run_case(line, [&] {
        varlen_invariance(h, line, compute, random_varlen_heads(h),
                          {h.between(1, 200), 1, h.between(1, 70), 16, 130});
      });
    }
    for (int i = 0; i < (quick ? 3 : 12); ++i) {
      const int64_t length = h.pick<int64_t>({h.between(1, 150), 64, quick ? 520 : h.between(500, 1100)});
      const VarlenHeads heads = length > 200 ? VarlenHeads{2, 1, 16} : random_varlen_heads(h);
      h.run_case(line, [&] { varlen_like_paged(h, line, compute, heads, length); });
    }
    h.run_case(line, [&] {
      if (!h.benches()) return;
      trained_bench(h, line, compute);
      if (compute == Compute::kF32) encoder_benches(h, line);
    });
  }
}

}  // namespace qiao::conformance
