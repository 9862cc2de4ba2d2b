// wgmma: what a warp has issued and not waited for. A product reads shared memory when it is waited for, the
// last moment that a device may take; until then its sums are NaN. A step of 16 in BF16 is rounded once; one
// of 32 in E4M3 loses what Hopper is known to lose (ops/linear.h).
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "backend/cuda_stand_in/cuda_bf16.h"
#include "backend/cuda_stand_in/cuda_fp16.h"
#include "backend/cuda_stand_in/cuda_runtime.h"
#include "base/error.h"

namespace qiao::stand_in {
namespace {

constexpr int kRowBytes = 32;  // of a step: 16 numbers of 16 bits or 32 of E4M3
constexpr int kE4m3SumBits = 13;

struct Product {
  int sums;  // of a lane
  uint64_t b;
  Multiply kind;
  uint32_t a[32][4];
  const uint32_t* registers[32];  // that a device reads it from, until it is waited for
  float* d[32];
  Where where;
};

// Sums that products are on their way to.
struct Held {
  float* d[32];
  std::vector<float> values;  // [lane][sums]
  int products = 0;
};

struct WarpProducts {
  std::vector<std::vector<Product>> groups;
  std::vector<Product> open_group;
  std::vector<Held> held;
  bool begun = false;  // nobody has touched registers since
  bool shows = true;   // what it has waited for is shown
};

// The instructions of four warps, which are to be the same ones.
struct WarpgroupProducts {
  struct Issued {
    uint64_t b;
    int sums;
    Multiply kind;
    unsigned line;
    bool operator==(const Issued&) const = default;
  };
  std::vector<Issued> issued;
  size_t count[4] = {};
};

std::vector<WarpProducts> warps;
std::vector<WarpgroupProducts> warpgroups;
bool shown;  // anything in shared memory to the tensor cores, in this block

// Rows of B^T, kRowBytes each, by the descriptor: in groups of 8, of 128 bytes in which the address's bits 7
// to 9 are added to bits 4 to 6, or of two pieces of 16 bytes somewhere. Or 16 rows of B in such groups
// (`stride` from one to the next), in blocks of 64 columns (`apart`).
void read_b(const Product& product, std::vector<uint8_t>& b, int columns) {
  const auto field = [&](int from) { return static_cast<uint32_t>(product.b >> from & 0x3fff) << 4; };
  const uint32_t start = field(0), apart = field(16), stride = field(32);
  const bool twisted = product.b >> 62 == 1;
  if (!shown) fault(product.where, "wgmma of rows that were stored without multiply_stored");
  if ((product.b >> 49 & 7) != 0 || (twisted ? start % 1024 >= 128 : product.b >> 62 != 0)) {
    fault(product.where,
          "wgmma of rows that are neither in the 128-byte swizzle from a multiple of 1024 on nor plain");
  }
  b.resize(static_cast<size_t>(columns) * kRowBytes);
  if (product.kind.of_columns) {
    if (!twisted || start % 1024 != 0)
      fault(product.where, "wgmma of B's rows that are not from a multiple of 1024 on");
    for (uint32_t k = 0; k < 16; ++k) {
      for (uint32_t n = 0; n < static_cast<uint32_t>(columns); n += 8) {
        uint32_t address = start + n / 64 * apart + k / 8 * stride + k % 8 * 128 + n % 64 * 2;
        address ^= (address >> 7 & 7) << 4;
        const std::byte* at = dynamic_shared() + address;
        if (!in_shared(at, 16)) fault(product.where, "wgmma of rows beyond the shared memory");
        for (uint32_t i = 0; i < 8; ++i) std::memcpy(b.data() + (n + i) * kRowBytes + 2 * k, at + 2 * i, 2);
      }
    }
    return;
  }
  for (int n = 0; n < columns; ++n) {
    for (int piece = 0; piece < 2; ++piece) {
      const auto row = static_cast<uint32_t>(n % 8), half = static_cast<uint32_t>(piece);
      uint32_t address = start + static_cast<uint32_t>(n / 8) * stride;
      address += twisted ? row * 128 + half * 16 : row * 16 + half * apart;
      if (twisted) address ^= (address >> 7 & 7) << 4;
      const std::byte* at = dynamic_shared() + address;
      if (!in_shared(at, 16)) fault(product.where, "wgmma of rows beyond the shared memory");
      std::memcpy(b.data() + n * kRowBytes + piece * 16, at, 16);
    }
  }
}

// Of row `row` of A, kRowBytes.
void read_a(const Product& product, int row, uint8_t* to) {
  for (int word = 0; word < kRowBytes / 4; ++word) {
    std::memcpy(to + 4 * word, &product.a[row % 8 * 4 + word % 4][row / 8 + word / 4 * 2], 4);
  }
}

template <float (*kRead)(uint16_t)>
double number_at(const uint8_t* bytes, int k) {
  uint16_t bits;
  std::memcpy(&bits, bytes + 2 * k, 2);
  return static_cast<double>(kRead(bits));
}

// Eight columns' sums with the products of a step: one rounding, after the products' sum in float64, as
// mma.sync's stand-in.
template <float (*kRead)(uint16_t)>
void add_16_bits(const uint8_t* a, const uint8_t* b, float* const (&sums)[8]) {
  for (int n = 0; n < 8; ++n) {
    double sum = 0;
    for (int k = 0; k < kRowBytes / 2; ++k) {
      sum += number_at<kRead>(a, k) * number_at<kRead>(b + n * kRowBytes, k);
    }
    *sums[n] = static_cast<float>(static_cast<double>(*sums[n]) + sum);
  }
}

// Products and the sum so far are shifted to the largest of them, and what is below kE4m3SumBits bits of
// fraction there is cut off.
void add_e4m3(const uint8_t* a, const uint8_t* b, float* const (&sums)[8]) {
  static const auto values = [] {
    std::array<float, 256> all;
    for (size_t i = 0; i < all.size(); ++i) all[i] = e4m3_to_float(static_cast<uint8_t>(i));
    return all;
  }();
  for (int n = 0; n < 8; ++n) {
    float addends[kRowBytes + 1];
    for (int k = 0; k < kRowBytes; ++k) addends[k] = values[a[k]] * values[b[n * kRowBytes + k]];
    addends[kRowBytes] = *sums[n];
    float largest = 0, all = 0;
    for (const float x : addends) largest = std::max(largest, std::abs(x)), all += x;
    if (std::isnan(all) || largest == 0) {
      *sums[n] = all;
      continue;
    }
    const float unit = std::bit_cast<float>(std::bit_cast<uint32_t>(largest) & 0x7f800000u) *
                       std::ldexp(1.0f, -kE4m3SumBits);
    const float inverse = 1 / unit;
    int units = 0;
    for (const float x : addends) units += static_cast<int>(x * inverse);
    *sums[n] = static_cast<float>(units) * unit;
  }
}

Held& held_of(WarpProducts& warp, float* const (&d)[32]) {
  return *std::find_if(warp.held.begin(), warp.held.end(), [&](const Held& h) { return h.d[0] == d[0]; });
}

void make(WarpProducts& warp, const Product& product) {
  const int columns = 2 * product.sums;
  for (int lane = 0; lane < 32; ++lane) {
    if (std::memcmp(product.a[lane], product.registers[lane], sizeof product.a[lane]) != 0)
      fault(product.where, "wgmma whose registers of A were written before it was waited for");
  }
  static std::vector<uint8_t> b;
  read_b(product, b, columns);
  Held& held = held_of(warp, product.d);
  if (!product.kind.adds) std::fill(held.values.begin(), held.values.end(), 0.0f);
  const Multiply::Type type = product.kind.type;
  const auto add = type == Multiply::kBf16  ? add_16_bits<bf16_to_float>
                   : type == Multiply::kF16 ? add_16_bits<f16_to_float>
                                            : add_e4m3;
  for (int row = 0; row < 16; ++row) {
    uint8_t a[kRowBytes];
    read_a(product, row, a);
    for (int tile = 0; tile < columns; tile += 8) {
      float* sums[8];
      for (int n = 0; n < 8; ++n) {
        const int lane = row % 8 * 4 + n / 2, i = tile / 2 + row / 8 * 2 + n % 2;
        sums[n] = &held.values[static_cast<size_t>(lane * product.sums + i)];
      }
      add(a, b.data() + tile * kRowBytes, sums);
    }
  }
  if (--held.products != 0) return;
  for (int lane = 0; lane < 32; ++lane) {
    std::memcpy(held.d[lane], held.values.data() + lane * product.sums,
                static_cast<size_t>(product.sums) * 4);
  }
  warp.held.erase(warp.held.begin() + (&held - warp.held.data()));
}

struct Issue {
  float* d;
  const uint32_t* a;
  int sums;
  uint64_t b;
  Multiply kind;
  const Where* where;
};

void issue(void* const (&lanes)[32], uint32_t) {
  const auto at = [&](unsigned lane) { return static_cast<Issue*>(lanes[lane]); };
  const Where& where = *at(0)->where;
  WarpProducts& warp = warps[warp_index()];
  if (!warp.begun) fault(where, "wgmma without a fence since its registers were last touched");
  if (!warp.shows) fault(where, "wgmma of rows that were copied, without multiply_stored since they came");
  if (warps.size() % 4 != 0) fault(where, "wgmma in a block that is not of whole warpgroups");
  Product product{at(0)->sums, at(0)->b, at(0)->kind, {}, {}, {}, where};
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (at(lane)->b != product.b) fault(where, "wgmma of lanes with different descriptors");
    std::memcpy(product.a[lane], at(lane)->a, sizeof product.a[lane]);
    product.registers[lane] = at(lane)->a;
    product.d[lane] = at(lane)->d;
  }
  WarpgroupProducts& group = warpgroups[warp_index() / 4];
  const WarpgroupProducts::Issued own{product.b, product.sums, product.kind, where.line()};
  const size_t index = group.count[warp_index() % 4]++;
  if (index == group.issued.size()) group.issued.push_back(own);
  if (group.issued[index] != own) fault(where, "wgmma that the warpgroup's other warps are not at");
  const auto same = [&](const Held& h) { return h.d[0] == product.d[0]; };
  if (std::none_of(warp.held.begin(), warp.held.end(), same)) {
    Held& held = warp.held.emplace_back();
    for (int lane = 0; lane < 32; ++lane) {
      float* d = held.d[lane] = product.d[lane];
      held.values.insert(held.values.end(), d, d + product.sums);
      std::fill_n(d, product.sums, std::numeric_limits<float>::quiet_NaN());
    }
  }
  ++held_of(warp, product.d).products;
  warp.open_group.push_back(product);
}

}  // namespace

