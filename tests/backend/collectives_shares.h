// Shares of all ranks, brought to one and back: the contract of Collectives::gather and scatter, of any chip.
#pragma once

#include <gtest/gtest.h>

#include <random>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/collectives.h"

namespace qiao::testing {

// Called by all ranks, of which rank r has counts[r] numbers.
inline void expect_shares_come_and_go(Backend& backend, Collectives& ranks, std::span<const int64_t> counts) {
  std::vector<float> own, expected;
  for (int rank = 0; rank < ranks.size(); ++rank) {
    std::mt19937 random(static_cast<uint32_t>(rank) + 1);
    std::normal_distribution<float> normal;
    std::vector<float> share(static_cast<size_t>(counts[static_cast<size_t>(rank)]));
    for (float& value : share) value = normal(random);
    expected.insert(expected.end(), share.begin(), share.end());
    if (rank == ranks.rank()) own = share;
  }
  const size_t bytes = own.size() * sizeof(float);
  for (int root = 0; root < ranks.size(); ++root) {
    const Buffer part = backend.allocate(bytes), back = backend.allocate(bytes),
                 whole = backend.allocate(expected.size() * sizeof(float));
    backend.upload(part.data(), own.data(), bytes);
    const Tensor all =
        ranks.rank() == root ? Tensor(whole.data(), DType::kF32, {std::ssize(expected)}) : Tensor();
    ranks.gather(Tensor(part.data(), DType::kF32, {std::ssize(own)}), counts, root, all);
    if (ranks.rank() == root) {
      std::vector<float> got(expected.size());
      backend.download(got.data(), whole.data(), got.size() * sizeof(float));
      EXPECT_EQ(got, expected) << root;
    }
    ranks.scatter(all, counts, root, Tensor(back.data(), DType::kF32, {std::ssize(own)}));
    std::vector<float> got(own.size());
    backend.download(got.data(), back.data(), bytes);
    EXPECT_EQ(got, own) << root;
  }
}

}  // namespace qiao::testing
