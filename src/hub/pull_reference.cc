#include <algorithm>
#include <cstdlib>
#include <optional>
#include <set>

#include "base/error.h"
#include "base/json.h"
#include "hub/digest.h"
#include "hub/http.h"
#include "hub/pull.h"
#include "hub/store.h"

namespace qiao {
namespace {

constexpr size_t kMaxListingBytes = size_t{16} << 20;
constexpr size_t kMaxFiles = 20000;
constexpr int kMaxPages = 50;

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

std::string endpoint_of(const HubReference& reference, const PullOptions& options) {
  std::string endpoint = options.endpoint;
  const bool hugging_face = reference.kind == HubKind::kHuggingFace;
  if (endpoint.empty()) endpoint = environment(hugging_face ? "QIAO_HF_ENDPOINT" : "QIAO_MS_ENDPOINT");
  if (endpoint.empty() && hugging_face) endpoint = environment("HF_ENDPOINT");
  if (endpoint.empty()) {
    throw_error(ErrorKind::kInvalidInput,
                "{}: set the hub's address in {} (https://HOST of the hub or of a mirror), or say --endpoint",
                reference.text(), hugging_face ? "QIAO_HF_ENDPOINT or HF_ENDPOINT" : "QIAO_MS_ENDPOINT");
  }
  while (endpoint.ends_with('/')) endpoint.pop_back();
  if (!endpoint.starts_with("http://") && !endpoint.starts_with("https://")) {
    throw_error(ErrorKind::kInvalidInput, "{}: the hub's address '{}' must begin with https:// or http://",
                reference.text(), endpoint);
  }
  return endpoint;
}

// `keep_slashes` for a path, not for a value of a query.
std::string percent_encoded(std::string_view text, bool keep_slashes) {
  std::string result;
  for (const unsigned char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '-' || c == '_' || c == '.' || c == '~' || (keep_slashes && c == '/');
    result += plain ? std::string(1, static_cast<char>(c)) : fmt::format("%{:02X}", c);
  }
  return result;
}

std::string file_address(const HubReference& reference, const std::string& endpoint,
                         const std::string& path) {
  if (reference.kind == HubKind::kHuggingFace) {
    return fmt::format("{}/{}/resolve/main/{}", endpoint, reference.repository_path(),
                       percent_encoded(path, true));
  }
  return fmt::format("{}/api/v1/models/{}/repo?Revision=master&FilePath={}", endpoint,
                     reference.repository_path(), percent_encoded(path, false));
}

bool is_hex(const std::string& text, size_t length) {
  return text.size() == length && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

std::string text_of(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

// One entry of a listing, held to what a listing may say; `names` are the hub's own words.
struct ListingNames {
  const char* path;
  const char* size;
};

RemoteFile file_of(const Json& entry, const ListingNames& names, const std::string& where) {
  RemoteFile file;
  file.path = text_of(entry, names.path);
  if (!is_safe_path(file.path)) {
    throw_error(ErrorKind::kInvalidInput, "{}: the hub lists a file named {}, which is not taken", where,
                dump_json(file.path).substr(0, 120));
  }
  const auto size = entry.find(names.size);
  if (size == entry.end() || !size->is_number_unsigned()) {
    throw_error(ErrorKind::kInvalidInput, "{}: the hub's list gives {} no size", where, file.path);
  }
  file.bytes = size->get<uint64_t>();
  return file;
}

Json parse_listing(const std::string& body, const std::string& where) {
  const size_t first = body.find_first_not_of(" \t\r\n");
  if (first != std::string::npos && body[first] == '<') {
    throw_error(ErrorKind::kInvalidInput,
                "{}: answers with a web page, expected JSON: is that the hub's address?", where);
  }
  return parse_json(body, where, {.max_bytes = kMaxListingBytes, .max_depth = 16});
}

std::vector<RemoteFile> list_hugging_face(HttpClient& client, const HubReference& reference,
                                          const std::string& endpoint) {
  std::vector<RemoteFile> files;
  std::string address =
      fmt::format("{}/api/models/{}/tree/main?recursive=true", endpoint, reference.repository_path());
  const std::string where = address.substr(0, address.find('?'));
  for (int page = 0; !address.empty(); ++page) {
    if (page == kMaxPages)
      throw_error(ErrorKind::kTooLarge, "{}: more than {} pages of files", where, kMaxPages);
    const HttpText text = client.get(address, kMaxListingBytes);
    const Json listing = parse_listing(text.body, where);
    if (!listing.is_array())
      throw_error(ErrorKind::kInvalidInput, "{}: expected a JSON list of files", where);
    for (const Json& entry : listing) {
      if (!entry.is_object() || text_of(entry, "type") != "file") continue;
      RemoteFile file = file_of(entry, {.path = "path", .size = "size"}, where);
      if (const auto lfs = entry.find("lfs"); lfs != entry.end() && lfs->is_object()) {
        file.sha256 = text_of(*lfs, "oid");
        if (file.sha256.starts_with("sha256:")) file.sha256.erase(0, 7);
        if (!is_hex(file.sha256, 64)) {
          throw_error(ErrorKind::kInvalidInput, "{}: the hub's list gives {} a malformed SHA-256", where,
                      file.path);
        }
      } else if (const std::string oid = text_of(entry, "oid"); is_hex(oid, 40)) {
        file.git_blob = oid;
      }
      files.push_back(std::move(file));
      if (files.size() > kMaxFiles) throw_error(ErrorKind::kTooLarge, "{}: over {} files", where, kMaxFiles);
    }
    address = text.next;
  }
  return files;
}

std::vector<RemoteFile> list_model_scope(HttpClient& client, const HubReference& reference,
                                         const std::string& endpoint) {
  const std::string where =
      fmt::format("{}/api/v1/models/{}/repo/files", endpoint, reference.repository_path());
  const Json answer =
      parse_listing(client.get(where + "?Revision=master&Recursive=true", kMaxListingBytes).body, where);
  const Json* listing = nullptr;
  if (answer.is_object() && answer.contains("Data") && answer["Data"].is_object() &&
      answer["Data"].contains("Files")) {
    listing = &answer["Data"]["Files"];
  }
  if (listing == nullptr || !listing->is_array()) {
    const std::string message = answer.is_object() ? text_of(answer, "Message") : "";
    throw_error(ErrorKind::kInvalidInput, "{}: expected JSON with Data.Files{}{}", where,
                message.empty() ? "" : ": ", dump_json(message.substr(0, 120)));
  }
  if (listing->size() > kMaxFiles) throw_error(ErrorKind::kTooLarge, "{}: over {} files", where, kMaxFiles);
  std::vector<RemoteFile> files;
  for (const Json& entry : *listing) {
    if (!entry.is_object() || text_of(entry, "Type") == "tree") continue;
    RemoteFile file = file_of(entry, {.path = "Path", .size = "Size"}, where);
    if (const std::string sha256 = text_of(entry, "Sha256"); is_hex(sha256, 64)) file.sha256 = sha256;
    files.push_back(std::move(file));
  }
  return files;
}

void verify(const RemoteFile& file, const PartialFile& partial, const HubReference& reference) {
  std::string expected = file.sha256, got;
  if (!expected.empty()) {
    got = sha256_of_file(partial.path());
  } else if (!file.git_blob.empty()) {
    expected = file.git_blob;
    got = git_blob_id_of_file(partial.path());
  }
  if (got == expected) return;
  std::filesystem::path etag = partial.path();
  etag += ".etag";
  std::filesystem::remove(partial.path());
  std::filesystem::remove(etag);
  throw_error(ErrorKind::kInvalidInput,
              "{}: {}: its digest is {}, the hub's list says {}; it is removed: pull again", reference.text(),
              file.path, got, expected);
}

}  // namespace

std::filesystem::path pull(const HubReference& reference, const PullOptions& options) {
  const std::string endpoint = endpoint_of(reference, options);
  HttpOptions http;
  http.retry_delay = options.retry_delay;
  if (reference.kind == HubKind::kHuggingFace) http.token = environment("HF_TOKEN");
  if (http.token.find_first_of("\r\n") != std::string::npos) {
    throw_error(ErrorKind::kInvalidInput, "HF_TOKEN holds a line break");
  }
  std::optional<Progress> progress;
  progress.emplace(reference.text(), 0, options.style);
  http.on_wait = [&](const std::string& what) { progress->say(what); };
  HttpClient client(http);
  const std::vector<RemoteFile> selected = select_files(
      reference, reference.kind == HubKind::kHuggingFace ? list_hugging_face(client, reference, endpoint)
                                                         : list_model_scope(client, reference, endpoint));

  const std::filesystem::path folder = repository_folder(reference, options.home);
  const std::filesystem::path downloads = downloads_of(reference, options.home);
  const auto is_here = [&](const RemoteFile& file) {
    std::error_code error;
    return std::filesystem::file_size(folder / file.path, error) == file.bytes && !error;
  };
  uint64_t total = 0, missing = 0;
  for (const RemoteFile& file : selected) {
    if (file.bytes > UINT64_MAX / 2 - total) {
      throw_error(ErrorKind::kTooLarge, "{}: the hub's list says more bytes than there can be",
                  reference.text());
    }
    total += file.bytes;
    if (!is_here(file)) missing += file.bytes;
  }
  const std::filesystem::path result = is_directory_model(selected) ? folder : folder / selected.front().path;
  if (std::all_of(selected.begin(), selected.end(), is_here)) return result;
  require_disk_space(options.home, missing);

  progress.emplace(reference.text(), total, options.style);
  uint64_t done = total - missing;
  progress->update(done);
  for (const RemoteFile& file : selected) {
    if (is_here(file)) continue;
    std::filesystem::path place = downloads / file.path;
    place += ".partial";
    PartialFile partial(place);
    if (is_here(file)) {  // another process fetched it while this one waited
      std::filesystem::remove(place);
    } else {
      client.download(file_address(reference, endpoint, file.path), file.bytes, partial,
                      [&](uint64_t bytes) { progress->update(done + bytes); });
      verify(file, partial, reference);
      partial.publish(folder / file.path);
    }
    place += ".etag";
    std::filesystem::remove(place);
    remove_empty_folders(place.parent_path(), options.home / "downloads");
    done += file.bytes;
  }
  progress->finish();
  return result;
}

}  // namespace qiao