void begin_products(size_t warp_count) {
  warps.assign(warp_count, {});
  warpgroups.assign((warp_count + 3) / 4, {});
  shown = false;
}

void show_to_products() { shown = warps[warp_index()].shows = true; }
void hide_from_products() { warps[warp_index()].shows = false; }

const char* unfinished_products() {
  for (const WarpProducts& warp : warps) {
    if (!warp.held.empty()) return "a warp ends with products that it has not waited for";
  }
  for (const WarpgroupProducts& group : warpgroups) {
    for (const size_t count : group.count) {
      if (count != group.issued.size()) return "wgmma that some warps of a warpgroup alone came to";
    }
  }
  return nullptr;
}

void multiply_begin(const Where& where) {
  char nothing = 0;
  together(
      0xffffffffu, "wgmma.fence", &nothing,
      [](void* const(&)[32], uint32_t) { warps[warp_index()].begun = true; }, where);
}

void multiply_async(float* d, int sums, const uint32_t* a, uint64_t b, Multiply kind, const Where& where) {
  Issue mine{d, a, sums, b, kind, &where};
  together(0xffffffffu, "wgmma.mma_async", &mine, issue, where);
}

void multiply_commit(const Where& where) {
  char nothing = 0;
  together(
      0xffffffffu, "wgmma.commit_group", &nothing,
      [](void* const(&)[32], uint32_t) {
        WarpProducts& warp = warps[warp_index()];
        warp.groups.push_back(std::move(warp.open_group));
        warp.open_group.clear();
      },
      where);
}

void multiply_wait(int groups_left, const Where& where) {
  together(
      0xffffffffu, "wgmma.wait_group", &groups_left,
      [](void* const(&lanes)[32], uint32_t) {
        WarpProducts& warp = warps[warp_index()];
        while (static_cast<int>(warp.groups.size()) > *static_cast<int*>(lanes[0])) {
          for (const Product& product : warp.groups.front()) make(warp, product);
          warp.groups.erase(warp.groups.begin());
        }
        warp.begun = false;
      },
      where);
}

}  // namespace qiao::stand_in
