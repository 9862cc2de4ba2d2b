// A text of each rank, brought to the first.
#pragma once

#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace qiao {

// Called by all ranks: the texts of all of them on the first, by rank; nothing on others.
std::vector<std::string> gather_texts(Communicator& communicator, const std::string& own);

}  // namespace qiao
