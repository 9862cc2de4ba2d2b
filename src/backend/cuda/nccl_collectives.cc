// All of it is given to the backend's stream and nothing is allocated after the beginning, so that a decoding
// step's sums lie in its graph. A sum of few numbers: each rank sends its own to all and adds up what came.
// Of many, and more than two ranks: each adds up a slice, and the slices go round; the same bits, for every
// number is summed in the same order (collectives.h).
#include "backend/cuda/nccl_collectives.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace qiao::cuda {
namespace {

constexpr int64_t kPieceFloats = int64_t{1} << 20;  // summed at a time; a buffer of so many for each rank
constexpr int64_t kFewFloats = int64_t{1} << 15;    // up to here a message costs its latency
constexpr int64_t kSliceUnit = 64;                  // floats: slices begin at 256 bytes
constexpr int64_t kRowsAtOnce = 64;                 // of a gather, in one group of NCCL's

class NcclCollectives final : public Collectives {
 public:
  NcclCollectives(CudaBackend& backend, Communicator& communicator, const Nccl& nccl)
      : backend_(backend), communicator_(communicator), nccl_(nccl) {
    NcclId id{};
    if (rank() == 0) check(nccl_.get_unique_id(&id), "ncclGetUniqueId");
    for (int other = 1; rank() == 0 && other < size(); ++other)
      communicator_.send_values(other, std::span<const NcclId>(&id, 1));
    if (rank() > 0) communicator_.receive_values(0, std::span(&id, 1));
    static_cast<void>(backend_.stream().handle());  // makes its device this thread's
    check(nccl_.init_rank(&group_, size(), id, rank()), "ncclCommInitRank");
    addends_ = backend_.allocate(static_cast<size_t>(kPieceFloats * size()) * sizeof(float));
  }
  // Of a run that ended badly another rank may be gone, for which destroying would wait.
  ~NcclCollectives() override {
    static_cast<void>(cudaStreamSynchronize(backend_.stream().raw()));
    static_cast<void>(nccl_.abort(group_));
  }

  int rank() const override { return communicator_.rank(); }
  int size() const override { return communicator_.size(); }
  bool can_be_repeated() const override { return true; }

  void all_reduce_sum(const Tensor& values) override {
    each_piece(values, [&](float* piece, int64_t count) {
      size() == 2 || count <= kFewFloats ? add_all(piece, count) : add_slices(piece, count);
    });
  }

  void reduce_sum(const Tensor& values, int root) override {
    each_piece(values, [&](float* piece, int64_t count) {
      together([&] {
        if (rank() != root) return send(piece, count, root);
        each_other([&](int other) { receive(addend(other), count, other); });
      });
      if (rank() == root) add_up(piece, count);
    });
  }

  void broadcast(const Tensor& values, int root, const Tensor& to) override {
    QIAO_ASSERT(to.dtype == DType::kF32 && to.contiguous());
    QIAO_ASSERT(rank() != root || (values.contiguous() && values.elements() == to.elements()));
    together([&] {
      if (rank() != root) return receive(to.as<float>(), to.elements(), root);
      each_other([&](int other) { send(values.as<float>(), to.elements(), other); });
    });
    if (rank() == root && values.data != to.data) copy(to.as<float>(), values.as<float>(), to.elements());
  }

  void gather_columns(const Tensor& own, std::span<const int64_t> columns, const Tensor& all) override {
    const int64_t rows = own.shape[0];
    for (int64_t begin = 0; begin < rows; begin += kRowsAtOnce) {
      const int64_t end = std::min(rows, begin + kRowsAtOnce);
      together([&] {
        for (int64_t row = begin; row < end; ++row) {
          if (rank() > 0) {
            const int64_t count = columns[static_cast<size_t>(rank())];
            send(own.as<float>() + row * count, count, 0);
            continue;
          }
          int64_t first = columns[0];
          for (int other = 1; other < size(); ++other) {
            const int64_t count = columns[static_cast<size_t>(other)];
            receive(all.as<float>() + row * all.stride[0] + first, count, other);
            first += count;
          }
        }
      });
    }
  }

  void gather(const Tensor& own, std::span<const int64_t> counts, int root, const Tensor& all) override {
    const int64_t count = counts[static_cast<size_t>(rank())];
    together([&] {
      if (rank() != root) return send(own.as<float>(), count, root);
      each_share(all, counts,
                 [&](int other, float* share, int64_t length) { receive(share, length, other); });
    });
    if (rank() == root) copy(own_share(all, counts), own.as<float>(), count);
  }

