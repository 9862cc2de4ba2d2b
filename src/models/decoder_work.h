#pragma once

#include "models/decoder.h"
#include "models/weights.h"

namespace qiao {

DecoderWork decoder_work(const DecoderWeights& weights);

}  // namespace qiao
