#include "models/decoder_ranks.h"

#include <algorithm>
#include <array>
#include <exception>
#include <map>

#include "base/error.h"
#include "models/cache_pages.h"
#include "parallel/gather_texts.h"

namespace qiao {
namespace {

constexpr size_t kParts = 10;  // of a StepBatch, those that other ranks are told

std::array<std::span<const int32_t>, kParts> parts_of(const StepBatch& batch) {
  return {batch.tokens,       batch.positions,   batch.slots,    batch.page_table,    batch.lengths,
          batch.query_starts, batch.output_rows, batch.adapters, batch.sliding_slots, batch.sliding_table};
}

StepBatch batch_of(const std::array<std::span<const int32_t>, kParts>& parts) {
  return {parts[0], parts[1], parts[2], parts[3], parts[4], parts[5], parts[6], parts[7], parts[8], parts[9]};
}

}  // namespace

void agree_on_model(Communicator& communicator, const Backend& backend, const std::string& model) {
  const std::string own =
      fmt::format("{}; {} ({}{})", model, backend.chip(), name_without_threads(backend.describe()),
                  backend.batch_invariant() ? "" : ", fast");
  const std::vector<std::string> texts = gather_texts(communicator, own);
  for (size_t other = 1; other < texts.size(); ++other) {
    if (texts[other] == own) continue;
    throw_error(ErrorKind::kInvalidInput, "{} runs {}; {} runs {}: the same was expected",
                communicator.name(static_cast<int>(other)), texts[other], communicator.name(0), own);
  }
}

enum class DecoderRanks::What : int64_t {
  kEnd,
  kFreeBytes,
  kMake,
  kDrop,
  kStep,
  kPageBytes,
  kExportPage,
  kImportPage
};

// What rank 0 says. Of a step its indices follow, in the order of parts_of.
struct DecoderRanks::Call {
  What what = What::kEnd;
  int64_t workspace = 0;
  // kMake, kPageBytes, kExportPage, kImportPage
  uint64_t cache = 0;  // KvCache::serial of rank 0's
  int64_t pages = 0, page_tokens = 0, sliding_pages = 0;
  DType dtype = DType::kF16;
  Decoder::Limits limits;
  // kStep
  std::array<int64_t, kParts> counts{};
  bool want_logits = false, takes_tokens = false;
  // kPageBytes, kExportPage, kImportPage
  int64_t page = 0;
  bool sliding = false;
};

template <typename T>
void DecoderRanks::tell(std::span<const T> values) {
  for (int other = 1; other < size(); ++other) communicator_.send_values(other, values);
}

void DecoderRanks::agree(const std::string& model) { agree_on_model(communicator_, backend_, model); }

void DecoderRanks::fail(const std::string& why) {
  follow_ = false;
  problem_ = why;
  communicator_.end_all(why);
  std::terminate();  // gcc 12 does not believe that a virtual function never returns
}

uint64_t DecoderRanks::own_free_bytes() const {
  const DeviceInfo info = backend_.describe();
  const bool host_memory = info.threads > 0;  // its chip is the host's processor
  return host_memory ? info.free_bytes / static_cast<uint64_t>(communicator_.sharing_host())
                     : info.free_bytes;
}

uint64_t DecoderRanks::free_bytes() {
  Call call;
  call.what = What::kFreeBytes;
  tell(std::span<const Call>(&call, 1));
  uint64_t least = own_free_bytes();
  for (int other = 1; other < size(); ++other) {
    uint64_t theirs = 0;
    communicator_.receive_values(other, std::span(&theirs, 1));
    least = std::min(least, theirs);
  }
  return least;
}

int64_t DecoderRanks::make(const KvCache& cache, const Decoder::Limits& limits) {
  Call call;
  call.what = What::kMake;
  call.workspace = ++last_workspace_;
  call.cache = cache.serial();
  call.pages = cache.pages();
  call.page_tokens = cache.page_tokens();
  call.sliding_pages = cache.sliding_pages();
  call.dtype = cache.layer(0).spec().dtype;
  call.limits = limits;
  tell(std::span<const Call>(&call, 1));
  std::string problems;
  for (int other = 1; other < size(); ++other) {
    int64_t length = 0;
    communicator_.receive_values(other, std::span(&length, 1));
    std::string problem(static_cast<size_t>(length), '\0');
    if (length == 0) continue;
    communicator_.receive_values(other, std::span<char>(problem));
    problems += fmt::format("{}{}: {}", problems.empty() ? "" : "; ", communicator_.name(other), problem);
  }
  if (problems.empty()) return call.workspace;
  drop(call.workspace);
  throw Error(ErrorKind::kTooLarge, problems);
}

// Of a rank that is lost others hear.
void DecoderRanks::drop(int64_t workspace) noexcept {
  if (!follow_) return;
  Call call;
  call.what = What::kDrop;
  call.workspace = workspace;
  try {
    tell(std::span<const Call>(&call, 1));
  } catch (const std::exception&) {
    follow_ = false;
  }
}

void DecoderRanks::tell_of_page(What what, const KvCache& cache, int64_t page, bool sliding) {
  Call call;
  call.what = what;
  call.cache = cache.serial();
  call.page = page;
  call.sliding = sliding;
  tell(std::span<const Call>(&call, 1));
}

const std::vector<int64_t>& DecoderRanks::page_bytes(const KvCache& cache, bool sliding) {
  std::vector<int64_t>& bytes = page_bytes_[{cache.serial(), sliding}];
  if (!bytes.empty()) return bytes;
  tell_of_page(What::kPageBytes, cache, 0, sliding);
  for (int other = 1; other < size(); ++other)
    communicator_.receive_values(other, std::span(&bytes.emplace_back(), 1));
  return bytes;
}

template <typename Byte, typename Move>
void DecoderRanks::move_page(What what, const KvCache& cache, int64_t page, bool sliding,
                             std::span<Byte> bytes, Move move) {
  const std::vector<int64_t>& counts = page_bytes(cache, sliding);
  tell_of_page(what, cache, page, sliding);
  for (int other = 1; other < size(); ++other) {
    const auto count = static_cast<size_t>(counts[static_cast<size_t>(other - 1)]);
    move(other, bytes.first(count));
    bytes = bytes.subspan(count);
  }
}

void DecoderRanks::export_page(const KvCache& cache, int64_t page, bool sliding, std::span<std::byte> bytes) {
  move_page(What::kExportPage, cache, page, sliding, bytes,
            [&](int other, std::span<std::byte> part) { communicator_.receive_values(other, part); });
}

void DecoderRanks::import_page(const KvCache& cache, int64_t page, bool sliding,
                               std::span<const std::byte> bytes) {
  move_page(What::kImportPage, cache, page, sliding, bytes,
            [&](int other, std::span<const std::byte> part) { communicator_.send_values(other, part); });
}

void DecoderRanks::end() noexcept {
  if (!follow_) return;
  follow_ = false;
  const Call call;
  try {
    tell(std::span<const Call>(&call, 1));
  } catch (const std::exception&) {
    return;
  }
}

void DecoderRanks::start_step(int64_t workspace, const StepBatch& batch, bool want_logits) {
  if (!problem_.empty()) throw Error(ErrorKind::kUnavailable, problem_);
  Call call;
  call.what = What::kStep;
  call.workspace = workspace;
  call.want_logits = want_logits;
  call.takes_tokens = !batch.from_drawn.empty();
  indices_.clear();
  const auto parts = parts_of(batch);
  for (size_t i = 0; i < kParts; ++i) {
    call.counts[i] = std::ssize(parts[i]);
    indices_.insert(indices_.end(), parts[i].begin(), parts[i].end());
  }
  for (int other = 1; other < size(); ++other) {
    communicator_.send_values(other, std::span<const Call>(&call, 1));
    communicator_.send_values(other, std::span<const int32_t>(indices_));
  }
}

// What another rank has made for rank 0's caches and workspaces.
class DecoderRanks::Follower {
 public:
  Follower(DecoderRanks& ranks, const Decoder& decoder) : ranks_(ranks), decoder_(decoder) {}

