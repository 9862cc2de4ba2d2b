// Bags of a table's rows and their way back; embedding_bag_inl.h has the kernels' plan. Bags are shared out
// over the threads. On the way back the places are sorted by id (a radix sort, a run of them to each thread),
// so that what meets one row is a bag of rows of dout, which one thread adds up, in the places' order.
#include <algorithm>
#include <utility>

#include "backend/cpu/choose.h"
#include "backend/cpu/cpu_class.h"
#include "backend/cpu/embedding_bag_inl.h"
#include "backend/cpu/simd_generic.h"

namespace qiao::cpu {

const EmbeddingBagKernels kEmbeddingBagGeneric = {EmbeddingBagKernel<generic::Simd>::sum,
                                                  EmbeddingBagKernel<generic::Simd>::dot};

namespace {

BagTable bag_table(const Tensor& rows) {
  return {rows.data, rows.dtype, rows.stride[0], rows.shape[0], rows.shape[1]};
}

// A bag's places, whatever its offsets are.
struct BagPlaces {
  int64_t begin, end;
};
BagPlaces bag_places(const int32_t* offsets, int64_t bag, int64_t places) {
  const int64_t begin = std::clamp<int64_t>(offsets[bag], 0, places);
  return {begin, std::clamp<int64_t>(offsets[bag + 1], begin, places)};
}

// Bags that make a chunk of some microseconds.
int64_t bag_grain(int64_t bags, int64_t places, int64_t columns) {
  return row_grain(columns * (1 + places / std::max<int64_t>(bags, 1)));
}

constexpr int kDigitBits = 11;
constexpr int64_t kDigitCount = int64_t{1} << kDigitBits;

// The workspace of the way back.
struct BagGradientPlan {
  int64_t keys_at, other_keys_at, counts_at, bag_of_at, rows_at, factors_at, starts_at, shares_at, end;

  BagGradientPlan(int64_t places, int64_t bags, int threads) {
    const auto up = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
    keys_at = 0;
    other_keys_at = keys_at + up(places * 8);
    counts_at = other_keys_at + up(places * 8);
    bag_of_at = counts_at + threads * kDigitCount * 4;
    rows_at = bag_of_at + up(places * 4);
    factors_at = rows_at + up(places * 4);
    starts_at = factors_at + up(places * 4);
    shares_at = starts_at + up((places + 1) * 4);
    end = shares_at + up(bags * 4);
  }
};

// Which places have part in the gradients: their bags, and in the order of their ids. Work on places is cut
// into as many runs as there are threads, in which they are counted before they are put in their places.
class BagMembers {
 public:
  BagMembers(const EmbeddingBagBackward& op, ThreadPool& pool)
      : op_(op),
        pool_(pool),
        plan_(op.ids.shape[0], op.dout.shape[0], pool.size()),
        base_(op.workspace.as<std::byte>()),
        bag_of_(at<int32_t>(plan_.bag_of_at)) {
    const int64_t places = op.ids.shape[0], bags = op.dout.shape[0], rows = op.table.shape[0];
    const int32_t *ids = op.ids.as<int32_t>(), *offsets = op.offsets.as<int32_t>();
    each_run(places, [&](int64_t begin, int64_t end, int64_t run) {
      int64_t bag = std::upper_bound(offsets, offsets + bags + 1, begin) - offsets - 1;
      int32_t members = 0;
      for (int64_t i = begin; i < end; ++i) {
        while (bag < bags && offsets[bag + 1] <= i) ++bag;
        const bool has = bag >= 0 && bag < bags && ids[i] >= 0 && ids[i] < rows;
        bag_of_[i] = has ? static_cast<int32_t>(bag) : -1;
        members += static_cast<int32_t>(has);
      }
      counts(run)[0] = members;
    });
    count_ = places_of_runs();
  }

  int32_t bag_of(int64_t place) const { return bag_of_[place]; }  // -1: none

