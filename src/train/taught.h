// A completion that is taught, and as the processes of a group tell each other of it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "train/rollout.h"

namespace qiao::train {

struct Taught {
  Trajectory trajectory;
  double advantage = 0;
  std::vector<double> reference;  // by drawn token, where there is one
};

// Of each virtual rank; what training reads of them: neither texts nor messages, and no reference.
std::string bytes_of(const std::vector<std::vector<Taught>>& of_shares);
std::vector<std::vector<Taught>> taught_of(std::string_view bytes);  // that bytes_of gave

}  // namespace qiao::train
