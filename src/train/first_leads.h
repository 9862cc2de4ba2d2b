// The engine on a model that several processes train together: the first of them runs it.
#pragma once

#include <functional>

#include "models/decoder.h"
#include "train/ranks.h"

namespace qiao::train {

// Called by all of a group alike. The first runs `body`, which may have an engine take steps with `decoder`;
// the others take part in those until it is over. Where `body` throws the first has to end, by which the
// others do, as with any rank that is lost. Of one process, or without `ranks`, it is body().
void first_leads(const Ranks* ranks, const Decoder& decoder, const std::function<void()>& body);

}  // namespace qiao::train