  void sort() {
    find_shares();
    auto* keys = at<uint64_t>(plan_.keys_at);
    each_run(op_.ids.shape[0], [&](int64_t begin, int64_t end, int64_t run) {
      int32_t to = counts(run)[0];
      for (int64_t i = begin; i < end; ++i) {
        if (bag_of_[i] < 0) continue;
        keys[to++] = static_cast<uint64_t>(op_.ids.as<int32_t>()[i]) << 32 | static_cast<uint64_t>(i);
      }
    });
    keys_ = sort_by_id(keys, at<uint64_t>(plan_.other_keys_at));
    const auto begins = [this](int64_t p) { return p == 0 || keys_[p] >> 32 != keys_[p - 1] >> 32; };
    each_run(count_, [&](int64_t begin, int64_t end, int64_t run) {
      int32_t met = 0;
      for (int64_t p = begin; p < end; ++p) met += static_cast<int32_t>(begins(p));
      counts(run)[0] = met;
    });
    met_ = places_of_runs();
    auto* starts = at<int32_t>(plan_.starts_at);
    each_run(count_, [&](int64_t begin, int64_t end, int64_t run) {
      int32_t row = counts(run)[0];
      for (int64_t p = begin; p < end; ++p) {
        const auto place = static_cast<int64_t>(keys_[p] & 0xffffffffu);
        if (begins(p)) starts[row++] = static_cast<int32_t>(p);
        at<int32_t>(plan_.rows_at)[p] = bag_of_[place];
        at<float>(plan_.factors_at)[p] = factor(place);
      }
    });
    starts[met_] = static_cast<int32_t>(count_);
  }

  int64_t met() const { return met_; }  // rows of the table
  int64_t id(int64_t row) const {
    return static_cast<int64_t>(keys_[at<int32_t>(plan_.starts_at)[row]] >> 32);
  }
  BagSum sum(int64_t row, bool add, float* out) const {
    const int32_t* starts = at<int32_t>(plan_.starts_at);
    const bool alike = !op_.weights.present() && !op_.mean;
    return {at<int32_t>(plan_.rows_at) + starts[row],
            alike ? nullptr : at<float>(plan_.factors_at) + starts[row],
            starts[row + 1] - starts[row],
            starts[met_] - starts[row],
            false,
            add,
            out};
  }

 private:
  template <class T>
  T* at(int64_t offset) const {
    return reinterpret_cast<T*>(base_ + offset);
  }
  int32_t* counts(int64_t run) const { return at<int32_t>(plan_.counts_at) + run * kDigitCount; }

  // body(begin, end, run) for each run of [0, count).
  template <class Body>
  void each_run(int64_t count, Body body) {
    const int64_t runs = pool_.size();
    pool_.parallel_for(runs, 1, [&](int64_t first, int64_t last, int) {
      for (int64_t run = first; run < last; ++run) body(count * run / runs, count * (run + 1) / runs, run);
    });
  }
  // Of each run's count, those of the runs before; returns all.
  int64_t places_of_runs() const {
    int32_t before = 0;
    for (int64_t run = 0; run < pool_.size(); ++run) before += std::exchange(counts(run)[0], before);
    return before;
  }

  // 1 / the rows of each bag.
  void find_shares() {
    if (!op_.mean) return;
    auto* shares = at<float>(plan_.shares_at);
    each_run(op_.dout.shape[0], [&](int64_t first, int64_t last, int64_t) {
      for (int64_t b = first; b < last; ++b) {
        const auto [begin, end] = bag_places(op_.offsets.as<int32_t>(), b, op_.ids.shape[0]);
        int64_t members = 0;
        for (int64_t i = begin; i < end; ++i) members += static_cast<int64_t>(bag_of_[i] >= 0);
        shares[b] = 1.0f / static_cast<float>(std::max<int64_t>(members, 1));
      }
    });
  }
  float factor(int64_t place) const {
    if (op_.weights.present()) return op_.weights.as<float>()[place];
    return op_.mean ? at<float>(plan_.shares_at)[bag_of_[place]] : 1.0f;
  }

