// One decoder layer, in the two halves between which attention lies: what inference and training share.
#pragma once

#include "models/weights.h"

namespace qiao {

// What goes from layer to layer: `residual`, the stream, and `update`, the last block's output that is not in
// it yet: the next norm adds it, in one op. Without an update blocks add to the stream themselves, and the
// products that read it norm it: the same bits, fewer launches, less memory passed over (adds_at_once).
struct LayerStream {
  Tensor residual, update;  // [T, C]
};

// Whether a pass that no tape records may do without an update: not where what a block makes is summed over
// ranks or normed before, an adapter adds to it, or experts add theirs up first.
bool adds_at_once(const DecoderConfig& config, const Collectives* ranks, bool with_adapters);

// What attention projects: rows, which `norm` norms first if there is one.
struct AttentionInput {
  Tensor rows;
  const nn::RmsNormLayer* norm = nullptr;
};

// Norms the stream for attention, or says by what. `updated` false: the update holds nothing yet (the first
// layer). Sets `stream` to what goes past attention, over the given memory where the context may.
AttentionInput enter_attention(nn::Context& context, const DecoderLayer& layer, bool updated,
                               LayerStream* stream);

// From the heads' outputs [T, H * D] to the layer's: projection, feed-forward or experts, their norms. The
// results are written to `out`, which may be `stream` itself.
void leave_attention(nn::Context& context, const DecoderLayer& layer, const DecoderConfig& config,
                     const Tensor& heads, const LayerStream& stream, const LayerStream& out);

}  // namespace qiao