  void scatter(const Tensor& all, std::span<const int64_t> counts, int root, const Tensor& own) override {
    const int64_t count = counts[static_cast<size_t>(rank())];
    together([&] {
      if (rank() != root) return receive(own.as<float>(), count, root);
      each_share(all, counts, [&](int other, float* share, int64_t length) { send(share, length, other); });
    });
    if (rank() == root) copy(own.as<float>(), own_share(all, counts), count);
  }

 private:
  // visit(rank, its numbers in `all`, how many) for the other ranks.
  template <class Visit>
  void each_share(const Tensor& all, std::span<const int64_t> counts, Visit visit) const {
    float* first = all.as<float>();
    for (int other = 0; other < size(); ++other) {
      const int64_t count = counts[static_cast<size_t>(other)];
      if (other != rank()) visit(other, first, count);
      first += count;
    }
  }
  float* own_share(const Tensor& all, std::span<const int64_t> counts) const {
    const std::span<const int64_t> before = counts.first(static_cast<size_t>(rank()));
    return all.as<float>() + std::accumulate(before.begin(), before.end(), int64_t{0});
  }
  void copy(float* to, const float* from, int64_t count) {
    if (count == 0) return;
    QIAO_CUDA(cudaMemcpyAsync(to, from, static_cast<size_t>(count) * sizeof(float), cudaMemcpyDeviceToDevice,
                              backend_.stream().handle()));
  }

  void check(int result, const char* call) const {
    if (result == kNcclSuccess) return;
    throw_error(ErrorKind::kUnavailable, "cuda: {} of {} ranks: {}", call, size(),
                nccl_.error_string(result));
  }
  void send(const float* from, int64_t count, int to) {
    if (count == 0) return;
    check(nccl_.send(from, static_cast<size_t>(count), kNcclFloat, to, group_, backend_.stream().handle()),
          "ncclSend");
  }
  void receive(float* to, int64_t count, int from) {
    if (count == 0) return;
    check(nccl_.receive(to, static_cast<size_t>(count), kNcclFloat, from, group_, backend_.stream().handle()),
          "ncclRecv");
  }
  template <class Transfers>
  void together(Transfers transfers) {
    check(nccl_.group_start(), "ncclGroupStart");
    transfers();
    check(nccl_.group_end(), "ncclGroupEnd");
  }

  // body(begin, count) for pieces of `values`.
  template <class Body>
  static void each_piece(const Tensor& values, Body body) {
    QIAO_ASSERT(values.dtype == DType::kF32 && values.contiguous());
    for (int64_t first = 0; first < values.elements(); first += kPieceFloats)
      body(values.as<float>() + first, std::min(kPieceFloats, values.elements() - first));
  }

  float* addend(int rank) const { return static_cast<float*>(addends_.data()) + kPieceFloats * rank; }

  // The sum of all ranks' [count], this one's at `own` and the others' in the addends, to `own`.
  void add_up(float* own, int64_t count) {
    const auto at = [&](int rank) { return rank == this->rank() ? own : addend(rank); };
    for (int distance = 1; distance < size(); distance *= 2) {
      for (int left = 0; left + distance < size(); left += 2 * distance)
        backend_.accumulate(
            {Tensor(at(left + distance), DType::kF32, {count}), Tensor(at(left), DType::kF32, {count})});
    }
    if (at(0) != own) copy(own, at(0), count);
  }

  template <class Visit>
  void each_other(Visit visit) {
    for (int other = 0; other < size(); ++other)
      if (other != rank()) visit(other);
  }

  void add_all(float* values, int64_t count) {
    together([&] {
      each_other([&](int other) {
        send(values, count, other);
        receive(addend(other), count, other);
      });
    });
    add_up(values, count);
  }

  void add_slices(float* values, int64_t count) {
    const int64_t units = (count + kSliceUnit - 1) / kSliceUnit;
    const auto begin = [&](int rank) { return std::min(count, units * rank / size() * kSliceUnit); };
    const auto length = [&](int rank) { return begin(rank + 1) - begin(rank); };
    float* const own = values + begin(rank());
    together([&] {
      each_other([&](int other) {
        send(values + begin(other), length(other), other);
        receive(addend(other), length(rank()), other);
      });
    });
    add_up(own, length(rank()));
    together([&] {
      each_other([&](int other) {
        send(own, length(rank()), other);
        receive(values + begin(other), length(other), other);
      });
    });
  }

  CudaBackend& backend_;
  Communicator& communicator_;
  const Nccl& nccl_;
  NcclGroup* group_ = nullptr;
  Buffer addends_;  // kPieceFloats of each rank
};

}  // namespace

std::unique_ptr<Collectives> make_nccl_collectives(CudaBackend& backend, Communicator& communicator,
                                                   const Nccl& nccl) {
  return std::make_unique<NcclCollectives>(backend, communicator, nccl);
}

}  // namespace qiao::cuda
