#include "infer/saved_pages.h"

#include <algorithm>
#include <random>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/version.h"
#include "hub/digest.h"

namespace qiao {
namespace {

constexpr std::string_view kSuffix = ".kvpages";

std::string_view bytes_of(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

// Of everything on which the bits of a page depend.
std::string identity_of(const LanguageModel& model, const KvCache& cache) {
  Digest digest(Digest::Kind::kSha256);
  const std::shared_ptr<ModelFiles> files = ModelFiles::open(model.path());
  for (const MappedFile& file : files->files()) digest.update(sha256_of_file(file.path()));
  if (files->kind() == ModelFiles::Kind::kHuggingFace) digest.update(dump_json(files->config()));
  const KvPagesSpec& spec = cache.layer(0).spec();
  digest.update(fmt::format("\n{}\n{}\n{}\n{}\n{} {} {}\n", version(), model.backend().chip(),
                            name_without_threads(model.backend().describe()),
                            static_cast<int>(model.decoder().work().compute), traits(spec.dtype).name,
                            spec.page_tokens, model.decoder().ranks()));
  const DecoderConfig& config = model.config();
  for (const RopeTable* table : {&config.rope, &config.rope_local}) {
    digest.update(fmt::format("{} {}\n", table->inverse_frequencies.size(), table->scale));
    digest.update(bytes_of(table->inverse_frequencies));
  }
  return digest.hex();
}

std::string random_salt() {
  std::random_device entropy;
  std::string salt;
  while (salt.size() < 32) salt += fmt::format("{:08x}", static_cast<uint32_t>(entropy()));
  return salt;
}

std::string megabytes(uint64_t bytes) {
  return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / 0x1p20);
}

}  // namespace

SavedPages::SavedPages(const LanguageModel& model, KvCache& cache, PagePools& pools, PrefixTree& tree,
                       const std::filesystem::path& directory, uint64_t most_bytes)
    : decoder_(model.decoder()),
      cache_(cache),
      pools_(pools),
      tree_(tree),
      directory_(directory),
      most_bytes_(most_bytes),
      salt_(random_salt()) {
  std::error_code problem;
  std::filesystem::create_directories(directory, problem);
  if (problem) {
    throw_error(ErrorKind::kIo, "{}: cannot make the directory: {}", directory.string(), problem.message());
  }
  kind_.identity = identity_of(model, cache);
  kind_.page_tokens = cache.page_tokens();
  kind_.vocabulary = model.config().vocabulary_size;
  kind_.page_bytes = decoder_.page_bytes(cache, false);
  kind_.sliding_bytes = decoder_.page_bytes(cache, true);
  path_ = directory / (kind_.identity.substr(0, 24) + std::string(kSuffix));
}

std::string SavedPages::tenant_name(std::string_view tenant) const {
  Digest digest(Digest::Kind::kSha256);
  digest.update(salt_);
  digest.update(tenant);
  return digest.hex();
}

std::string SavedPages::restore() {
  if (!std::filesystem::exists(path_)) return "";
  int64_t restored = 0;
  try {
    const MappedFile file = MappedFile::open(path_);
    const SavedPagesFile saved = parse_saved_pages(file.bytes(), path_.string(), kind_);
    salt_ = saved.salt;
    restore_from(saved, &restored);
  } catch (const Error& e) {
    return fmt::format("Saved prompts are ignored: {}", e.what());
  }
  return fmt::format("Restored {} pages of cached prompts ({} tokens) from {}", restored,
                     restored * kind_.page_tokens, path_.string());
}

void SavedPages::restore_from(const SavedPagesFile& file, int64_t* restored) {
  std::vector<int32_t> page_of(file.pages.size(), -1);  // -1: left out, and so are those that follow it
  PageTables added;
  for (size_t i = 0; i < file.pages.size() && pools_.full.free() > 0; ++i) {
    const SavedPage& saved = file.pages[i];
    const int32_t parent = saved.parent < 0 ? -1 : page_of[static_cast<size_t>(saved.parent)];
    if (saved.parent >= 0 && parent < 0) continue;
    const int32_t page = pools_.full.allocate();
    if (!tree_.add(saved.tenant, parent, saved.tokens, page)) {  // twice in the file
      pools_.full.unref(page);
      continue;
    }
    import_page(page, false, saved.contents);
    page_of[i] = page;
    added.full.push_back(page);
  }
  for (size_t i = 0; i < file.sliding.size() && pools_.sliding.free() > 0; ++i) {
    const SavedSlidingPage& saved = file.sliding[i];
    const int32_t beside = page_of[static_cast<size_t>(saved.beside)];
    if (beside < 0) continue;
    const int32_t page = pools_.sliding.allocate();
    if (!tree_.add_sliding(beside, page)) {  // twice in the file
      pools_.sliding.unref(page);
      continue;
    }
    import_page(page, true, saved.contents);
    added.sliding.push_back(page);
  }
  tree_.release(added);  // the first, which was used last, becomes the most recent again
  *restored = std::ssize(added.full);
}

void SavedPages::import_page(int32_t page, bool sliding, std::string_view contents) {
  decoder_.import_page(cache_, page, sliding, std::as_bytes(std::span(contents)));
}

void SavedPages::export_page(int32_t page, bool sliding, std::string& contents) const {
  contents.resize(static_cast<size_t>(sliding ? kind_.sliding_bytes : kind_.page_bytes));
  decoder_.export_page(cache_, page, sliding, std::as_writable_bytes(std::span(contents)));
}

std::string SavedPages::save() {
  try {
    const int64_t saved = write();
    make_room();
    const uint64_t bytes = saved > 0 ? std::filesystem::file_size(path_) : 0;
    return fmt::format("Saved {} pages of cached prompts ({}) to {}", saved, megabytes(bytes),
                       path_.string());
  } catch (const std::exception& e) {
    return fmt::format("Cached prompts are not saved: {}", e.what());
  }
}

int64_t SavedPages::write() {
  const uint64_t header = saved_pages_header_bytes();
  const PrefixTree::Contents tree =
      tree_.newest(most_bytes_ - std::min(header, most_bytes_), saved_page_record_bytes(kind_),
                   saved_sliding_page_record_bytes(kind_));
  if (tree.pages.empty()) return 0;  // what was saved before may still be of use
  AtomicFile file(path_, 0600);      // prompts are their users'
  file.write(saved_pages_header(kind_, salt_, std::ssize(tree.pages), std::ssize(tree.sliding)));
  std::string contents;
  for (const PrefixTree::Entry& entry : tree.pages) {
    export_page(entry.page, false, contents);
    file.write(saved_page_record(
        {entry.parent, entry.tenant, {entry.tokens.begin(), entry.tokens.end()}, contents}));
  }
  for (const PrefixTree::SlidingEntry& entry : tree.sliding) {
    export_page(entry.page, true, contents);
    file.write(saved_page_record(SavedSlidingPage{entry.beside, contents}));
  }
  file.commit();
  return std::ssize(tree.pages);
}

void SavedPages::make_room() const {
  struct Other {
    std::filesystem::file_time_type written;
    std::filesystem::path path;
    uint64_t bytes;
  };
  std::vector<Other> others;
  uint64_t total = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory_)) {
    if (!entry.is_regular_file() || entry.path().extension() != kSuffix) continue;
    total += entry.file_size();
    if (entry.path() != path_) others.push_back({entry.last_write_time(), entry.path(), entry.file_size()});
  }
  std::sort(others.begin(), others.end(),
            [](const Other& a, const Other& b) { return a.written < b.written; });
  for (const Other& other : others) {
    if (total <= most_bytes_) return;
    std::filesystem::remove(other.path);
    total -= other.bytes;
  }
}

}  // namespace qiao
