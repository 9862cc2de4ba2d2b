// Sums over ranks have one order, on all of them, whatever their number and the size of what is summed.
#include "backend/collectives.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <thread>

#include "backend/backend.h"
#include "backend/collectives_shares.h"
#include "parallel/communicator.h"
#include "support/expect_error.h"

namespace qiao {
namespace {

void in_ranks(int size, const std::function<void(Backend&, Communicator&)>& body) {
  auto communicators = make_thread_communicators(size, 60);
  std::vector<std::thread> threads;
  for (auto& communicator : communicators) {
    threads.emplace_back([&body, own = std::move(communicator)] {
      const auto backend = make_backend("cpu", {.threads = 1});
      body(*backend, *own);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

std::vector<float> addend(int rank, int64_t count) {
  std::mt19937 random(static_cast<uint32_t>(rank) + 1);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random) * std::exp2(static_cast<float>(random() % 12));
  return values;
}

// The contract in its own words: neighbours first.
float sum_of(const std::vector<std::vector<float>>& addends, size_t first, size_t count, size_t at) {
  if (count == 1) return addends[first][at];
  size_t left = 1;
  while (2 * left < count) left *= 2;
  return sum_of(addends, first, left, at) + sum_of(addends, first + left, count - left, at);
}

std::vector<float> summed(Backend& backend, Collectives& ranks, const std::vector<float>& own) {
  const Buffer memory = backend.allocate(own.size() * sizeof(float));
  backend.upload(memory.data(), own.data(), own.size() * sizeof(float));
  ranks.all_reduce_sum(Tensor(memory.data(), DType::kF32, {std::ssize(own)}));
  std::vector<float> sum(own.size());
  backend.download(sum.data(), memory.data(), sum.size() * sizeof(float));
  return sum;
}

// What each rank has, and the sum in the stated order.
struct Addends {
  std::vector<std::vector<float>> of_rank;
  std::vector<float> sum;

  Addends(int size, int64_t count) : sum(static_cast<size_t>(count)) {
    for (int rank = 0; rank < size; ++rank) of_rank.push_back(addend(rank, count));
    for (size_t i = 0; i < sum.size(); ++i) sum[i] = sum_of(of_rank, 0, static_cast<size_t>(size), i);
  }
};

TEST(CollectivesTest, SumsAreInTheStatedOrderOnEveryRank) {
  for (const int size : {2, 3, 4, 5, 8}) {
    for (const int64_t count : {1, 7, 576, 8192, 8193, 300001}) {
      const Addends addends(size, count);
      const std::vector<float>& expected = addends.sum;
      in_ranks(size, [&](Backend& backend, Communicator& communicator) {
        const auto ranks = backend.make_collectives(communicator);
        EXPECT_EQ(ranks->size(), size);
        const auto sum = summed(backend, *ranks, addends.of_rank[static_cast<size_t>(ranks->rank())]);
        EXPECT_EQ(std::memcmp(sum.data(), expected.data(), expected.size() * sizeof(float)), 0)
            << count << " numbers on rank " << ranks->rank() << " of " << size;
        communicator.finish();
      });
    }
  }
}

TEST(CollectivesTest, ASumForOneRankIsTheSameBits) {
  for (const int size : {2, 3, 4, 5, 8}) {
    for (const int64_t count : {1, 577, 300001}) {
      const Addends addends(size, count);
      const std::vector<float>& expected = addends.sum;
      in_ranks(size, [&](Backend& backend, Communicator& communicator) {
        const auto ranks = backend.make_collectives(communicator);
        const std::vector<float>& own = addends.of_rank[static_cast<size_t>(ranks->rank())];
        for (int root = 0; root < size; ++root) {
          const Buffer memory = backend.allocate(own.size() * sizeof(float));
          backend.upload(memory.data(), own.data(), own.size() * sizeof(float));
          ranks->reduce_sum(Tensor(memory.data(), DType::kF32, {count}), root);
          if (root != ranks->rank()) continue;
          std::vector<float> sum(own.size());
          backend.download(sum.data(), memory.data(), sum.size() * sizeof(float));
          EXPECT_EQ(std::memcmp(sum.data(), expected.data(), expected.size() * sizeof(float)), 0)
              << count << " numbers for rank " << root << " of " << size;
        }
        communicator.finish();
      });
    }
  }
}

TEST(CollectivesTest, WhatOneHasAllHave) {
  constexpr int64_t kCount = 300001;
  in_ranks(3, [&](Backend& backend, Communicator& communicator) {
    const auto ranks = backend.make_collectives(communicator);
    const auto own = addend(ranks->rank(), kCount);
    for (int root = 0; root < 3; ++root) {
      const auto expected = addend(root, kCount);
      const Buffer from = backend.allocate(own.size() * sizeof(float)),
                   to = backend.allocate(own.size() * sizeof(float));
      backend.upload(from.data(), own.data(), own.size() * sizeof(float));
      const Tensor values(from.data(), DType::kF32, {kCount}), all(to.data(), DType::kF32, {kCount});
      for (const Tensor& into : {all, values}) {  // and in its place
        ranks->broadcast(root == ranks->rank() ? values : into, root, into);
        std::vector<float> got(own.size());
        backend.download(got.data(), into.data, got.size() * sizeof(float));
        EXPECT_EQ(got, expected) << "of rank " << root;
      }
    }
    communicator.finish();
  });
}

TEST(CollectivesTest, OrderIsSeen) {
  const std::vector<std::vector<float>> addends = {{1e8f}, {1.0f}, {1.0f}, {-1e8f}};
  EXPECT_EQ(sum_of(addends, 0, 4, 0), 0.0f);  // (1e8 + 1) + (1 - 1e8)
  in_ranks(4, [&](Backend& backend, Communicator& communicator) {
    const auto ranks = backend.make_collectives(communicator);
    EXPECT_EQ(summed(backend, *ranks, addends[static_cast<size_t>(ranks->rank())])[0], 0.0f);
    communicator.finish();
  });
}

TEST(CollectivesTest, ErrorIsWithinItsBound) {
  constexpr int64_t kCount = 1000;
  std::vector<std::vector<float>> addends;
  for (int rank = 0; rank < 4; ++rank) addends.push_back(addend(rank, kCount));
  in_ranks(4, [&](Backend& backend, Communicator& communicator) {
    const auto ranks = backend.make_collectives(communicator);
    const auto sum = summed(backend, *ranks, addends[static_cast<size_t>(ranks->rank())]);
    for (size_t i = 0; i < sum.size(); ++i) {
      double exact = 0, absolute = 0;
      for (const auto& values : addends) {
        exact += values[i];
        absolute += std::abs(values[i]);
      }
      constexpr double kUnit = 0x1p-24, kGamma = 2 * kUnit / (1 - 2 * kUnit);  // two additions deep
      EXPECT_TRUE(std::abs(sum[i] - exact) <= kGamma * absolute) << i;
    }
    communicator.finish();
  });
}

TEST(CollectivesTest, ColumnsMeetOnTheFirstRank) {
  const std::vector<int64_t> columns = {3, 1, 2};
  in_ranks(3, [&](Backend& backend, Communicator& communicator) {
    const auto ranks = backend.make_collectives(communicator);
    const auto rank = static_cast<size_t>(ranks->rank());
    std::vector<float> own, expected;
    for (int row = 0; row < 4; ++row) {
      for (int64_t i = 0; i < columns[rank]; ++i)
        own.push_back(static_cast<float>(100 * row + 10 * ranks->rank() + static_cast<int>(i)));
      for (int r = 0; r < 3; ++r)
        for (int64_t i = 0; i < columns[static_cast<size_t>(r)]; ++i)
          expected.push_back(static_cast<float>(100 * row + 10 * r + static_cast<int>(i)));
    }
    const Buffer part = backend.allocate(own.size() * sizeof(float)),
                 whole = backend.allocate(24 * sizeof(float));
    backend.upload(part.data(), own.data(), own.size() * sizeof(float));
    const Tensor all(whole.data(), DType::kF32, {4, 6});
    if (rank == 0) {
      std::vector<float> first(24, -1.0f);  // its own part is there before
      for (size_t row = 0; row < 4; ++row) std::copy_n(own.data() + 3 * row, 3, first.data() + 6 * row);
      backend.upload(whole.data(), first.data(), 24 * sizeof(float));
    }
    ranks->gather_columns(Tensor(part.data(), DType::kF32, {4, columns[rank]}), columns,
                          rank == 0 ? all : Tensor());
    if (rank == 0) {
      std::vector<float> got(24);
      backend.download(got.data(), whole.data(), 24 * sizeof(float));
      EXPECT_EQ(got, expected);
    }
    communicator.finish();
  });
}

// Numbers go in pieces of 2^18; one rank has none.
TEST(CollectivesTest, SharesComeTogetherAndGoBack) {
  const std::vector<int64_t> counts = {3, (int64_t{1} << 18) + 5, 0, 2};
  in_ranks(4, [&](Backend& backend, Communicator& communicator) {
    const auto ranks = backend.make_collectives(communicator);
    testing::expect_shares_come_and_go(backend, *ranks, counts);
    communicator.finish();
  });
}

TEST(CollectivesTest, ALostRankIsNamed) {
  in_ranks(2, [](Backend& backend, Communicator& communicator) {
    if (communicator.rank() == 1) return;
    const auto ranks = backend.make_collectives(communicator);
    EXPECT_QIAO_ERROR(summed(backend, *ranks, {1.0f}), kUnavailable, "rank 1 is lost");
  });
}

}  // namespace
}  // namespace qiao
