// sample's cuts (sample.cu has the plan, sample_cut.h what it is made of).
#include "backend/cuda/sample_arguments.h"

namespace qiao::cuda {
namespace {

// The logits that cut blockIdx.y is of.
struct CutValues {
  const float* row;  // null: greedy, uncut
  bool aligned;
};
__device__ CutValues values_of(const SampleArguments& op, int64_t row) {
  if (blockIdx.y != kOfDraw) return {op.logits + row * op.logits_stride, op.logits_aligned};
  return {op.rows[row].temperature > 0 ? op.z + row * op.z_stride : nullptr, true};
}
// By a block of kCutThreads.
__device__ CutTask task_of(const SampleArguments& op, int64_t row) {
  if (blockIdx.y == kOfDraw) return draw_task(op, op.rows[row], row_largest<kCutWarps>(op, row));
  return {CutTask::kCount, op.top, {false, 0, 0}, 1};
}
__device__ RowCut* cut_of(const SampleArguments& op, int64_t row) {
  return op.cuts + blockIdx.y * op.row_count + row;
}

// A thread's logits of a piece.
constexpr int kOwnFours = kVocabularyPiece / (4 * kCutThreads);
struct OwnLogits {
  float z[4 * kOwnFours];
  int64_t first[kOwnFours];  // of four, in the piece

  __device__ OwnLogits(const CutValues& values, const PieceOfRow& p) {
#pragma unroll
    for (int j = 0; j < kOwnFours; ++j) {
      first[j] = 4 * (int64_t{j} * kCutThreads + threadIdx.x);
      const float4 four = first[j] < p.count
                              ? load_four(values.row + p.first, first[j], p.count, values.aligned)
                              : make_float4(0, 0, 0, 0);
      z[4 * j] = four.x, z[4 * j + 1] = four.y, z[4 * j + 2] = four.z, z[4 * j + 3] = four.w;
    }
  }
  __device__ int64_t at(int i) const { return first[i / 4] + i % 4; }
};

__global__ void __launch_bounds__(kCutThreads) sample_histogram(SampleArguments op) {
  begin_kernel();
  QIAO_SHARED(DigitWeights, digits, 1);
  const PieceOfRow p = piece_of(op);
  const CutValues values = values_of(op, p.row);
  if (values.row == nullptr) return;
  const OwnLogits own(values, p);  // on their way while the rest is found out
  const CutTask task = task_of(op, p.row);
  if (task.kind == CutTask::kNothing) return;
  RowCut* cut = cut_of(op, p.row);
  clear(digits);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 4 * kOwnFours; ++i) {
    const bool inside = own.at(i) < p.count;
    const Whole key = key_of(own.z[i], p.first + own.at(i), op.vocabulary);
    tally(digits, nullptr, static_cast<unsigned>(key >> kHighestShift), inside ? task.weight_of(key) : 0);
  }
  __syncthreads();
  for (unsigned i = threadIdx.x; i < kDigits; i += kCutThreads) {
    const Whole weight = digits[0].of(i);
    if (weight != 0) atomicAdd(&cut->weights[i], weight);
  }
  if (!last_to_come(&cut->ticket, static_cast<unsigned>(op.pieces))) return;
  const FoundPlace found = find_place<kDigits / kCutThreads>(
      [&](unsigned place) { return __ldcg(&cut->weights[kDigits - 1 - place]); },
      [&](Whole sum) {
        return task.kind == CutTask::kCount ? static_cast<Whole>(task.count) : wanted_mass(task.top_p, sum);
      });
  if (threadIdx.x != 0) return;
  cut->wanted = found.wanted, cut->before = found.before;
  cut->digit = kDigits - 1 - found.place;
  cut->candidates = task.kind == CutTask::kCount ? found.before + found.weight : 0;
}

// Appends to a row's list what this block's piece has of it, in any order.
template <class Wants>
__device__ void list_piece(const SampleArguments& op, const PieceOfRow& p, const OwnLogits& own, RowCut* cut,
                           Whole* list, Wants wants) {
  unsigned hits = 0;
#pragma unroll
  for (int i = 0; i < 4 * kOwnFours; ++i) {
    const Whole key = key_of(own.z[i], p.first + own.at(i), op.vocabulary);
    if (own.at(i) < p.count && wants(key)) hits |= 1u << i;
  }
  unsigned until = static_cast<unsigned>(__popc(hits));
#pragma unroll
  for (unsigned lanes = 1; lanes < 32; lanes *= 2) {
    const unsigned other = __shfl_up_sync(kAllLanes, until, lanes);
    if (threadIdx.x % 32 >= lanes) until += other;
  }
  unsigned at = 0;
  if (threadIdx.x % 32 == 31 && until > 0) at = atomicAdd(&cut->listed, until);
  at = __shfl_sync(kAllLanes, at, 31) + until - static_cast<unsigned>(__popc(hits));
#pragma unroll
  for (int i = 0; i < 4 * kOwnFours; ++i) {
    if ((hits >> i & 1) == 0) continue;
    if (at < kMostListed) list[at] = key_of(own.z[i], p.first + own.at(i), op.vocabulary);
    ++at;
  }
}

// What a row's pieces leave its last block: `listed` keys from the cut's digit on (kCount) or in it (kMass);
// up to kMostSorted of them are sorted, in memory->list; more than kMostListed are not all in the list.
struct FoundCut {
  RowKeys row;
  ListKeys listed;
  DigitRange range;  // of the digit
  Whole wanted;      // of the weights in it
  CutMemory* memory;

