#include "hub/reference.h"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <map>

#include "base/error.h"

namespace qiao {
namespace {

constexpr size_t kMaxName = 128;
constexpr size_t kMaxPath = 512;
constexpr size_t kMaxListed = 12;

bool is_name(std::string_view text) {
  if (text.empty() || text.size() > kMaxName || text.front() == '.') return false;
  return std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return (c < 128 && std::isalnum(c) != 0) || c == '.' || c == '_' || c == '-';
  });
}

std::string lower(std::string_view text) {
  std::string result(text);
  std::transform(result.begin(), result.end(), result.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  return result;
}

std::string_view base_name(std::string_view path) {
  const size_t slash = path.rfind('/');
  return slash == std::string_view::npos ? path : path.substr(slash + 1);
}

// A GGUF model of the repository: one file, or the parts of a split set.
struct GgufSet {
  std::vector<RemoteFile> parts;
  size_t expected = 1;
};

// "x-00002-of-00005.gguf" → ("x.gguf", 5); any other name → (itself, 1).
std::pair<std::string, size_t> set_of(const std::string& path) {
  constexpr size_t kSuffix = std::string_view("-00001-of-00001.gguf").size();
  if (path.size() <= kSuffix) return {path, 1};
  const std::string tail = path.substr(path.size() - kSuffix);
  const auto digits = [&](size_t at) {
    return std::all_of(tail.begin() + at, tail.begin() + at + 5,
                       [](unsigned char c) { return std::isdigit(c) != 0; });
  };
  if (tail[0] != '-' || !digits(1) || tail.substr(6, 4) != "-of-" || !digits(10)) return {path, 1};
  return {path.substr(0, path.size() - kSuffix) + ".gguf", std::stoul(tail.substr(10, 5))};
}

std::map<std::string, GgufSet> gguf_sets(const std::vector<RemoteFile>& files) {
  std::map<std::string, GgufSet> sets;
  for (const RemoteFile& file : files) {
    if (!lower(file.path).ends_with(".gguf")) continue;
    const auto [name, count] = set_of(file.path);
    sets[name].parts.push_back(file);
    sets[name].expected = count;
  }
  for (auto& [name, set] : sets) {
    std::sort(set.parts.begin(), set.parts.end(),
              [](const RemoteFile& a, const RemoteFile& b) { return a.path < b.path; });
  }
  return sets;
}

std::string listing(const std::map<std::string, GgufSet>& sets) {
  std::string text;
  size_t shown = 0;
  for (const auto& [name, set] : sets) {
    if (shown == kMaxListed) {
      text += ", …";
      break;
    }
    text += (shown++ == 0 ? "" : ", ") + name;
  }
  return text.empty() ? "no GGUF file" : text;
}

// Whether `tag` stands in the name as a word: Q4_K in "x-Q4_K.gguf", not in "x-Q4_K_M.gguf".
bool names_tag(std::string_view name, std::string_view tag) {
  const auto is_word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; };
  for (size_t at = name.find(tag); at != std::string_view::npos; at = name.find(tag, at + 1)) {
    const bool begins = at == 0 || !is_word(name[at - 1]) || !is_word(tag.front());
    const size_t end = at + tag.size();
    if (begins && (end == name.size() || !is_word(name[end]) || !is_word(tag.back()))) return true;
  }
  return false;
}

// Parts of vision models and importance matrices lie beside the models themselves.
bool is_model(const std::string& name) {
  const std::string base = lower(base_name(name));
  return base.find("mmproj") == std::string::npos && base.find("imatrix") == std::string::npos;
}

std::vector<RemoteFile> whole(const std::string& where, const std::string& name, const GgufSet& set) {
  if (set.parts.size() != set.expected) {
    throw_error(ErrorKind::kInvalidInput, "{}: {} is split into {} files, of which the hub has {}", where,
                name, set.expected, set.parts.size());
  }
  return set.parts;
}

std::vector<RemoteFile> select_named(const HubReference& reference, const std::vector<RemoteFile>& files,
                                     const std::map<std::string, GgufSet>& sets) {
  const std::string where = reference.scheme() + ":" + reference.repository_path();
  for (const RemoteFile& file : files) {
    if (file.path != reference.file) continue;
    const auto [name, count] = set_of(file.path);
    if (!lower(name).ends_with(".gguf")) {
      throw_error(ErrorKind::kInvalidInput, "{}:{} is not a GGUF file; it has: {}", where, reference.file,
                  listing(sets));
    }
    return whole(where, name, sets.at(name));
  }
  if (const auto exact = sets.find(reference.file); exact != sets.end())
    return whole(where, exact->first, exact->second);
  const std::string tag = lower(reference.file);
  std::map<std::string, GgufSet> matches;
  for (const auto& [name, set] : sets) {
    if (is_model(name) && names_tag(lower(name), tag)) matches.insert({name, set});
  }
  if (matches.size() == 1) return whole(where, matches.begin()->first, matches.begin()->second);
  if (matches.empty()) {
    throw_error(ErrorKind::kNotFound, "{}: no GGUF is named {}; it has: {}", where, reference.file,
                listing(sets));
  }
  throw_error(ErrorKind::kInvalidInput, "{}: {} means more than one: {}", where, reference.file,
              listing(matches));
}

