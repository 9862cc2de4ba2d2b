// Keeps cached prompts across restarts: the prefix tree's pages in a file (saved_pages_file.h) of a directory
// that servers of several models may share, one file each.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "infer/language_model.h"
#include "infer/page_pool.h"
#include "infer/prefix_tree.h"
#include "infer/saved_pages_file.h"
#include "models/decoder.h"

namespace qiao {

class SavedPages {
 public:
  // Reads the model's files through, for their digest. The directory is made where there is none; most_bytes
  // is the size of all files of saved pages in it. Throws Error where it cannot be made or the model cannot
  // be read.
  SavedPages(const LanguageModel& model, KvCache& cache, PagePools& pools, PrefixTree& tree,
             const std::filesystem::path& directory, uint64_t most_bytes);

  // The tree's name of a tenant: what a file may tell. Safe from any thread.
  std::string tenant_name(std::string_view tenant) const;

  // Fills the tree, which is empty, from the file, as far as there are pages. Returns a line that says how
  // that went: a file that is damaged or of something else is named and left alone; empty where there is
  // none.
  std::string restore();

  // Writes what the tree holds, most recently used first, in place of what the file held; other models' files
  // go, the oldest first, where the directory would grow too large. Returns a line that says how that went.
  std::string save();

 private:
  void restore_from(const SavedPagesFile& file, int64_t* restored);
  void import_page(int32_t page, bool sliding, std::string_view contents);
  void export_page(int32_t page, bool sliding, std::string& contents) const;
  int64_t write();
  void make_room() const;

  const Decoder& decoder_;
  KvCache& cache_;
  PagePools& pools_;
  PrefixTree& tree_;
  const std::filesystem::path directory_;
  const uint64_t most_bytes_;
  SavedPagesKind kind_;
  std::filesystem::path path_;
  std::string salt_;
};

}  // namespace qiao
