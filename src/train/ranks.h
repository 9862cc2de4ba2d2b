// A step shared out over processes: data parallel with the optimizer's states sharded (ZeRO-1, Rajbhandari et
// al. 2020). The step's sequences and the model's tensors are dealt out to virtual ranks, always as many, and
// those to the processes that there are: so the bytes that a run leaves do not depend on how many those are.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "train/objective.h"
#include "train/parameters.h"

namespace qiao::train {

inline constexpr int64_t kVirtualRanks = 4;

// The owner of each tensor, from 0 to below `shares`: the largest first, each to who has least so far.
std::vector<int64_t> deal_out(std::span<const int64_t> counts, int64_t shares);

class Ranks {
 public:
  // `virtual_ranks` 1 (for one process) or kVirtualRanks. Throws Error(kInvalidInput) where they cannot be
  // dealt out evenly to the communicator's processes. All that follows is called by all ranks alike.
  Ranks(Communicator& communicator, int64_t virtual_ranks);

  int64_t shares() const { return shares_; }
  int64_t own_shares() const { return shares_ / communicator_.size(); }
  int64_t first_share() const { return own_shares() * communicator_.rank(); }
  bool leads() const { return communicator_.rank() == 0; }
  bool is_alone() const { return communicator_.size() == 1; }
  const Communicator& communicator() const { return communicator_; }

  // Which tensors' masters are here; before Parameters::prepare.
  void share(Parameters& parameters);
  const std::vector<int64_t>& owners() const { return owners_; }  // of tensors: virtual ranks
  int64_t owner(size_t tensor) const { return owners_[tensor]; }

  // values[i] becomes what the rank that has share[i] has there, on all.
  void agree(std::span<double> values, std::span<const int64_t> shares) const;
  // As many values of each virtual rank, one rank's behind the other's.
  void agree_by_share(std::span<double> values) const;
  bool any(bool here) const;
  // sum_of_shares of what each virtual rank has.
  double fold(std::span<double> values) const;
  // Each tensor's gradients (0 + 1) + (2 + 3) to where its master is.
  void reduce(Backend& backend, Parameters& parameters) const;
  // The weights on all ranks from the masters, wherever they are.
  void publish(Backend& backend, Parameters& parameters) const;
  // texts[i], of the virtual rank i, to rank 0. All of one size.
  void collect(std::span<std::string> texts) const;
  void barrier() const { communicator_.barrier(); }

 private:
  int rank_of(int64_t share) const { return static_cast<int>(share / own_shares()); }

  Communicator& communicator_;
  int64_t shares_;
  std::vector<int64_t> owners_;  // by tensor
};

}  // namespace qiao::train
