// Collectives through the host's memory, by a Communicator: for any chip.
#pragma once

#include <memory>

#include "backend/backend.h"
#include "backend/collectives.h"

namespace qiao {

// Both outlive what is made.
std::unique_ptr<Collectives> make_host_collectives(Backend& backend, Communicator& communicator);

}  // namespace qiao
