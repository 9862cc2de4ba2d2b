// A sum goes one of two ways, whose bits are the same: every rank gets all addends and adds them; or, of more
// than two ranks and where that is many bytes, each adds a slice for all, and the slices go round. A sum for
// one rank goes up a tree.
#include "backend/host_collectives.h"

#include <algorithm>
#include <vector>

#include "base/error.h"

namespace qiao {
namespace {

constexpr int64_t kPieceFloats = int64_t{1} << 18;  // summed at a time: what host memory is kept for
constexpr int64_t kFewFloats = int64_t{1} << 13;    // a message of those costs little more than an empty one

class HostCollectives final : public Collectives {
 public:
  HostCollectives(Backend& backend, Communicator& communicator)
      : backend_(backend), communicator_(communicator), addends_(static_cast<size_t>(communicator.size())) {}

  int rank() const override { return communicator_.rank(); }
  int size() const override { return communicator_.size(); }
  bool can_be_repeated() const override { return false; }

  void all_reduce_sum(const Tensor& values) override {
    each_piece(values, [&](float* piece, int64_t count) {
      backend_.download(addend(rank(), count).data(), piece, static_cast<size_t>(count) * sizeof(float));
      size() == 2 || count <= kFewFloats ? add_all(count) : add_slices(count);
      backend_.upload(piece, sum_.data(), static_cast<size_t>(count) * sizeof(float));
    });
  }

  // Of two neighbouring groups whose sums meet, one sends: the sum of a group lies with `root` where that is
  // one of them, else with its first. a + b is b + a.
  void reduce_sum(const Tensor& values, int root) override {
    const auto holder = [&](int first, int count) {
      return root >= first && root < first + count ? root : first;
    };
    each_piece(values, [&](float* piece, int64_t count) {
      const std::span<float> own = addend(rank(), count), more = addend((rank() + 1) % size(), count);
      backend_.download(own.data(), piece, own.size_bytes());
      for (int distance = 1; distance < size(); distance *= 2) {
        const int left = rank() / (2 * distance) * (2 * distance), right = left + distance;
        if (right >= size()) continue;
        const int into = holder(left, 2 * distance);
        const int from = into < right ? holder(right, distance) : left;
        if (rank() == into) {
          communicator_.receive_values(from, more);
          for (size_t i = 0; i < own.size(); ++i) own[i] += more[i];
        } else if (rank() == from) {
          communicator_.send_values(into, std::span<const float>(own));
        }
      }
      if (rank() == root) backend_.upload(piece, own.data(), own.size_bytes());
    });
  }

  void broadcast(const Tensor& values, int root, const Tensor& to) override {
    QIAO_ASSERT(rank() != root || (values.contiguous() && values.elements() == to.elements()));
    each_piece(to, [&](float* piece, int64_t count) {
      const std::span<float> host = addend(rank(), count);
      if (rank() == root) {
        backend_.download(host.data(), values.as<float>() + (piece - to.as<float>()), host.size_bytes());
        for (int other = 0; other < size(); ++other)
          if (other != root) communicator_.send_values(other, std::span<const float>(host));
      } else {
        communicator_.receive_values(root, host);
      }
      if (rank() != root || values.data != to.data) backend_.upload(piece, host.data(), host.size_bytes());
    });
  }

  void gather_columns(const Tensor& own, std::span<const int64_t> columns, const Tensor& all) override {
    const int64_t rows = own.shape[0];
    if (rank() > 0) {
      const std::span<float> part = addend(0, own.elements());
      backend_.download(part.data(), own.data, part.size_bytes());
      communicator_.send_values(0, std::span<const float>(part));
      return;
    }
    int64_t first = columns[0];
    for (int other = 1; other < size(); ++other) {
      const int64_t count = columns[static_cast<size_t>(other)];
      const std::span<float> part = addend(0, rows * count);
      communicator_.receive_values(other, part);
      for (int64_t row = 0; row < rows; ++row) {
        const Tensor place = all.slice(row, 1).narrow(1, first, count);
        backend_.upload(place.data, part.data() + row * count, static_cast<size_t>(count) * sizeof(float));
      }
      first += count;
    }
  }

  void gather(const Tensor& own, std::span<const int64_t> counts, int root, const Tensor& all) override {
    if (rank() != root) return send_numbers(own.as<float>(), counts[static_cast<size_t>(rank())], root);
    each_share(all, counts, [&](int other, const Tensor& share) {
      if (other == root) return copy(share.as<float>(), own.as<float>(), share.elements());
      receive_numbers(share.as<float>(), share.elements(), other);
    });
  }

  void scatter(const Tensor& all, std::span<const int64_t> counts, int root, const Tensor& own) override {
    if (rank() != root) return receive_numbers(own.as<float>(), counts[static_cast<size_t>(rank())], root);
    each_share(all, counts, [&](int other, const Tensor& share) {
      if (other == root) return copy(own.as<float>(), share.as<float>(), share.elements());
      send_numbers(share.as<float>(), share.elements(), other);
    });
  }

