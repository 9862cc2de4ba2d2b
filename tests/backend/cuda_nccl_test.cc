// What the CUDA chip makes of NCCL, with functions in its place that carry between threads: on the stand-in.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "backend/collectives_shares.h"
#include "backend/cuda/nccl_collectives.h"
#include "backend/cuda_stand_in/stand_in.h"
#include "base/error.h"
#include "support/expect_error.h"

namespace qiao::cuda {

// A rank's place, as the functions below have it.
struct NcclGroup {
  int rank = 0, size = 1;
};

namespace {

using ::testing::HasSubstr;

// What is on its way from each to each.
struct Wire {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::pair<int, int>, std::deque<std::vector<float>>> messages;
  int64_t groups = 0;
};

Wire& wire() {
  static Wire all;
  return all;
}

struct Transfer {
  const float* from;
  float* to;
  size_t count;
  int peer;
  NcclGroup* group;
  cudaStream_t stream;
};

thread_local std::vector<Transfer> in_group;
constexpr int kRefused = 5;

// A group's transfers are done at its end, after all that its stream was given before; receives wait.
int end_group() {
  for (const Transfer& transfer : in_group) {
    if (cudaStreamSynchronize(transfer.stream) != cudaSuccess) return kRefused;
    if (transfer.from == nullptr) continue;
    const std::lock_guard lock(wire().mutex);
    wire().messages[{transfer.group->rank, transfer.peer}].emplace_back(transfer.from,
                                                                        transfer.from + transfer.count);
    wire().changed.notify_all();
  }
  for (const Transfer& transfer : in_group) {
    if (transfer.to == nullptr) continue;
    std::unique_lock lock(wire().mutex);
    auto& waiting = wire().messages[{transfer.peer, transfer.group->rank}];
    if (!wire().changed.wait_for(lock, std::chrono::seconds(60), [&] { return !waiting.empty(); }))
      return kRefused;
    if (waiting.front().size() != transfer.count) return kRefused;
    std::memcpy(transfer.to, waiting.front().data(), transfer.count * sizeof(float));
    waiting.pop_front();
  }
  in_group.clear();
  const std::lock_guard lock(wire().mutex);
  ++wire().groups;
  return kNcclSuccess;
}

Nccl threads_in_its_place() {
  Nccl nccl{};
  nccl.get_unique_id = [](NcclId* id) {
    std::memcpy(id->bytes, "a group", 8);
    return kNcclSuccess;
  };
  nccl.init_rank = [](NcclGroup** group, int size, NcclId id, int rank) {
    if (std::strcmp(id.bytes, "a group") != 0) return kRefused;
    *group = new NcclGroup{rank, size};
    return kNcclSuccess;
  };
  nccl.abort = [](NcclGroup* group) {
    delete group;
    return kNcclSuccess;
  };
  nccl.error_string = [](int) { return "invalid usage"; };
  nccl.group_start = [] {
    in_group.clear();
    return kNcclSuccess;
  };
  nccl.group_end = end_group;
  nccl.send = [](const void* from, size_t count, int dtype, int peer, NcclGroup* group, cudaStream_t stream) {
    in_group.push_back({static_cast<const float*>(from), nullptr, count, peer, group, stream});
    return dtype == kNcclFloat && peer != group->rank ? kNcclSuccess : kRefused;
  };
  nccl.receive = [](void* to, size_t count, int dtype, int peer, NcclGroup* group, cudaStream_t stream) {
    in_group.push_back({nullptr, static_cast<float*>(to), count, peer, group, stream});
    return dtype == kNcclFloat && peer != group->rank ? kNcclSuccess : kRefused;
  };
  return nccl;
}

void in_gpus(int size, const std::function<void(CudaBackend&, Collectives&)>& body) {
  auto communicators = make_thread_communicators(size, 60);
  std::vector<std::thread> threads;
  for (auto& communicator : communicators) {
    threads.emplace_back([&body, own = std::move(communicator)] {
      CudaBackend backend({});
      const Nccl nccl = threads_in_its_place();
      {
        const auto ranks = make_nccl_collectives(backend, *own, nccl);
        body(backend, *ranks);
      }
      own->finish();
    });
  }
  for (std::thread& thread : threads) thread.join();
}

std::vector<float> addend_of(int rank, int64_t count) {
  std::mt19937 random(static_cast<uint32_t>(rank) + 11);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

TEST(CudaNcclTest, SumsAreThoseOfAnyChip) {
  stand_in::reset();
  for (const auto& [size, count] : std::vector<std::pair<int, int64_t>>{
           {2, 1}, {2, 100000}, {3, 130}, {3, 40001}, {3, (int64_t{1} << 20) + 70}, {4, 576}, {4, 33000}}) {
    // The contract's order: neighbours first.
    std::vector<std::vector<float>> sums;
    for (int rank = 0; rank < size; ++rank) sums.push_back(addend_of(rank, count));
    for (size_t distance = 1; distance < sums.size(); distance *= 2)
      for (size_t left = 0; left + distance < sums.size(); left += 2 * distance)
        for (size_t i = 0; i < sums[left].size(); ++i) sums[left][i] += sums[left + distance][i];
    in_gpus(size, [&](CudaBackend& backend, Collectives& ranks) {
      EXPECT_TRUE(ranks.can_be_repeated());
      const auto own = addend_of(ranks.rank(), count);
      const Buffer memory = backend.allocate(own.size() * sizeof(float));
      backend.upload(memory.data(), own.data(), own.size() * sizeof(float));
      ranks.all_reduce_sum(Tensor(memory.data(), DType::kF32, {count}));
      std::vector<float> sum(own.size());
      backend.download(sum.data(), memory.data(), sum.size() * sizeof(float));
      EXPECT_EQ(std::memcmp(sum.data(), sums[0].data(), sum.size() * sizeof(float)), 0)
          << count << " numbers on rank " << ranks.rank() << " of " << size;
    });
    in_gpus(size, [&](CudaBackend& backend, Collectives& ranks) {  // for one rank, which then tells all
      const int root = size / 2;
      const auto own = addend_of(ranks.rank(), count);
      const Buffer memory = backend.allocate(own.size() * sizeof(float)),
                   all = backend.allocate(own.size() * sizeof(float));
      backend.upload(memory.data(), own.data(), own.size() * sizeof(float));
      const Tensor values(memory.data(), DType::kF32, {count}), to(all.data(), DType::kF32, {count});
      ranks.reduce_sum(values, root);
      for (const Tensor& into : {to, values}) {
        ranks.broadcast(ranks.rank() == root ? values : Tensor(), root, into);
        std::vector<float> sum(own.size());
        backend.download(sum.data(), into.data, sum.size() * sizeof(float));
        EXPECT_EQ(std::memcmp(sum.data(), sums[0].data(), sum.size() * sizeof(float)), 0)
            << count << " numbers of rank " << root << " on rank " << ranks.rank() << " of " << size;
      }
    });
  }
  EXPECT_THAT(stand_in::faults(), ::testing::IsEmpty());
}

TEST(CudaNcclTest, ColumnsMeetOnTheFirstRank) {
  stand_in::reset();
  constexpr int64_t kRows = 70;  // more than one group's
  const std::vector<int64_t> columns = {2, 3, 1};
  in_gpus(3, [&](CudaBackend& backend, Collectives& ranks) {
    const auto rank = static_cast<size_t>(ranks.rank());
    const auto number = [](int64_t row, size_t of, int64_t i) {
      return static_cast<float>(100 * row + 10 * static_cast<int64_t>(of) + i);
    };
    std::vector<float> own, expected;
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t i = 0; i < columns[rank]; ++i) own.push_back(number(row, rank, i));
      for (size_t of = 0; of < 3; ++of)
        for (int64_t i = 0; i < columns[of]; ++i) expected.push_back(number(row, of, i));
    }
    const Buffer part = backend.allocate(own.size() * sizeof(float)),
                 whole = backend.allocate(expected.size() * sizeof(float));
    backend.upload(part.data(), own.data(), own.size() * sizeof(float));
    const Tensor all(whole.data(), DType::kF32, {kRows, 6});
    if (rank == 0) {  // its own part is there before
      std::vector<float> before(expected.size(), -1.0f);
      for (size_t row = 0; row < kRows; ++row) std::copy_n(own.data() + 2 * row, 2, before.data() + 6 * row);
      backend.upload(whole.data(), before.data(), before.size() * sizeof(float));
    }
    ranks.gather_columns(Tensor(part.data(), DType::kF32, {kRows, columns[rank]}), columns,
                         rank == 0 ? all : Tensor());
    if (rank > 0) return;
    std::vector<float> got(expected.size());
    backend.download(got.data(), whole.data(), got.size() * sizeof(float));
    EXPECT_EQ(got, expected);
  });
}

TEST(CudaNcclTest, SharesComeTogetherAndGoBack) {
  stand_in::reset();
  const std::vector<int64_t> counts = {3, 70'001, 0, 2};  // one rank has none
  in_gpus(4, [&](CudaBackend& backend, Collectives& ranks) {
    testing::expect_shares_come_and_go(backend, ranks, counts);
  });
  EXPECT_THAT(stand_in::faults(), ::testing::IsEmpty());
}

TEST(CudaNcclTest, ItsErrorsAreToldInItsWords) {
  stand_in::reset();
  CudaBackend backend({});
  const auto alone = make_lone_communicator();
  Nccl nccl = threads_in_its_place();
  nccl.init_rank = [](NcclGroup**, int, NcclId, int) { return kRefused; };
  EXPECT_QIAO_ERROR(make_nccl_collectives(backend, *alone, nccl), kUnavailable,
                    "cuda: ncclCommInitRank of 1 ranks: invalid usage");
}

TEST(CudaNcclTest, IsFoundWhereItIsElseALineSaysWhatToInstall) {
  try {
    const Nccl& nccl = find_nccl();  // it is here: then with all of its functions
    EXPECT_TRUE(nccl.send != nullptr && nccl.receive != nullptr && nccl.init_rank != nullptr);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUnavailable);
    EXPECT_THAT(error.what(), HasSubstr("install the package libnccl2"));
  }
}

}  // namespace
}  // namespace qiao::cuda