  // Keys (id, place), in the places' order, sorted by id; returns where they are.
  const uint64_t* sort_by_id(uint64_t* keys, uint64_t* other) {
    for (int shift = 32; (op_.table.shape[0] - 1) >> (shift - 32) != 0; shift += kDigitBits) {
      const auto digit_of = [shift](uint64_t key) { return key >> shift & (kDigitCount - 1); };
      each_run(count_, [&](int64_t begin, int64_t end, int64_t run) {
        int32_t* own = counts(run);
        std::fill_n(own, kDigitCount, 0);
        for (int64_t i = begin; i < end; ++i) ++own[digit_of(keys[i])];
      });
      int32_t before = 0;
      for (int64_t d = 0; d < kDigitCount; ++d) {
        for (int64_t run = 0; run < pool_.size(); ++run) before += std::exchange(counts(run)[d], before);
      }
      each_run(count_, [&](int64_t begin, int64_t end, int64_t run) {
        int32_t* own = counts(run);
        for (int64_t i = begin; i < end; ++i) other[own[digit_of(keys[i])]++] = keys[i];
      });
      std::swap(keys, other);
    }
    return keys;
  }

  const EmbeddingBagBackward& op_;
  ThreadPool& pool_;
  BagGradientPlan plan_;
  std::byte* base_;
  int32_t* bag_of_;
  const uint64_t* keys_ = nullptr;
  int64_t count_ = 0, met_ = 0;
};

}  // namespace

void CpuBackend::do_embedding_bag(const EmbeddingBag& op) {
  const EmbeddingBagKernels& kernels = choose(kEmbeddingBagGeneric, kEmbeddingBagAvx2, kEmbeddingBagAvx512);
  const BagTable table = bag_table(op.table);
  const int64_t bags = op.out.shape[0], places = op.ids.shape[0];
  pool_.parallel_for(bags, bag_grain(bags, places, table.columns), [&](int64_t begin, int64_t end, int) {
    for (int64_t b = begin; b < end; ++b) {
      const auto [first, last] = bag_places(op.offsets.as<int32_t>(), b, places);
      kernels.sum(table, {op.ids.as<int32_t>() + first,
                          op.weights.present() ? op.weights.as<float>() + first : nullptr, last - first,
                          places - first, op.mean, false, op.out.as<float>() + b * op.out.stride[0]});
    }
  });
}

size_t CpuBackend::workspace_bytes(const EmbeddingBagBackward& op) const {
  return static_cast<size_t>(BagGradientPlan(op.ids.shape[0], op.dout.shape[0], pool_.size()).end);
}

void CpuBackend::do_embedding_bag_backward(const EmbeddingBagBackward& op) {
  const EmbeddingBagKernels& kernels = choose(kEmbeddingBagGeneric, kEmbeddingBagAvx2, kEmbeddingBagAvx512);
  const BagTable table = bag_table(op.table), dout = bag_table(op.dout);
  const int64_t places = op.ids.shape[0], columns = table.columns;
  BagMembers members(op, pool_);
  if (op.dweights.present()) {
    pool_.parallel_for(places, row_grain(columns), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int32_t bag = members.bag_of(i);
        op.dweights.as<float>()[i] = bag < 0 ? 0.0f
                                             : kernels.dot(table, op.ids.as<int32_t>()[i],
                                                           op.dout.as<float>() + bag * op.dout.stride[0]);
      }
    });
  }
  if (!op.dtable.present() && !op.drows.present()) return;
  members.sort();
  const int64_t met = members.met();
  pool_.parallel_for(met, bag_grain(met, places, columns), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t id = members.id(row);
      if (op.dtable.present())
        kernels.sum(dout, members.sum(row, true, op.dtable.as<float>() + id * columns));
      if (!op.drows.present()) continue;
      kernels.sum(dout, members.sum(row, false, op.drows.as<float>() + row * columns));
      op.row_ids.as<int32_t>()[row] = static_cast<int32_t>(id);
    }
  });
  if (op.row_ids.present()) std::fill(op.row_ids.as<int32_t>() + met, op.row_ids.as<int32_t>() + places, -1);
}

}  // namespace qiao::cpu
