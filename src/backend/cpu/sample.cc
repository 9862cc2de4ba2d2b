// Drawing tokens: sample_inl.h has the passes over a row; here, what is cut and who wins. A row is one
// thread's.
//
// Cuts are kept as a least (z, id): sorting happens only among the k of top-k, or, for top-p, among the
// tokens next to where the cut falls, which eight-way searches by mass narrow down first.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/log_sum_exp.h"
#include "backend/cpu/sample_inl.h"
#include "backend/cpu/simd_generic.h"
#include "backend/philox.h"
#include "base/error.h"

namespace qiao::cpu {

using GenericSampling = SampleKernel<generic::Simd>;
const SampleKernels kSampleGeneric = {
    GenericSampling::largest, GenericSampling::find,    GenericSampling::exp_sum, GenericSampling::divide,
    GenericSampling::mask,    GenericSampling::between, GenericSampling::masses,  GenericSampling::may_win};

namespace {

using Candidate = SampleCandidate;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

bool before(const Candidate& a, const Candidate& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

// Scratch of a worker: [V] floats and [V] candidates.
int64_t scratch_bytes(int64_t vocabulary) {
  return (vocabulary * static_cast<int64_t>(sizeof(float) + sizeof(Candidate)) + 63) / 64 * 64;
}

class RowSampler {
 public:
  RowSampler(const Sample& op, int64_t row, std::byte* scratch, const SampleKernels& kernels)
      : op_(op),
        row_(row),
        vocabulary_(op.logits.shape[1]),
        logits_(op.logits.as<float>() + row * op.logits.stride[0]),
        candidates_(reinterpret_cast<Candidate*>(scratch)),
        scratch_(reinterpret_cast<float*>(candidates_ + vocabulary_)),
        kernels_(kernels) {
    std::memcpy(&how_, op.rows.as<std::byte>() + row * static_cast<int64_t>(sizeof how_), sizeof how_);
  }

  void run() {
    const int64_t id = draw();
    op_.ids.as<int32_t>()[row_] = static_cast<int32_t>(id);
    if (!op_.log_probabilities.present() && !op_.top_ids.present()) return;
    const float temperature = how_.logprob_temperature;
    LogSumExp sum;
    for (int64_t first = 0; first < vocabulary_; first += kVocabularyPiece) {
      const int64_t count = std::min(kVocabularyPiece, vocabulary_ - first);
      const float* piece = logits_ + first;
      if (temperature != 1) {  // what was drawn is known: the scratch is free
        kernels_.divide(piece, count, temperature, scratch_);
        piece = scratch_;
      }
      sum.add(kernels_, piece, count);
    }
    const double shift = sum.value();
    const auto log_probability = [&](int64_t of) {
      if (logits_[of] == -kInfinity) return -kInfinity;
      return static_cast<float>(static_cast<double>(logits_[of] / temperature) - shift);
    };
    if (op_.log_probabilities.present()) {
      op_.log_probabilities.as<float>()[row_] = id < 0 ? -kInfinity : log_probability(id);
    }
    if (!op_.top_ids.present()) return;
    const int64_t wanted = op_.top_ids.shape[1];
    int64_t count = select_largest(logits_, wanted);
    for (int64_t of = 0; of < vocabulary_ && count < wanted; ++of) {  // too few above -infinity
      if (!(logits_[of] > -kInfinity)) candidates_[count++] = {logits_[of], static_cast<int32_t>(of)};
    }
    for (int64_t i = 0; i < wanted; ++i) {
      op_.top_ids.as<int32_t>()[row_ * op_.top_ids.stride[0] + i] = candidates_[i].id;
      op_.top_log_probabilities.as<float>()[row_ * op_.top_log_probabilities.stride[0] + i] =
          log_probability(candidates_[i].id);
    }
  }

 private:
  int64_t draw() {
    const float* l = adjusted();
    if (!(how_.temperature > 0)) return first_largest(l, kernels_.largest(l, vocabulary_));
    kernels_.divide(l, vocabulary_, how_.temperature, scratch_);
    largest_ = kernels_.largest(scratch_, vocabulary_);
    if (largest_ == -kInfinity || largest_ == kInfinity) return first_largest(scratch_, largest_);
    if (how_.top_k > 0 && how_.top_k < vocabulary_) {
      return draw_listed(cut_listed(select_largest(scratch_, how_.top_k)));
    }
    Candidate least = {-std::numeric_limits<float>::max(), std::numeric_limits<int32_t>::max()};
    if (how_.top_p < 1) least = cut_by_mass();
    if (how_.min_p > 0) {
      const float floor = std::min(least_by_share(), largest_);
      if (floor > least.value) least = {floor, std::numeric_limits<int32_t>::max()};
    }
    return draw_above(least);
  }

  int64_t first_largest(const float* x, float largest) const {
    return largest == -kInfinity ? -1 : kernels_.find(x, vocabulary_, largest);
  }

  // Steps 1 and 2 of the contract; the logits themselves where nothing changes them.
  const float* adjusted() {
    const auto own = [&](const Tensor& offsets) {
      return offsets.present() && offsets.as<int32_t>()[row_] < offsets.as<int32_t>()[row_ + 1];
    };
    const bool history = own(op_.history_offsets), bias = own(op_.bias_offsets);
    if (!history && !bias && !op_.mask.present()) return logits_;
    std::memcpy(scratch_, logits_, static_cast<size_t>(vocabulary_) * sizeof(float));
    for (int32_t i = history ? op_.history_offsets.as<int32_t>()[row_] : 0;
         history && i < op_.history_offsets.as<int32_t>()[row_ + 1]; ++i) {
      float& value = scratch_[op_.history_ids.as<int32_t>()[i]];
      const int32_t count = op_.history_counts.as<int32_t>()[i];
      value = value > 0 ? value / how_.repetition_penalty : value * how_.repetition_penalty;
      const float frequency = how_.frequency_penalty * static_cast<float>(count);
      value -= frequency + (count > 0 ? how_.presence_penalty : 0.0f);
    }
    for (int32_t i = bias ? op_.bias_offsets.as<int32_t>()[row_] : 0;
         bias && i < op_.bias_offsets.as<int32_t>()[row_ + 1]; ++i) {
      scratch_[op_.bias_ids.as<int32_t>()[i]] += op_.bias_values.as<float>()[i];
    }
    if (op_.mask.present()) {
      kernels_.mask(op_.mask.as<int32_t>() + row_ * op_.mask.stride[0], vocabulary_, scratch_);
    }
    return scratch_;
  }

  // The `wanted` largest above -infinity to candidates_, in order; returns how many there are.
  int64_t select_largest(const float* x, int64_t wanted) {
    constexpr int64_t kRun = 4096;
    int64_t count = 0;
    float after = -kInfinity;
    for (int64_t first = 0; first < vocabulary_; first += kRun) {
      count += kernels_.between(x + first, std::min(kRun, vocabulary_ - first), after, kInfinity,
                                static_cast<int32_t>(first), candidates_ + count);
      if (count < wanted + kRun / 2) continue;
      // Later equals of the last one kept have larger ids: they lose, so the next runs look above it.
      std::nth_element(candidates_, candidates_ + wanted - 1, candidates_ + count, before);
      count = wanted;
      after = candidates_[wanted - 1].value;
    }
    std::sort(candidates_, candidates_ + count, before);
    return std::min(count, wanted);
  }

  double mass(float z) const { return std::exp(static_cast<double>(z) - static_cast<double>(largest_)); }

  // How many of `count` sorted candidates top-p and min-p keep.
  int64_t cut_listed(int64_t count) const {
    if (how_.top_p < 1) {
      double sum = 0, reached = 0;
      for (int64_t i = 0; i < count; ++i) sum += mass(candidates_[i].value);
      int64_t kept = 0;
      while (kept < count && (kept == 0 || reached < static_cast<double>(how_.top_p) * sum)) {
        reached += mass(candidates_[kept++].value);
      }
      count = kept;
    }
    if (how_.min_p > 0) {
      while (count > 1 && mass(candidates_[count - 1].value) < static_cast<double>(how_.min_p)) --count;
    }
    return count;
  }

  // The least z that min-p keeps, by bisection of the floats in their order: near 0 they lie so close that
  // stepping from one to the next would not end.
  float least_by_share() const {
    const double least = static_cast<double>(how_.min_p);
    const auto flip = [](int32_t bits) { return bits ^ (bits >> 31 & INT32_MAX); };  // its own inverse
    const auto at = [&](int64_t rank) { return std::bit_cast<float>(flip(static_cast<int32_t>(rank))); };
    int64_t low = flip(std::bit_cast<int32_t>(-kInfinity)), high = flip(std::bit_cast<int32_t>(largest_));
    while (high - low > 1) {  // mass(at(low)) < least <= mass(at(high))
      const int64_t middle = low + (high - low) / 2;
      (mass(at(middle)) >= least ? high : low) = middle;
    }
    return at(high);
  }

  // The last one that top-p keeps of the whole vocabulary.
  Candidate cut_by_mass() {
    const double wanted = static_cast<double>(how_.top_p) * kernels_.exp_sum(scratch_, vocabulary_, largest_);
    constexpr float kDepths[2][kMassSteps] = {{1, 2, 4, 6, 8, 11, 15, 20}, {25, 30, 40, 50, 60, 75, 90, 105}};
    constexpr int64_t kSortable = 1024;
    // The cut lies in [low, high); above it `reached` lies.
    float high = kInfinity, low = 0;
    double reached = 0;
    float steps[kMassSteps];
    bool narrowed = false;
    for (const auto& depths : kDepths) {
      for (int s = 0; s < kMassSteps; ++s) steps[s] = largest_ - depths[s];
      if ((narrowed = narrow(steps, wanted, &low, &high, &reached))) break;
    }
    if (!narrowed) return {-std::numeric_limits<float>::max(), std::numeric_limits<int32_t>::max()};
    for (int pass = 0; pass < 5 && between_count_ > kSortable; ++pass) {
      const float top = std::min(high, std::nextafter(largest_, kInfinity));
      for (int s = 0; s < kMassSteps; ++s) {
        steps[s] = top + (low - top) * (static_cast<float>(s + 1) / static_cast<float>(kMassSteps));
      }
      steps[kMassSteps - 1] = low;
      if (!narrow(steps, wanted, &low, &high, &reached)) break;
    }
    const int64_t count = kernels_.between(scratch_, vocabulary_, std::nextafter(low, -kInfinity),
                                           std::nextafter(high, -kInfinity), 0, candidates_);
    std::sort(candidates_, candidates_ + count, before);
    int64_t kept = 0;
    while (kept < count && (kept == 0 || reached < wanted)) reached += mass(candidates_[kept++].value);
    return candidates_[kept - 1];
  }

  // Moves [low, high) to where `steps`, descending, first reach the wanted mass; false where none does.
  bool narrow(const float* steps, double wanted, float* low, float* high, double* reached) {
    double sums[kMassSteps];
    int64_t counts[kMassSteps];
    kernels_.masses(scratch_, vocabulary_, largest_, steps, sums, counts);
    for (int s = 0; s < kMassSteps; ++s) {
      if (sums[s] >= wanted) {
        *low = steps[s];
        between_count_ = counts[s] - above_count_;
        return true;
      }
      *high = steps[s];
      *reached = sums[s];
      above_count_ = counts[s];
    }
    return false;
  }

  // Step 4's z + g. v needs 33 bits: F32 would round it to 1 and g to infinity once in some 2^25 draws.
  double score(const Candidate& candidate) const {
    const auto id = static_cast<uint32_t>(candidate.id);
    const auto words = philox4x32(
        {id / 4, static_cast<uint32_t>(how_.position), static_cast<uint32_t>(how_.choice), 0u}, how_.seed);
    const double v = (static_cast<double>(words[id % 4]) + 0.5) * 0x1p-32;
    return static_cast<double>(candidate.value) - std::log(-std::log(v));
  }

  int64_t draw_listed(int64_t count) const {
    constexpr double kMostGumbel = 23.0;  // -log(2^-33) = 22.9
    int64_t best = -1;
    double most = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (best >= 0 && static_cast<double>(candidates_[i].value) + kMostGumbel < most) break;
      const double here = score(candidates_[i]);
      if (best < 0 || here > most) {
        best = candidates_[i].id;
        most = here;
      }
    }
    return best;
  }

  int64_t draw_above(const Candidate& least) const {
    // The likeliest token's score to begin with: most others cannot reach it.
    int64_t best = kernels_.find(scratch_, vocabulary_, largest_);
    double most = score({largest_, static_cast<int32_t>(best)});
    GumbelScan scan{scratch_,
                    vocabulary_,
                    least.value,
                    0,
                    how_.seed,
                    static_cast<uint32_t>(how_.position),
                    static_cast<uint32_t>(how_.choice)};
    for (int64_t first = 0; first < vocabulary_; first += 64) {
      scan.best = std::nextafter(static_cast<float>(most), -kInfinity);
      uint64_t winners = kernels_.may_win(scan, first);
      for (; winners != 0; winners &= winners - 1) {
        const Candidate candidate = {scratch_[first + __builtin_ctzll(winners)],
                                     static_cast<int32_t>(first + __builtin_ctzll(winners))};
        if (before(least, candidate)) continue;
        const double here = score(candidate);
        if (here > most) {
          best = candidate.id;
          most = here;
        }
      }
    }
    return best;
  }

  const Sample& op_;
  int64_t row_, vocabulary_;
  const float* logits_;
  Candidate* candidates_;
  float* scratch_;
  const SampleKernels& kernels_;
  SampleRow how_;
  float largest_ = 0;
  int64_t between_count_ = 0, above_count_ = 0;  // tokens in and above cut_by_mass's range
};

}  // namespace

size_t CpuBackend::workspace_bytes(const Sample& op) const {
  return static_cast<size_t>(std::min<int64_t>(pool_.size(), std::max<int64_t>(op.logits.shape[0], 1)) *
                             scratch_bytes(op.logits.shape[1]));
}

void CpuBackend::do_sample(const Sample& op) {
  QIAO_ASSERT(op.workspace.bytes() >= static_cast<int64_t>(workspace_bytes(op)));
  const SampleKernels& kernels = choose(kSampleGeneric, kSampleAvx2, kSampleAvx512);
  const int64_t vocabulary = op.logits.shape[1], rows = op.logits.shape[0];
  // A worker may be any of the pool's, so scratch goes with slices of the rows, not with workers.
  const int64_t slices = std::min<int64_t>(pool_.size(), rows);
  const bool small = rows * vocabulary < 32768;
  pool_.parallel_for(slices, small ? slices : 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t slice = begin; slice < end; ++slice) {
      std::byte* scratch = op.workspace.as<std::byte>() + slice * scratch_bytes(vocabulary);
      for (int64_t row = rows * slice / slices; row < rows * (slice + 1) / slices; ++row) {
        RowSampler(op, row, scratch, kernels).run();
      }
    }
  });
}

}  // namespace qiao::cpu
