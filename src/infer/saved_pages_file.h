// The file in which cached prompts outlive the process: pages of keys and values with the tokens they are of,
// as a tree for each tenant. Little endian:
//   header         "QIAO-KV\n", u32 version, u32 tokens of a page, u64 bytes of a page, u64 bytes of a
//                  sliding page, u64 pages, u64 sliding pages, identity and salt (64 and 32 hexadecimal
//                  digits), then the checksum of all that
//   pages          i64 index of the page it follows (-1: it is a prompt's first), tenant (64 digits),
//                  i32 tokens, contents, then the checksum of all that
//   sliding pages  of layers with a window: u64 index of the page of the same tokens, contents, then the
//                  checksum of all that
// A checksum is the first 16 digits of SHA-256.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace qiao {

// What made the pages. Others are of no use.
struct SavedPagesKind {
  std::string identity;     // 64 hexadecimal digits: of the model and of all that its pages' bits depend on
  int64_t page_tokens = 0;  // at most 2^16
  // Of all layers of a group (KvCache), at most 2^40; 0: it has none.
  int64_t page_bytes = 0, sliding_bytes = 0;
  int64_t vocabulary = 0;
};

struct SavedPage {
  int64_t parent = -1;  // of an earlier page of the same tenant
  std::string_view tenant;
  std::vector<TokenId> tokens;
  std::string_view contents;
};

struct SavedSlidingPage {
  int64_t beside = 0;  // the page of the same tokens
  std::string_view contents;
};

// Views into the bytes they were parsed from.
struct SavedPagesFile {
  std::string_view salt;
  std::vector<SavedPage> pages;
  std::vector<SavedSlidingPage> sliding;
};

// Throws Error(kInvalidInput) that names `source`, the offset and what was expected; every byte is checked.
SavedPagesFile parse_saved_pages(std::span<const std::byte> bytes, std::string_view source,
                                 const SavedPagesKind& kind);

// The header of so many pages, a page, and a sliding page: what parse_saved_pages takes, one after another.
std::string saved_pages_header(const SavedPagesKind& kind, std::string_view salt, int64_t pages,
                               int64_t sliding_pages);
std::string saved_page_record(const SavedPage& page);
std::string saved_page_record(const SavedSlidingPage& page);

size_t saved_pages_header_bytes();
size_t saved_page_record_bytes(const SavedPagesKind& kind);
size_t saved_sliding_page_record_bytes(const SavedPagesKind& kind);

}  // namespace qiao
