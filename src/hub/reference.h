// hf:ORG/REPO[:FILE] and ms:ORG/REPO[:FILE]: models of Hugging Face and ModelScope compatible hubs.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace qiao {

enum class HubKind { kHuggingFace, kModelScope };

struct HubReference {
  HubKind kind = HubKind::kHuggingFace;
  std::string organisation;
  std::string repository;
  std::string file;  // a path, or part of a GGUF's name ("Q4_K_M"); empty: the hub's choice

  std::string text() const;             // as it was written
  std::string scheme() const;           // "hf"
  std::string repository_path() const;  // "ORG/REPO"
};

// Nothing where `text` does not begin with hf: or ms:. Throws Error(kInvalidInput) saying what was expected
// where it does and is malformed. Names hold letters, digits, '.', '_' and '-' only: they become folders.
std::optional<HubReference> parse_hub_reference(std::string_view text);

// Whether `path` may become a path below one of our folders: relative, without "..", "." or empty components,
// control characters or backslashes, at most 512 bytes.
bool is_safe_path(std::string_view path);

// One file of a repository.
struct RemoteFile {
  std::string path;
  uint64_t bytes = 0;
  std::string sha256;    // lower case; empty where the hub names none
  std::string git_blob;  // the same for SHA-1 of a git blob
};

// What of a repository `reference` means: one GGUF, its whole split set in order, or the files of a Hugging
// Face model (config.json last: while it is missing, the directory is no model). Throws Error(kNotFound)
// listing what there is.
std::vector<RemoteFile> select_files(const HubReference& reference, const std::vector<RemoteFile>& files);

// Whether those files are a directory's, not a GGUF's.
bool is_directory_model(const std::vector<RemoteFile>& selected);

}  // namespace qiao
