// Reads a model's rotary scaling from its configuration.
#pragma once

#include "models/config.h"
#include "models/families.h"

namespace qiao {

// Fills config.rope and, where sliding layers differ, config.rope_local. The other fields are read already.
void read_rope(const ConfigReader& reader, const Family& family, int64_t context, DecoderConfig& config);

}  // namespace qiao
