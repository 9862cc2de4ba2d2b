#include "train/ranks.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace qiao::train {
namespace {

constexpr int64_t kPieceFloats = int64_t{1} << 18;  // sent at a time

// body(first, count) for pieces of `count` numbers.
template <class Body>
void each_piece(int64_t count, Body body) {
  for (int64_t first = 0; first < count; first += kPieceFloats)
    body(first, std::min(kPieceFloats, count - first));
}

float* at(const Tensor& tensor, int64_t first) { return tensor.as<float>() + first; }

}  // namespace

std::vector<int64_t> deal_out(std::span<const int64_t> counts, int64_t shares) {
  std::vector<size_t> order(counts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, [&](size_t a, size_t b) { return counts[a] > counts[b]; });
  std::vector<int64_t> owners(counts.size()), loads(static_cast<size_t>(shares));
  for (const size_t tensor : order) {
    const auto least = std::ranges::min_element(loads);
    owners[tensor] = least - loads.begin();
    *least += counts[tensor];
  }
  return owners;
}

Ranks::Ranks(Communicator& communicator, int64_t virtual_ranks)
    : communicator_(communicator), shares_(virtual_ranks) {
  if (virtual_ranks % communicator.size() != 0) {
    throw_error(
        ErrorKind::kInvalidInput,
        "{} processes were started; 1, 2 or 4 were expected, to which {} virtual ranks can be dealt out",
        communicator.size(), virtual_ranks);
  }
}

void Ranks::share(Parameters& parameters) {
  std::vector<int64_t> counts;
  for (const Parameters::Named& tensor : parameters.tensors()) counts.push_back(tensor.count);
  owners_ = deal_out(counts, shares_);
  std::vector<bool> here;
  for (const int64_t owner : owners_) here.push_back(rank_of(owner) == communicator_.rank());
  parameters.share(std::move(here), own_shares());
}

void Ranks::agree(std::span<double> values, std::span<const int64_t> shares) const {
  if (is_alone() || values.empty()) return;
  if (!leads()) {
    communicator_.send_values(0, std::span<const double>(values));
    communicator_.receive_values(0, values);
    return;
  }
  std::vector<double> theirs(values.size());
  for (int rank = 1; rank < communicator_.size(); ++rank) {
    communicator_.receive_values(rank, std::span(theirs));
    for (size_t i = 0; i < values.size(); ++i)
      if (rank_of(shares[i]) == rank) values[i] = theirs[i];
  }
  for (int rank = 1; rank < communicator_.size(); ++rank)
    communicator_.send_values(rank, std::span<const double>(values));
}

void Ranks::agree_by_share(std::span<double> values) const {
  const auto each = std::ssize(values) / shares_;
  std::vector<int64_t> shares(values.size());
  for (int64_t i = 0; i < std::ssize(values); ++i) shares[static_cast<size_t>(i)] = i / each;
  agree(values, shares);
}

bool Ranks::any(bool here) const {
  std::vector<double> values(static_cast<size_t>(shares_), here ? 1.0 : 0.0);
  agree_by_share(values);
  return std::ranges::any_of(values, [](double value) { return value != 0; });
}

double Ranks::fold(std::span<double> values) const {
  agree_by_share(values);
  return sum_of_shares(values);
}

// A tree around the owner: at distance d a rank sends to, or adds from, the one whose number differs in that
// bit. Whatever the owner, the pairs that meet are 0 with 1 and 2 with 3, then both sums; a + b is b + a.
void Ranks::reduce(Backend& backend, Parameters& parameters) const {
  if (is_alone()) return;
  const Buffer scratch = backend.allocate(static_cast<size_t>(kPieceFloats) * sizeof(float));
  std::vector<float> host(static_cast<size_t>(kPieceFloats));
  const int own = communicator_.rank();
  for (size_t i = 0; i < owners_.size(); ++i) {
    const Parameters::Named& tensor = parameters.tensors()[i];
    const int place = own ^ rank_of(owners_[i]);
    for (int64_t run = 0; run < tensor.runs; ++run) {
      const Tensor gradient = parameters.gradient(tensor, run);
      each_piece(gradient.elements(), [&](int64_t first, int64_t count) {
        const std::span<float> piece(host.data(), static_cast<size_t>(count));
        for (int distance = 1; distance < communicator_.size(); distance *= 2) {
          if ((place & distance) != 0) {
            backend.download(piece.data(), at(gradient, first), piece.size_bytes());
            communicator_.send_values(own ^ distance, std::span<const float>(piece));
            break;
          }
          communicator_.receive_values(own ^ distance, piece);
          backend.upload(scratch.data(), piece.data(), piece.size_bytes());
          backend.accumulate({Tensor(scratch.data(), DType::kF32, {count}),
                              Tensor(at(gradient, first), DType::kF32, {count})});
        }
      });
    }
  }
}

void Ranks::publish(Backend& backend, Parameters& parameters) const {
  if (is_alone()) return parameters.rewrite();
  std::vector<float> host(static_cast<size_t>(kPieceFloats));
  parameters.rewrite([&](size_t i, int64_t run, const Tensor& to) {
    const Parameters::Named& tensor = parameters.tensors()[i];
    const int owner = rank_of(owners_[i]);
    each_piece(to.elements(), [&](int64_t first, int64_t count) {
      const std::span<float> piece(host.data(), static_cast<size_t>(count));
      if (owner == communicator_.rank()) {
        backend.download(piece.data(), at(parameters.master(tensor, run), first), piece.size_bytes());
        for (int other = 0; other < communicator_.size(); ++other)
          if (other != owner) communicator_.send_values(other, std::span<const float>(piece));
      } else {
        communicator_.receive_values(owner, piece);
      }
      backend.upload(at(to, first), piece.data(), piece.size_bytes());
    });
  });
}

void Ranks::collect(std::span<std::string> texts) const {
  for (size_t share = 0; share < texts.size(); ++share) {
    const int rank = rank_of(static_cast<int64_t>(share));
    const std::span<char> text(texts[share]);
    if (rank == 0) continue;
    if (leads()) communicator_.receive_values(rank, text);
    if (rank == communicator_.rank()) communicator_.send_values(0, std::span<const char>(text));
  }
}

}  // namespace qiao::train
