// One decoder spread over several processes: what rank 0 tells the others, so that all run the same steps on
// their parts. Page numbers, sampling and requests are rank 0's alone.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "models/decoder.h"
#include "parallel/communicator.h"

namespace qiao {

// Called by all ranks: throws Error(kInvalidInput) on the first, naming the rank, where another has another
// model (for people, too) or another kind of device. No bit of what they have in common would agree.
void agree_on_model(Communicator& communicator, const Backend& backend, const std::string& model);

// One thread at a time. What it throws where a rank is lost is the communicator's.
class DecoderRanks {
 public:
  // All that is given outlives it. All ranks make it alike. With `trainers`, by which they sum then, the
  // others follow from lead() to end() alone, else from the beginning on.
  DecoderRanks(Communicator& communicator, Backend& backend, Collectives* trainers = nullptr);
  ~DecoderRanks();

  bool leads() const { return communicator_.rank() == 0; }
  int size() const { return communicator_.size(); }
  Collectives& collectives() { return collectives_; }

  // agree_on_model, of files and options.
  void agree(const std::string& model);

  // Of rank 0; the others do the same behind follow().

  // What a rank can still allocate: of the one that can the least. Ranks that share a host's memory have
  // equal parts of it.
  uint64_t free_bytes();
  // Has the others make a cache of the same pages (once for each cache) and a workspace; returns its number.
  // Throws Error(kTooLarge), naming the rank, where one cannot.
  int64_t make(const KvCache& cache, const Decoder::Limits& limits);
  void drop(int64_t workspace) noexcept;
  // What the others have of a page of the cache (cache_pages.h), one after another; and how much each has.
  const std::vector<int64_t>& page_bytes(const KvCache& cache, bool sliding);
  void export_page(const KvCache& cache, int64_t page, bool sliding, std::span<std::byte> bytes);
  void import_page(const KvCache& cache, int64_t page, bool sliding, std::span<const std::byte> bytes);
  void start_step(int64_t workspace, const StepBatch& batch, bool want_logits);
  void lead() { follow_ = true; }
  void end() noexcept;  // of their following

  // Of the others: does what rank 0 tells until it says that this is the end.
  void follow(const Decoder& decoder);

  // A step did not come to its end on this rank: they are no longer in step.
  [[noreturn]] void fail(const std::string& why);

 private:
  enum class What : int64_t;
  struct Call;
  void tell_of_page(What what, const KvCache& cache, int64_t page, bool sliding);
  template <typename Byte, typename Move>
  void move_page(What what, const KvCache& cache, int64_t page, bool sliding, std::span<Byte> bytes,
                 Move move);
  class Follower;
  uint64_t own_free_bytes() const;
  template <typename T>
  void tell(std::span<const T> values);

  Communicator& communicator_;
  Backend& backend_;
  std::unique_ptr<Collectives> own_collectives_;  // null: who trains has them
  Collectives& collectives_;
  std::unique_ptr<Follower> follower_;  // of the others, once they have followed
  std::vector<int32_t> indices_;        // of a step
  std::map<std::pair<uint64_t, bool>, std::vector<int64_t>> page_bytes_;  // by cache and group, once asked
  int64_t last_workspace_ = 0;
  bool follow_;          // the others do
  std::string problem_;  // of the step that did not come to its end
};

}  // namespace qiao
