#include "formats/ggml_types.h"

#include <array>

namespace qiao {
namespace {

struct Row {
  uint32_t number;
  std::string_view name;
  int block_elements;
  int block_bytes;
};

// Names that dtype_named() knows take their block sizes from there.
constexpr std::array<Row, 43> kRows = {{
    {0, "F32"},
    {1, "F16"},
    {2, "Q4_0"},
    {3, "Q4_1"},
    {4, "Q4_2"},
    {5, "Q4_3"},
    {6, "Q5_0"},
    {7, "Q5_1"},
    {8, "Q8_0"},
    {9, "Q8_1", 32, 36},
    {10, "Q2_K"},
    {11, "Q3_K"},
    {12, "Q4_K"},
    {13, "Q5_K"},
    {14, "Q6_K"},
    {15, "Q8_K", 256, 292},
    {16, "IQ2_XXS", 256, 66},
    {17, "IQ2_XS", 256, 74},
    {18, "IQ3_XXS", 256, 98},
    {19, "IQ1_S", 256, 50},
    {20, "IQ4_NL"},
    {21, "IQ3_S", 256, 110},
    {22, "IQ2_S", 256, 82},
    {23, "IQ4_XS"},
    {24, "I8"},
    {25, "I16"},
    {26, "I32"},
    {27, "I64"},
    {28, "F64"},
    {29, "IQ1_M", 256, 56},
    {30, "BF16"},
    {31, "Q4_0_4_4"},
    {32, "Q4_0_4_8"},
    {33, "Q4_0_8_8"},
    {34, "TQ1_0", 256, 54},
    {35, "TQ2_0", 256, 66},
    {36, "IQ4_NL_4_4"},
    {37, "IQ4_NL_4_8"},
    {38, "IQ4_NL_8_8"},
    {39, "MXFP4"},
    {40, "NVFP4", 64, 36},
    {41, "Q1_0", 128, 18},
    {42, "Q2_0", 64, 18},
}};

}  // namespace

std::optional<GgmlType> ggml_type(uint32_t number) {
  if (number >= kRows.size()) return std::nullopt;
  const Row& row = kRows[number];
  GgmlType type{row.name, row.block_elements, row.block_bytes, dtype_named(row.name)};
  if (type.dtype) {
    type.block_elements = traits(*type.dtype).block_elements;
    type.block_bytes = traits(*type.dtype).block_bytes;
  }
  return type;
}

}  // namespace qiao
