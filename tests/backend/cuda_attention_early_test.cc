// attention_paged of a decoding step on the CUDA chip asks for earlier steps' keys before the kernel before
// it has ended: where nothing that may still run can have written them, and with the same bits.
#include <gmock/gmock.h>

#include <cstring>
#include <functional>
#include <random>
#include <string>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda_stand_in/stand_in.h"
#include "backend/op_test.h"
#include "base/error.h"

namespace qiao {
namespace {

using ::testing::HasSubstr;

struct EarlyKind {
  const char* name;
  DType dtype;
  Compute compute;
};

// One sequence of 600 keys, three chunks, in pages of 16 tokens; the last key is the step's.
class CudaAttentionEarlyTest : public ::testing::TestWithParam<EarlyKind> {
 protected:
  static constexpr int64_t kKeys = 600, kHeads = 2, kDim = 64, kPageTokens = 16;

  void SetUp() override {
    stand_in::reset();
    chip_ = make_cuda_backend({});
    KvPagesSpec spec;
    spec.dtype = GetParam().dtype, spec.pages = 38, spec.page_tokens = kPageTokens;
    spec.kv_heads = kHeads, spec.head_dim = kDim;
    pages_ = chip_->make_kv_pages(spec);
    workspace_ = chip_->allocate(size_t{1} << 20);
    std::mt19937_64 random(3);
    std::normal_distribution<float> normal;
    for (Floats* tensor : {&k_, &v_, &q_, &other_}) {
      for (int64_t i = 0; i < tensor->tensor().elements(); ++i) tensor->data()[i] = normal(random);
    }
    for (int64_t i = 0; i < kKeys; ++i) slots_.data()[i] = static_cast<int32_t>(i);
    for (int32_t i = 0; i < 38; ++i) table_.data()[i] = i;
  }
  // Keys from `first` on, as one op; `k`: other ones.
  void write(int64_t first, int64_t count, const Floats* k = nullptr) {
    const Tensor keys = k == nullptr ? k_.tensor().slice(first, count) : k->tensor().slice(0, count);
    chip_->kv_write(
        {keys, v_.tensor().slice(first, count), slots_.tensor().slice(first, count), pages_.get()});
  }
  // Between steps something is uploaded.
  void next_step() {
    const int32_t length = kKeys;
    chip_->upload(lengths_.data(), &length, sizeof length);
  }
  void attend() {
    AttentionPaged op;
    op.q = q_, op.pages = pages_.get(), op.page_table = table_, op.lengths = lengths_;
    op.query_starts = starts_, op.out = out_, op.compute = GetParam().compute;
    op.workspace = Tensor(workspace_.data(), DType::kU8, {static_cast<int64_t>(workspace_.bytes())});
    ASSERT_LE(chip_->workspace_bytes(op), workspace_.bytes());
    chip_->attention_paged(op);
  }
  // What these give, or what the stand-in says.
  std::vector<float> out_of(const std::function<void()>& work) {
    work();
    chip_->synchronize();
    return out_.list();
  }
  std::string fault_of(const std::function<void()>& work) {
    try {
      work();
      chip_->synchronize();
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }

  std::unique_ptr<Backend> chip_;
  std::unique_ptr<KvPages> pages_;
  Buffer workspace_;
  Floats k_{{kKeys, kHeads, kDim}}, v_{{kKeys, kHeads, kDim}}, other_{{1, kHeads, kDim}};
  Floats q_{{1, 2 * kHeads, kDim}}, out_{{1, 2 * kHeads, kDim}};
  Ints slots_{{kKeys}}, table_{{1, 38}}, lengths_{std::initializer_list<int64_t>{1}, {kKeys}},
      starts_{{2}, {0, 1}};
};

TEST_P(CudaAttentionEarlyTest, EarlierStepsKeysGiveTheSameBitsEarly) {
  const std::vector<float> held = out_of([&] {
    write(0, kKeys);
    attend();
  });
  const std::vector<float> early = out_of([&] {
    write(0, kKeys - 1);
    next_step();
    write(kKeys - 1, 1);
    attend();
  });
  EXPECT_EQ(std::memcmp(held.data(), early.data(), held.size() * sizeof(float)), 0);
  const std::vector<float> again = out_of([&] {
    next_step();
    attend();  // nothing written since
  });
  EXPECT_EQ(std::memcmp(held.data(), again.data(), held.size() * sizeof(float)), 0);
}

// That they are asked for early shows where an earlier key is written last of all, which the op forbids.
TEST_P(CudaAttentionEarlyTest, TheStandInFindsAKeyWrittenTooLate) {
  const std::string fault = fault_of([&] {
    write(0, kKeys);
    next_step();
    write(0, 1, &other_);
    attend();
  });
  EXPECT_THAT(fault, HasSubstr("hold_next"));
  stand_in::reset();
}

TEST_P(CudaAttentionEarlyTest, KeysWrittenInTheSameStepAreWaitedFor) {
  EXPECT_EQ(fault_of([&] {
              write(0, kKeys - 1);
              write(kKeys - 1, 1);
              attend();
            }),
            "");
  EXPECT_EQ(fault_of([&] {
              next_step();
              write(0, 1, &other_);
              write(kKeys - 1, 1);
              attend();
            }),
            "");
}

// What a recorded step wrote is there for the next: a graph begins when all before it has ended.
TEST_P(CudaAttentionEarlyTest, StepsThatAreRecordedToo) {
  std::unique_ptr<Recording> recording;
  std::vector<float> first;
  for (int i = 0; i < 4; ++i) {
    const std::vector<float> out = out_of([&] {
      write(0, kKeys - 1);
      chip_->repeat(recording, [&] {
        write(kKeys - 1, 1);
        attend();
      });
      if (i == 3) attend();  // behind the graph
    });
    if (i == 0) first = out;
    EXPECT_EQ(std::memcmp(first.data(), out.data(), out.size() * sizeof(float)), 0) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, CudaAttentionEarlyTest,
                         ::testing::Values(EarlyKind{"F32", DType::kF32, Compute::kF32},
                                           EarlyKind{"BF16", DType::kBF16, Compute::kBF16},
                                           EarlyKind{"F8", DType::kF8_E4M3, Compute::kBF16},
                                           EarlyKind{"Q8", DType::kQ8_0, Compute::kF32}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace qiao
