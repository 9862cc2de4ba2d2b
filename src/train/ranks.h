// A step shared out over processes: data parallel with the optimizer's states sharded (ZeRO-1, Rajbhandari et
// al. 2020). The step's sequences and the model's tensors are dealt out to virtual ranks, always as many, and
// those to the processes that there are: so the bytes that a run leaves do not depend on how many those are.
//
// Or to groups of processes, each of which trains one model together (tensor parallel; DecoderOptions::
// trainers): neighbours, P of them. Process r of every group has the same parts of all tensors, and those
// processes are what the virtual ranks are dealt out to. Matrices that are whole on all of a group
// (embedding, head, routers), and those whose step takes all of them (Muon's, or codes in blocks), are dealt
// out to it for the optimizer's step. Bytes depend on P.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/collectives.h"
#include "parallel/communicator.h"
#include "train/objective.h"
#include "train/parameters.h"

namespace qiao::train {

inline constexpr int64_t kVirtualRanks = 4;

// The owner of each tensor, from 0 to below `shares`: the largest first, each to who has least so far.
std::vector<int64_t> deal_out(std::span<const int64_t> counts, int64_t shares);

// Called by all ranks: throws Error(kInvalidInput) on the first, naming the rank and the setting, where
// another has other settings (TrainOptions::settings), but for what a process has to itself: device, threads,
// what it prints, how long it waits.
void agree_on_settings(Communicator& communicator, const std::string& settings);

class Ranks {
 public:
  // `virtual_ranks` 1 (for one process, or group) or kVirtualRanks. Throws Error(kInvalidInput) where the
  // communicator's processes do not make whole groups of `tensor_parallel`, or the virtual ranks cannot be
  // dealt out evenly to those. All that follows is called by all ranks alike.
  Ranks(Communicator& communicator, int64_t virtual_ranks, int64_t tensor_parallel = 1);

  int64_t shares() const { return shares_; }
  int64_t own_shares() const { return shares_ / data_->size(); }
  int64_t first_share() const { return own_shares() * data_->rank(); }
  bool leads() const { return communicator_.rank() == 0; }
  bool is_alone() const { return communicator_.size() == 1; }
  const Communicator& communicator() const { return communicator_; }

  // The processes of this one's group, and those that have this one's place in theirs.
  Communicator& group() const { return *group_; }
  Communicator& data() const { return *data_; }
  bool leads_group() const { return group_->rank() == 0; }
  // Theirs, over their chips' memory; before share(). They outlive reduce() and publish(). Null where one
  // process is all of them.
  void connect(Collectives* group, Collectives* data);

  // What a step that takes all of a tensor, and not each part by itself, costs beside others; 0: it does not.
  using WholeStepCost = std::function<int64_t(const Parameters::Named& tensor)>;
  // Which tensors' masters are here, and who else has them; before Parameters::prepare.
  void share(Parameters& parameters, const WholeStepCost& cost);
  const std::vector<int64_t>& owners() const { return owners_; }  // of tensors: virtual ranks
  int64_t owner(size_t tensor) const { return owners_[tensor]; }

  // values[i] becomes what the rank that has share[i] has there, on all: of a group, its first.
  void agree(std::span<double> values, std::span<const int64_t> shares) const;
  // As many values of each virtual rank, one rank's behind the other's.
  void agree_by_share(std::span<double> values) const;
  bool any(bool here) const;
  // sum_of_shares of what each virtual rank has.
  double fold(std::span<double> values) const;
  // Each tensor's gradients (0 + 1) + (2 + 3) to where its master is, then those of a group that are summed:
  // to the keeper alone, where there is one.
  void reduce(Backend& backend, Parameters& parameters) const;
  // Parameters::gradient_squares of all of each tensor, wherever it is.
  std::vector<double> gradient_squares(Parameters& parameters) const;
  // The weights on all ranks from the masters, wherever they are.
  void publish(Parameters& parameters) const;
  // Of a group, its parts of a tensor that is here, numbers of `unit` bytes: `whole` becomes all of it on the
  // first, and is empty elsewhere.
  void gather(size_t tensor, size_t unit, std::span<const std::byte> own, std::span<std::byte> whole) const;
  // Of a matrix that is whole on all of a group, or joined, who keeps its states and takes its step; none:
  // each a part's, or a small tensor's, all the same.
  std::optional<int> keeper(size_t tensor) const {
    return keepers_.empty() || keepers_[tensor] < 0 ? std::nullopt : std::optional(keepers_[tensor]);
  }
  // Of a group of several: what its rank has of a tensor, and whether some of that no rank before it has.
  const TensorPart& part(int rank, size_t tensor) const { return of_group(rank, tensor).part; }
  bool counts(int rank, size_t tensor) const { return of_group(rank, tensor).counts; }
  Collectives& group_sums() const { return *group_sums_; }
  // What the keeper alone has, as gather() does.
  void hand_over(size_t tensor, std::span<const std::byte> own, std::span<std::byte> whole) const;
  // texts[i], of the virtual rank i, to rank 0. All of one size.
  void collect(std::span<std::string> texts) const;
  void barrier() const { communicator_.barrier(); }

 private:
  int rank_of(int64_t share) const { return static_cast<int>(share / own_shares()); }
  void agree_in_data(std::span<double> values, std::span<const int64_t> shares) const;
  void agree_on_parts(Parameters& parameters, const WholeStepCost& cost);
  std::vector<bool> deal_out_in_group(const Parameters& parameters, const WholeStepCost& cost);
  void sum_in_group(Backend& backend, const Parameters& parameters, size_t tensor) const;

  Communicator& communicator_;
  std::unique_ptr<Communicator> group_, data_;
  Collectives* group_sums_ = nullptr;
  Collectives* data_sums_ = nullptr;
  int64_t shares_;
  std::vector<int64_t> owners_;  // by tensor
  // Of a group of several, by rank and tensor.
  struct OfGroup {
    TensorPart part;
    int64_t runs = 1;
    bool counts = false;  // has numbers that no rank before it has
  };
  const OfGroup& of_group(int rank, size_t tensor) const { return parts_[static_cast<size_t>(rank)][tensor]; }
  std::vector<std::vector<OfGroup>> parts_;
  std::vector<bool> meets_;   // by tensor: some numbers are on several ranks
  std::vector<int> keepers_;  // by tensor; -1: none
};

}  // namespace qiao::train