  __device__ bool is_sorted() const { return listed.count <= kMostSorted; }
  __device__ bool is_listed() const { return listed.count <= kMostListed; }
  // Where they are not sorted.
  __device__ Whole find(DigitRange in, KeyWeight weight_of, Whole of_wanted, float top_p) const {
    return is_listed() ? cut_keys(listed, row.count, in, memory, weight_of, of_wanted, top_p)
                       : cut_keys(row, row.count, in, memory, weight_of, of_wanted, top_p);
  }
};

// The least key that stays of a row.
__device__ Whole draw_cut(const CutTask& task, const FoundCut& found) {
  const Whole* list = found.memory->list;
  if (found.is_sorted() && task.kind == CutTask::kMass)
    return cut_list(list, static_cast<unsigned>(found.listed.count), task.weight_of, found.wanted, 0);
  const Whole least =
      found.is_sorted() ? list[task.count - 1] : found.find(found.range, task.weight_of, found.wanted, 0);
  if (task.kind == CutTask::kMass || !(task.top_p < 1)) return least;
  const KeyWeight mass{true, task.weight_of.largest, least};
  if (found.is_sorted()) return cut_list(list, static_cast<unsigned>(task.count), mass, 0, task.top_p);
  __syncthreads();  // the list is read
  return found.find(all_keys(), mass, 0, task.top_p);
}

// The largest logits in descending order.
__device__ void list_top(const SampleArguments& op, int64_t row, const CutTask& task, const FoundCut& found) {
  QIAO_SHARED(double, shift, 1);
  Whole* sorted = op.top > kMostSorted ? op.top_lists + row * op.top : found.memory->list;
  if (!found.is_sorted()) {
    const Whole least = found.find(found.range, task.weight_of, found.wanted, 0);
    const auto wants = [&](Whole key) { return key >= least; };
    found.is_listed() ? list_keys(found.listed, sorted, found.memory, wants)
                      : list_keys(found.row, sorted, found.memory, wants);
  }
  if (threadIdx.x < 32) {
    const double sum = log_sum_exp_of(op.sums + row * op.pieces, op.pieces);
    if (threadIdx.x == 0) shift[0] = sum;
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < op.top; i += kCutThreads) {
    const int32_t id = id_of(sorted[i], op.vocabulary);
    op.top_ids[row * op.top_ids_stride + i] = id;
    op.of_top[row * op.of_top_stride + i] = log_probability(op, row, id, shift[0]);
  }
}

__global__ void __launch_bounds__(kCutThreads, 2) sample_cut(SampleArguments op) {
  begin_kernel();
  auto* memory = shared_memory<CutMemory>();
  const PieceOfRow p = piece_of(op);
  const CutValues values = values_of(op, p.row);
  if (values.row == nullptr) return;
  const OwnLogits own(values, p);  // on their way while the rest is found out
  RowCut* cut = cut_of(op, p.row);
  const Whole cut_digit = cut->digit;
  const bool known_long = cut->candidates > kMostListed;
  const CutTask task = task_of(op, p.row);
  if (task.kind == CutTask::kNothing) return;
  Whole* list = op.lists + (blockIdx.y * op.row_count + p.row) * kMostListed;
  if (!known_long) {
    list_piece(op, p, own, cut, list, [&](Whole key) {
      const Whole digit = key >> kHighestShift;
      return task.kind == CutTask::kCount ? digit >= cut_digit
                                          : digit == cut_digit && task.weight_of(key) != 0;
    });
  }
  if (!last_to_come(&cut->ticket, static_cast<unsigned>(op.pieces))) return;
  const unsigned listed = known_long ? kMostListed + 1 : __ldcg(&cut->listed);
  if (listed <= kMostSorted) {
    for (unsigned i = threadIdx.x; i < listed; i += kCutThreads) memory->list[i] = __ldcg(list + i);
    __syncthreads();
    sort_descending(memory->list, listed);
  }
  const FoundCut found{{values.row, op.vocabulary},
                       {list, listed},
                       keys_of_digit(all_keys(), static_cast<unsigned>(cut_digit), op.vocabulary),
                       cut->wanted - cut->before,
                       memory};
  if (blockIdx.y == kOfDraw) {
    const Whole least = draw_cut(task, found);
    if (threadIdx.x == 0) cut->least = least;
  } else {
    list_top(op, p.row, task, found);
  }
}

}  // namespace

void launch_sample_cuts(const Stream& stream, const SampleArguments& op) {
  const dim3 grid(static_cast<unsigned>(op.row_count * op.pieces), static_cast<unsigned>(op.cut_count));
  launch("sample", stream, sample_histogram, grid, kCutThreads, 0, op);
  launch("sample", stream, sample_cut, grid, kCutThreads, sizeof(CutMemory), op);
}

}  // namespace qiao::cuda
