#include "infer/saved_pages_file.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "hub/digest.h"

namespace qiao {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr std::string_view kMagic = "QIAO-KV\n";
constexpr uint32_t kVersion = 2;
constexpr size_t kChecksumDigits = 16, kTenantDigits = 64, kIdentityDigits = 64, kSaltDigits = 32;

std::string checksum(std::string_view bytes) {
  Digest digest(Digest::Kind::kSha256);
  digest.update(bytes);
  return digest.hex().substr(0, kChecksumDigits);
}

template <typename T>
void put(std::string& to, T value) {
  to.append(reinterpret_cast<const char*>(&value), sizeof value);
}

bool is_hex(std::string_view text) {
  return text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

// Takes fields one after another; the caller has seen that there are enough bytes.
class Fields {
 public:
  explicit Fields(std::string_view bytes) : rest_(bytes) {}
  template <typename T>
  T take() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  std::string_view take(size_t count) {
    QIAO_ASSERT(count <= rest_.size());
    const std::string_view taken = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return taken;
  }

 private:
  std::string_view rest_;
};

class Parser {
 public:
  Parser(std::string_view bytes, std::string_view source, const SavedPagesKind& kind)
      : bytes_(bytes), source_(source), kind_(kind) {}

  SavedPagesFile parse() {
    SavedPagesFile file;
    const auto [pages, sliding] = parse_header(&file);
    file.pages.reserve(pages);
    for (size_t i = 0; i < pages; ++i) file.pages.push_back(parse_page(i, file.pages));
    file.sliding.reserve(sliding);
    for (size_t i = 0; i < sliding; ++i) file.sliding.push_back(parse_sliding_page(i, pages));
    return file;
  }

 private:
  [[noreturn]] void refuse(size_t offset, const std::string& what) const {
    throw_error(ErrorKind::kInvalidInput, "{}: offset {}: {}", source_, offset, what);
  }

  // Bytes [offset, offset + size) without their checksum, which is right.
  std::string_view checked(size_t offset, size_t size) const {
    const std::string_view content = bytes_.substr(offset, size - kChecksumDigits);
    if (bytes_.substr(offset + content.size(), kChecksumDigits) != checksum(content))
      refuse(offset,
             fmt::format("the checksum of {} bytes from here on does not match them", content.size()));
    return content;
  }

  // Returns how many pages follow, and how many sliding ones.
  std::pair<size_t, size_t> parse_header(SavedPagesFile* file) {
    if (!bytes_.starts_with(kMagic)) refuse(0, "not a file of saved pages");
    if (bytes_.size() < saved_pages_header_bytes())
      refuse(0, fmt::format("{} bytes; a header has {}", bytes_.size(), saved_pages_header_bytes()));
    Fields fields(checked(0, saved_pages_header_bytes()));
    fields.take(kMagic.size());
    const auto version = fields.take<uint32_t>();
    if (version != kVersion) refuse(8, fmt::format("version {}, and {} was expected", version, kVersion));
    const auto page_tokens = fields.take<uint32_t>();
    const auto page_bytes = fields.take<uint64_t>(), sliding_bytes = fields.take<uint64_t>();
    const auto pages = fields.take<uint64_t>(), sliding_pages = fields.take<uint64_t>();
    if (page_tokens != kind_.page_tokens || page_bytes != static_cast<uint64_t>(kind_.page_bytes) ||
        sliding_bytes != static_cast<uint64_t>(kind_.sliding_bytes)) {
      refuse(12, fmt::format("pages of {} tokens and {} and {} bytes, and {} tokens and {} and {} bytes were "
                             "expected",
                             page_tokens, page_bytes, sliding_bytes, kind_.page_tokens, kind_.page_bytes,
                             kind_.sliding_bytes));
    }
    if (fields.take(kIdentityDigits) != kind_.identity) refuse(48, "pages of another model");
    file->salt = fields.take(kSaltDigits);
    if (!is_hex(file->salt)) refuse(112, "the salt is not hexadecimal");
    const size_t room = bytes_.size() - saved_pages_header_bytes();
    const size_t record = saved_page_record_bytes(kind_), sliding = saved_sliding_page_record_bytes(kind_);
    const bool too_many = pages > room / record || (sliding_pages > 0 && kind_.sliding_bytes == 0);
    const size_t rest = too_many ? 0 : room - static_cast<size_t>(pages) * record;
    if (too_many || rest % sliding != 0 || rest / sliding != sliding_pages) {
      refuse(32, fmt::format("{} pages of {} bytes and {} of {} do not make the {} that follow", pages,
                             record, sliding_pages, sliding, room));
    }
    first_sliding_ = saved_pages_header_bytes() + static_cast<size_t>(pages) * record;
    return {static_cast<size_t>(pages), static_cast<size_t>(sliding_pages)};
  }

  SavedPage parse_page(size_t index, const std::vector<SavedPage>& before) const {
    const size_t record = saved_page_record_bytes(kind_),
                 offset = saved_pages_header_bytes() + index * record;
    Fields fields(checked(offset, record));
    SavedPage page;
    page.parent = fields.take<int64_t>();
    if (page.parent < -1 || page.parent >= static_cast<int64_t>(index))
      refuse(offset, fmt::format("page {} follows page {}", index, page.parent));
    page.tenant = fields.take(kTenantDigits);
    if (!is_hex(page.tenant)) refuse(offset + 8, "the tenant is not hexadecimal");
    if (page.parent >= 0 && before[static_cast<size_t>(page.parent)].tenant != page.tenant)
      refuse(offset + 8, fmt::format("page {} follows another tenant's", index));
    page.tokens.resize(static_cast<size_t>(kind_.page_tokens));
    const std::string_view tokens = fields.take(page.tokens.size() * sizeof(TokenId));
    std::memcpy(page.tokens.data(), tokens.data(), tokens.size());
    for (const TokenId id : page.tokens) {
      if (id < 0 || id >= kind_.vocabulary)
        refuse(offset + 72, fmt::format("token {} is not in the vocabulary of {}", id, kind_.vocabulary));
    }
    page.contents = fields.take(static_cast<size_t>(kind_.page_bytes));
    return page;
  }

  SavedSlidingPage parse_sliding_page(size_t index, size_t pages) const {
    const size_t record = saved_sliding_page_record_bytes(kind_), offset = first_sliding_ + index * record;
    Fields fields(checked(offset, record));
    const auto beside = fields.take<uint64_t>();
    if (beside >= pages) refuse(offset, fmt::format("sliding page {} lies beside page {}", index, beside));
    return {static_cast<int64_t>(beside), fields.take(static_cast<size_t>(kind_.sliding_bytes))};
  }

  std::string_view bytes_, source_;
  const SavedPagesKind& kind_;
  size_t first_sliding_ = 0;  // offset
};

}  // namespace

size_t saved_pages_header_bytes() {
  return kMagic.size() + 2 * sizeof(uint32_t) + 4 * sizeof(uint64_t) + kIdentityDigits + kSaltDigits +
         kChecksumDigits;
}

size_t saved_page_record_bytes(const SavedPagesKind& kind) {
  QIAO_ASSERT(kind.page_tokens > 0 && kind.page_tokens <= 1 << 16);
  QIAO_ASSERT(kind.page_bytes >= 0 && kind.page_bytes <= int64_t{1} << 40);
  return sizeof(int64_t) + kTenantDigits + static_cast<size_t>(kind.page_tokens) * sizeof(TokenId) +
         static_cast<size_t>(kind.page_bytes) + kChecksumDigits;
}

size_t saved_sliding_page_record_bytes(const SavedPagesKind& kind) {
  QIAO_ASSERT(kind.sliding_bytes >= 0 && kind.sliding_bytes <= int64_t{1} << 40);
  return sizeof(uint64_t) + static_cast<size_t>(kind.sliding_bytes) + kChecksumDigits;
}

std::string saved_pages_header(const SavedPagesKind& kind, std::string_view salt, int64_t pages,
                               int64_t sliding_pages) {
  QIAO_ASSERT(kind.identity.size() == kIdentityDigits && salt.size() == kSaltDigits);
  std::string header(kMagic);
  put(header, kVersion);
  put(header, static_cast<uint32_t>(kind.page_tokens));
  for (const int64_t number : {kind.page_bytes, kind.sliding_bytes, pages, sliding_pages})
    put(header, static_cast<uint64_t>(number));
  header += kind.identity;
  header += salt;
  return header + checksum(header);
}

std::string saved_page_record(const SavedPage& page) {
  QIAO_ASSERT(page.tenant.size() == kTenantDigits);
  std::string record;
  record.reserve(page.contents.size() + page.tokens.size() * sizeof(TokenId) + 128);
  put(record, page.parent);
  record += page.tenant;
  record.append(reinterpret_cast<const char*>(page.tokens.data()), page.tokens.size() * sizeof(TokenId));
  record += page.contents;
  record += checksum(record);
  return record;
}

std::string saved_page_record(const SavedSlidingPage& page) {
  std::string record;
  record.reserve(page.contents.size() + 32);
  put(record, static_cast<uint64_t>(page.beside));
  record += page.contents;
  record += checksum(record);
  return record;
}

SavedPagesFile parse_saved_pages(std::span<const std::byte> bytes, std::string_view source,
                                 const SavedPagesKind& kind) {
  return Parser({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, source, kind).parse();
}

}  // namespace qiao
