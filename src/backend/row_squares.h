// What searching by distance needs of a table beside its rows.
#pragma once

#include "backend/backend.h"

namespace qiao {

// |table[v]|^2 of each row, F32 [V] in the chip's memory: of the dequantized values, added up in float64 in
// ascending order and rounded once, so the same on every chip. By way of the host: made once, with the table.
// Throws Error(kTooLarge) as Backend::allocate does.
Buffer make_row_squares(Backend& chip, const Weight& table);

}  // namespace qiao