  // False: the end.
  bool hear() {
    Call call;
    ranks_.communicator_.receive_values(0, std::span(&call, 1));
    switch (call.what) {
      case What::kEnd:
        return false;
      case What::kFreeBytes: {
        const uint64_t bytes = ranks_.own_free_bytes();
        ranks_.communicator_.send_values(0, std::span(&bytes, 1));
        return true;
      }
      case What::kMake:
        answer(make(call));
        return true;
      case What::kDrop:
        workspaces_.erase(call.workspace);
        return true;
      case What::kStep:
        step(call);
        return true;
      case What::kPageBytes:
      case What::kExportPage:
      case What::kImportPage:
        page(call);
        return true;
    }
    return false;
  }

 private:
  struct Made {
    std::shared_ptr<KvCache> cache;
    std::unique_ptr<Decoder::Workspace> workspace;  // before its cache is destroyed
    uint64_t serial;                                // of rank 0's cache
  };

  // Returns what went wrong; empty: nothing.
  std::string make(const Call& call) {
    try {
      std::shared_ptr<KvCache> cache = cache_of(call);
      if (!cache) {
        cache = std::make_shared<KvCache>(decoder_.backend(), decoder_.config(), call.pages, call.page_tokens,
                                          call.dtype, call.sliding_pages);
      }
      auto workspace = decoder_.make_workspace(call.limits, *cache);
      workspaces_[call.workspace] = {std::move(cache), std::move(workspace), call.cache};
      return "";
    } catch (const std::exception& problem) {
      return problem.what();
    }
  }
  // Null where none was made.
  std::shared_ptr<KvCache> cache_of(const Call& call) const {
    for (const auto& [number, made] : workspaces_)
      if (made.serial == call.cache) return made.cache;
    return nullptr;
  }
  void page(const Call& call) {
    const std::shared_ptr<KvCache> cache = cache_of(call);
    QIAO_ASSERT(cache != nullptr);
    Backend& backend = decoder_.backend();
    const int64_t count = own_page_bytes(*cache, call.sliding);
    if (call.what == What::kPageBytes) return ranks_.communicator_.send_values(0, std::span(&count, 1));
    page_.resize(static_cast<size_t>(count));
    if (call.what == What::kExportPage) {
      export_own_page(backend, *cache, call.page, call.sliding, page_);
      ranks_.communicator_.send_values(0, std::span<const std::byte>(page_));
    } else {
      ranks_.communicator_.receive_values(0, std::span(page_));
      import_own_page(backend, *cache, call.page, call.sliding, page_);
    }
  }
  void answer(const std::string& problem) {
    const auto length = static_cast<int64_t>(problem.size());
    ranks_.communicator_.send_values(0, std::span(&length, 1));
    if (length > 0) ranks_.communicator_.send_values(0, std::span<const char>(problem));
  }

