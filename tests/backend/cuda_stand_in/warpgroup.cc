// wgmma: what a warp has issued and not waited for. A product reads shared memory when it is waited for, the
// last moment that a device may take; until then its sums are NaN.
#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "backend/cuda_stand_in/cuda_bf16.h"
#include "backend/cuda_stand_in/cuda_runtime.h"
#include "base/error.h"

namespace qiao::stand_in {
namespace {

constexpr int kDepth = 16;

struct Product {
  int sums;  // of a lane
  uint64_t b;
  bool is_f16;  // else BF16
  uint32_t a[32][4];
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
};

// The instructions of four warps, which are to be the same ones.
struct WarpgroupProducts {
  struct Issued {
    uint64_t b;
    int sums;
    bool is_f16;
    unsigned line;
    bool operator==(const Issued&) const = default;
  };
  std::vector<Issued> issued;
  size_t count[4] = {};
};

std::vector<WarpProducts> warps;
std::vector<WarpgroupProducts> warpgroups;

float element(const Product& product, uint32_t word, int i) {
  const auto bits = static_cast<uint16_t>(word >> (16 * i));
  return product.is_f16 ? f16_to_float(bits) : bf16_to_float(bits);
}

// B[k][n] by the descriptor: rows of 128 bytes in groups of 8, in which the address's bits 7 to 9 are added
// to bits 4 to 6.
void read_b(const Product& product, std::vector<double>& b, int columns) {
  const auto field = [&](int from) { return static_cast<uint32_t>(product.b >> from & 0x3fff) << 4; };
  const uint32_t start = field(0), stride = field(32);
  if (product.b >> 62 != 1 || (product.b >> 49 & 7) != 0 || start % 1024 >= 128) {
    fault(product.where, "wgmma of rows that are not in the 128-byte swizzle from a multiple of 1024 on");
  }
  b.resize(static_cast<size_t>(kDepth * columns));
  for (int n = 0; n < columns; ++n) {
    for (int k = 0; k < kDepth; k += 8) {  // a piece of 16 bytes
      uint32_t address =
          start + static_cast<uint32_t>(n / 8) * stride + static_cast<uint32_t>(n % 8 * 128 + k * 2);
      address ^= (address >> 7 & 7) << 4;
      const std::byte* at = dynamic_shared() + address;
      if (!in_shared(at, 16)) fault(product.where, "wgmma of rows beyond the shared memory");
      uint16_t bits[8];
      std::memcpy(bits, at, sizeof bits);
      for (int i = 0; i < 8; ++i) {
        b[static_cast<size_t>((k + i) * columns + n)] = static_cast<double>(element(product, bits[i], 0));
      }
    }
  }
}

Held& held_of(WarpProducts& warp, float* const (&d)[32]) {
  return *std::find_if(warp.held.begin(), warp.held.end(), [&](const Held& h) { return h.d[0] == d[0]; });
}

// One rounding, after the product's sum in float64, as mma.sync's stand-in.
void make(WarpProducts& warp, const Product& product) {
  const int columns = 2 * product.sums;
  static std::vector<double> b;
  read_b(product, b, columns);
  Held& held = held_of(warp, product.d);
  for (int row = 0; row < 16; ++row) {
    double a[kDepth];
    for (int k = 0; k < kDepth; ++k) {
      const uint32_t word = product.a[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
      a[k] = static_cast<double>(element(product, word, k % 2));
    }
    for (int tile = 0; tile < columns; tile += 8) {
      double sums[8] = {};
      for (int k = 0; k < kDepth; ++k) {
        for (int n = 0; n < 8; ++n) sums[n] += a[k] * b[static_cast<size_t>(k * columns + tile + n)];
      }
      for (int n = 0; n < 8; ++n) {
        const int lane = row % 8 * 4 + n / 2, i = tile / 2 + row / 8 * 2 + n % 2;
        float& value = held.values[static_cast<size_t>(lane * product.sums + i)];
        value = static_cast<float>(static_cast<double>(value) + sums[n]);
      }
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
  bool is_f16;
  const Where* where;
};

void issue(void* const (&lanes)[32], uint32_t) {
  const auto at = [&](unsigned lane) { return static_cast<Issue*>(lanes[lane]); };
  const Where& where = *at(0)->where;
  WarpProducts& warp = warps[warp_index()];
  if (!warp.begun) fault(where, "wgmma without a fence since its registers were last touched");
  if (warps.size() % 4 != 0) fault(where, "wgmma in a block that is not of whole warpgroups");
  Product product{at(0)->sums, at(0)->b, at(0)->is_f16, {}, {}, where};
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (at(lane)->b != product.b) fault(where, "wgmma of lanes with different descriptors");
    std::memcpy(product.a[lane], at(lane)->a, sizeof product.a[lane]);
    product.d[lane] = at(lane)->d;
  }
  WarpgroupProducts& group = warpgroups[warp_index() / 4];
  const WarpgroupProducts::Issued own{product.b, product.sums, product.is_f16, where.line()};
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
}

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

void multiply_async(float* d, int sums, const uint32_t* a, uint64_t b, bool is_f16, const Where& where) {
  Issue mine{d, a, sums, b, is_f16, &where};
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