bool belongs_to_directory(std::string_view path) {
  if (path.find('/') != std::string_view::npos) return false;
  constexpr std::string_view kNames[] = {
      "config.json",         "generation_config.json",      "vocab.json",        "vocab.txt",
      "merges.txt",          "special_tokens_map.json",     "added_tokens.json", "chat_template.json",
      "chat_template.jinja", "model.safetensors.index.json"};
  if (std::find(std::begin(kNames), std::end(kNames), path) != std::end(kNames)) return true;
  if (path.starts_with("tokenizer") && (path.ends_with(".json") || path.ends_with(".model"))) return true;
  // "consolidated" is the same weights again, under their first publisher's names.
  return path.ends_with(".safetensors") && !path.starts_with("consolidated");
}

}  // namespace

std::string HubReference::scheme() const { return kind == HubKind::kHuggingFace ? "hf" : "ms"; }
std::string HubReference::repository_path() const { return organisation + "/" + repository; }
std::string HubReference::text() const {
  return scheme() + ":" + repository_path() + (file.empty() ? "" : ":" + file);
}

std::optional<HubReference> parse_hub_reference(std::string_view text) {
  HubReference reference;
  if (text.starts_with("ms:")) {
    reference.kind = HubKind::kModelScope;
  } else if (!text.starts_with("hf:")) {
    return std::nullopt;
  }
  std::string_view rest = text.substr(3);
  if (const size_t colon = rest.find(':'); colon != std::string_view::npos) {
    reference.file = rest.substr(colon + 1);
    rest = rest.substr(0, colon);
    if (!is_safe_path(reference.file)) {
      throw_error(ErrorKind::kInvalidInput, "{}: '{}' is no path inside a repository", text, reference.file);
    }
  }
  const size_t slash = rest.find('/');
  if (slash == std::string_view::npos || !is_name(rest.substr(0, slash)) ||
      !is_name(rest.substr(slash + 1))) {
    throw_error(ErrorKind::kInvalidInput, "{}: expected {}ORG/REPO or {}ORG/REPO:FILE", text,
                text.substr(0, 3), text.substr(0, 3));
  }
  reference.organisation = rest.substr(0, slash);
  reference.repository = rest.substr(slash + 1);
  return reference;
}

bool is_safe_path(std::string_view path) {
  if (path.empty() || path.size() > kMaxPath) return false;
  for (const unsigned char c : path) {
    if (c < 0x20 || c == 0x7f || c == '\\') return false;
  }
  while (true) {
    const size_t slash = path.find('/');
    const std::string_view part = path.substr(0, slash);
    if (part.empty() || part == "." || part == ".." || part.size() > 255) return false;
    if (slash == std::string_view::npos) return true;
    path.remove_prefix(slash + 1);
  }
}

std::vector<RemoteFile> select_files(const HubReference& reference, const std::vector<RemoteFile>& files) {
  const std::map<std::string, GgufSet> sets = gguf_sets(files);
  if (!reference.file.empty()) return select_named(reference, files, sets);

  std::vector<RemoteFile> directory;
  std::optional<RemoteFile> config;
  bool has_weights = false;
  for (const RemoteFile& file : files) {
    if (!belongs_to_directory(file.path)) continue;
    if (file.path == "config.json") {
      config = file;
      continue;
    }
    has_weights = has_weights || file.path.ends_with(".safetensors");
    directory.push_back(file);
  }
  if (config && has_weights) {
    directory.push_back(*config);
    return directory;
  }

  const std::string where = reference.text();
  for (const char* tag : {"q4_k_m", "q8_0", ""}) {  // llama.cpp's order: a good compromise, a common one, any
    for (const auto& [name, set] : sets) {
      if (is_model(name) && (*tag == '\0' || names_tag(lower(name), tag))) return whole(where, name, set);
    }
  }
  throw_error(
      ErrorKind::kNotFound,
      "{}: holds no model that Qiao reads (a GGUF file, or config.json with safetensors) among its {} files",
      where, files.size());
}

bool is_directory_model(const std::vector<RemoteFile>& selected) {
  return !selected.empty() && selected.back().path == "config.json";
}

}  // namespace qiao