 private:
  // visit(rank, its numbers in `all`) for all ranks that have some.
  template <class Visit>
  static void each_share(const Tensor& all, std::span<const int64_t> counts, Visit visit) {
    for (int64_t rank = 0, first = 0; rank < std::ssize(counts); ++rank) {
      const int64_t count = counts[static_cast<size_t>(rank)];
      if (count > 0) visit(static_cast<int>(rank), all.slice(first, count));
      first += count;
    }
  }

  void send_numbers(const float* from, int64_t count, int to) {
    each_piece(numbers(const_cast<float*>(from), count), [&](const float* piece, int64_t length) {
      const std::span<float> host = addend(0, length);
      backend_.download(host.data(), piece, host.size_bytes());
      communicator_.send_values(to, std::span<const float>(host));
    });
  }
  void receive_numbers(float* to, int64_t count, int from) {
    each_piece(numbers(to, count), [&](float* piece, int64_t length) {
      const std::span<float> host = addend(0, length);
      communicator_.receive_values(from, host);
      backend_.upload(piece, host.data(), host.size_bytes());
    });
  }
  void copy(float* to, const float* from, int64_t count) {
    each_piece(numbers(to, count), [&](float* piece, int64_t length) {
      const std::span<float> host = addend(0, length);
      backend_.download(host.data(), from + (piece - to), host.size_bytes());
      backend_.upload(piece, host.data(), host.size_bytes());
    });
  }
  static Tensor numbers(float* first, int64_t count) { return {first, DType::kF32, {count}}; }

  // body(begin, count) for pieces of `values`.
  template <class Body>
  static void each_piece(const Tensor& values, Body body) {
    QIAO_ASSERT(values.dtype == DType::kF32 && values.contiguous());
    for (int64_t first = 0; first < values.elements(); first += kPieceFloats)
      body(values.as<float>() + first, std::min(kPieceFloats, values.elements() - first));
  }

  std::span<float> addend(int rank, int64_t count) {
    std::vector<float>& memory = addends_[static_cast<size_t>(rank)];
    if (std::ssize(memory) < count) memory.resize(static_cast<size_t>(count));
    return std::span(memory).first(static_cast<size_t>(count));
  }

  // Meets every other rank once, all at the same time: in round s, ranks whose numbers add up to s (mod n).
  template <class Meet>
  void meet_each(Meet meet) {
    for (int round = 0; round < size(); ++round) {
      const int other = (round - rank() + size()) % size();
      if (other != rank()) meet(other);
    }
  }

  // sum_[first, first + count) of the addends' [0, count), in the order of the contract. The addends are
  // lost.
  void add_up(int64_t first, int64_t count, int64_t own_first) {
    const auto at = [&](int rank) {
      return addends_[static_cast<size_t>(rank)].data() + (rank == this->rank() ? own_first : 0);
    };
    for (int distance = 1; distance < size(); distance *= 2) {
      for (int left = 0; left + distance < size(); left += 2 * distance) {
        float* const sum = at(left);
        const float* const more = at(left + distance);
        for (int64_t i = 0; i < count; ++i) sum[i] += more[i];
      }
    }
    if (std::ssize(sum_) < first + count) sum_.resize(static_cast<size_t>(first + count));
    std::copy_n(at(0), count, sum_.data() + first);
  }

  void add_all(int64_t count) {
    const std::span<const float> own = addend(rank(), count);
    meet_each([&](int other) {
      communicator_.exchange(other, std::as_bytes(own), std::as_writable_bytes(addend(other, count)));
    });
    add_up(0, count, 0);
  }

  void add_slices(int64_t count) {
    const auto begin = [&](int rank) { return count * rank / size(); };
    const auto slice = [&](int rank) { return begin(rank + 1) - begin(rank); };
    const std::span<const float> own = addend(rank(), count);
    if (std::ssize(sum_) < count) sum_.resize(static_cast<size_t>(count));
    const auto part_of = [&](auto values, int rank) {
      return values.subspan(static_cast<size_t>(begin(rank)), static_cast<size_t>(slice(rank)));
    };
    meet_each([&](int other) {
      communicator_.exchange(other, std::as_bytes(part_of(own, other)),
                             std::as_writable_bytes(addend(other, slice(rank()))));
    });
    add_up(begin(rank()), slice(rank()), begin(rank()));
    meet_each([&](int other) {
      communicator_.exchange(other, std::as_bytes(part_of(std::span<const float>(sum_), rank())),
                             std::as_writable_bytes(part_of(std::span<float>(sum_), other)));
    });
  }

  Backend& backend_;
  Communicator& communicator_;
  std::vector<std::vector<float>> addends_;  // by rank
  std::vector<float> sum_;
};

}  // namespace

std::unique_ptr<Collectives> make_host_collectives(Backend& backend, Communicator& communicator) {
  return std::make_unique<HostCollectives>(backend, communicator);
}

}  // namespace qiao
