// A text of each rank, brought to the first, or of the first, brought to all.
#pragma once

#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace qiao {

// Called by all ranks: the texts of all of them on the first, by rank; nothing on others.
std::vector<std::string> gather_texts(Communicator& communicator, const std::string& own);
// Called by all ranks: the first's text.
std::string text_of_first(Communicator& communicator, std::string own);

}  // namespace qiao