  void step(const Call& call) {
    size_t count = 0;
    for (const int64_t part : call.counts) count += static_cast<size_t>(part);
    indices_.resize(count);
    ranks_.communicator_.receive_values(0, std::span(indices_));
    std::array<std::span<const int32_t>, kParts> parts;
    size_t first = 0;
    for (size_t i = 0; i < kParts; ++i) {
      parts[i] = std::span(indices_).subspan(first, static_cast<size_t>(call.counts[i]));
      first += parts[i].size();
    }
    const Made& made = workspaces_.at(call.workspace);
    StepBatch batch = batch_of(parts);
    batch.takes_tokens = call.takes_tokens;
    decoder_.forward(batch, *made.cache, *made.workspace, call.want_logits);
  }

  DecoderRanks& ranks_;
  const Decoder& decoder_;
  std::map<int64_t, Made> workspaces_;
  std::vector<int32_t> indices_;
  std::vector<std::byte> page_;
};

DecoderRanks::DecoderRanks(Communicator& communicator, Backend& backend, Collectives* trainers)
    : communicator_(communicator),
      backend_(backend),
      own_collectives_(trainers == nullptr ? backend.make_collectives(communicator) : nullptr),
      collectives_(trainers == nullptr ? *own_collectives_ : *trainers),
      follow_(trainers == nullptr) {}

DecoderRanks::~DecoderRanks() = default;

void DecoderRanks::follow(const Decoder& decoder) {
  if (!follower_) follower_ = std::make_unique<Follower>(*this, decoder);
  while (follower_->hear()) {
  }
}

}  // namespace qiao
