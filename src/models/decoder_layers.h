// One decoder layer, in the two halves between which attention lies: what inference and training share.
#pragma once

#include "models/weights.h"

namespace qiao {

// Two tensors go from layer to layer: `residual`, the stream, and `update`, the last block's output that is
// not in it yet: the next norm adds it, in one op.
struct LayerStream {
  Tensor residual, update;  // [T, C]
};

// Norms the stream for attention. `updated` false: the update holds nothing yet (the first layer). Returns
// what attention projects, and sets `stream` to what goes past it, over the given memory where the context
// may.
Tensor enter_attention(nn::Context& context, const DecoderLayer& layer, bool updated, LayerStream* stream);

// From the heads' outputs [T, H * D] to the layer's: projection, feed-forward or experts, their norms. The
// results are written to `out`, which may be `stream` itself.
void leave_attention(nn::Context& context, const DecoderLayer& layer, const DecoderConfig& config,
                     const Tensor& heads, const LayerStream& stream, const LayerStream& out);

}  // namespace qiao
