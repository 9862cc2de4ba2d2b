// What an engine has on its chip and keeps books of: cache, prefix tree, scheduler, and the steps that it
// runs. Where a device is lost all of it is, and it is made anew.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "infer/draft_model.h"
#include "infer/engine.h"
#include "infer/page_pool.h"
#include "infer/prefix_tree.h"
#include "infer/saved_pages.h"
#include "infer/scheduler.h"
#include "infer/sequence.h"
#include "infer/step_runner.h"

namespace qiao {

// Of the engine's thread.
class EngineCore {
 public:
  // Both outlive this; options are complete. `restore`: saved prompts are read from the cache directory.
  EngineCore(const LanguageModel& model, const EngineOptions& options, bool restore);

  void enqueue(std::shared_ptr<Sequence> sequence) { scheduler_.enqueue(std::move(sequence)); }
  bool idle() const { return scheduler_.idle(); }

  // Which sequences the next step is for, and how many tokens of each; false: there is nothing to do.
  bool plan();
  // Runs that step, or, where it runs ahead, gives it to the chip and ends the one before. Returns whether
  // the step that ended had prompt tokens; nothing where none did. Requests whose step fails end with an
  // error. Throws Error(kDeviceLost): then only remove_if and the destructor are of use.
  std::optional<bool> run();

  // As Scheduler's.
  template <typename Predicate>
  std::vector<std::shared_ptr<Job>> remove_if(Predicate gone) {
    return scheduler_.remove_if(gone);
  }

  void report(EngineStats& stats) const;  // what it knows of them

  // Null: no cache directory.
  SavedPages* saved() { return saved_ ? &*saved_ : nullptr; }
  const std::string& restored() const { return restored_; }

 private:
  std::optional<bool> advance();
  bool launch();
  void draft();
  void fail(const std::string& what);
  void run_parts(std::span<const StepEntry> entries);

  const EngineOptions& options_;
  KvCache cache_;
  PagePools pools_;
  PrefixTree tree_;
  Scheduler scheduler_;
  StepRunner runner_;
  std::unique_ptr<DraftModel> drafter_;  // or null
  std::optional<SavedPages> saved_;
  std::string restored_;
  const bool runs_ahead_;
  const std::vector<StepEntry>* plan_ = nullptr;  // the scheduler's
  bool prefill_ = false;                          // the step that ends next has prompt tokens
};

}  // namespace qiao
