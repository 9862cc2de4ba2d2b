#include "hub/unzip.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <zip.h>

#include "base/error.h"
#include "base/file.h"
#include "hub/temporary_folder.h"

namespace qiao {
namespace {

struct ZipMember {
  std::string name, content;
  mode_t kind = S_IFREG;
};

class UnzipTest : public testing::Test {
 protected:
  // Writes an archive of these members, then unpacks it into a new folder; what went wrong, or "nothing".
  std::string unzipped(const std::vector<ZipMember>& members, uint64_t bytes) {
    const std::filesystem::path path = folder_.path() / "x.zip";
    int code = 0;
    zip_t* archive = zip_open(path.c_str(), ZIP_CREATE | ZIP_TRUNCATE, &code);
    for (const ZipMember& member : members) {
      zip_source_t* source = zip_source_buffer(archive, member.content.data(), member.content.size(), 0);
      const zip_int64_t index = zip_file_add(archive, member.name.c_str(), source, ZIP_FL_ENC_UTF_8);
      EXPECT_GE(index, 0) << member.name;
      zip_file_set_external_attributes(archive, static_cast<zip_uint64_t>(index), 0, ZIP_OPSYS_UNIX,
                                       static_cast<zip_uint32_t>(member.kind | 0644) << 16);
    }
    EXPECT_EQ(zip_close(archive), 0);
    out_ = folder_.path() / "out";
    std::filesystem::remove_all(out_);
    std::filesystem::create_directories(out_);
    return message_of([&] { unzip(path, out_, bytes); });
  }
  bool refused(const std::string& message, const std::string& why) {
    return message.find(why) != std::string::npos && !std::filesystem::exists(folder_.path() / "evil");
  }

  TemporaryFolder folder_;
  std::filesystem::path out_;
};

TEST_F(UnzipTest, UnpacksFilesAndFolders) {
  EXPECT_EQ(unzipped({{"a.txt", "one"}, {"1_Pooling/config.json", "{}"}, {"x/y/z", ""}}, 5), "nothing");
  EXPECT_EQ(read_file(out_ / "a.txt"), "one");
  EXPECT_EQ(read_file(out_ / "1_Pooling" / "config.json"), "{}");
  EXPECT_TRUE(std::filesystem::is_regular_file(out_ / "x" / "y" / "z"));
}

TEST_F(UnzipTest, RefusesNamesThatLeaveTheFolder) {
  for (const std::string name :
       {"../evil", "a/../../evil", "/evil", "..", "a//b", "a\\..\\evil", "./a", "1/2/3/4/5/6/7/8/9"}) {
    EXPECT_TRUE(refused(unzipped({{name, "x"}}, 1), "is no name of a file below the model's folder")) << name;
  }
  EXPECT_TRUE(refused(unzipped({{std::string(300, 'a'), "x"}}, 1), "is no name")) << "too long";
}

TEST_F(UnzipTest, RefusesLinksAndOtherSizes) {
  EXPECT_TRUE(refused(unzipped({{"link", "../evil", S_IFLNK}}, 7), "is neither a file nor a folder"));
  EXPECT_TRUE(refused(unzipped({{"pipe", "", S_IFIFO}}, 0), "is neither a file nor a folder"));
  EXPECT_TRUE(refused(unzipped({{"a", "12"}, {"b", "34"}}, 3), "unpacks to more than 3 bytes"));
  EXPECT_TRUE(refused(unzipped({{"a", std::string(3000000, 'x')}}, 100), "unpacks to more than 100 bytes"));
  EXPECT_TRUE(refused(unzipped({{"a", "12"}}, 3), "unpacks to 2 bytes, expected 3"));
  EXPECT_TRUE(refused(unzipped({{"a", "1"}, {"a/b", "2"}}, 2), "")) << "a file that is a folder too";
}

TEST_F(UnzipTest, RefusesTooManyMembersAndOtherFiles) {
  std::vector<ZipMember> many;
  for (int i = 0; i < 1001; ++i) many.push_back({std::to_string(i), ""});
  EXPECT_TRUE(refused(unzipped(many, 0), "1001 members; at most 1000 were expected"));
  write_file_atomically(folder_.path() / "page", "<html>");
  EXPECT_TRUE(refused(message_of([&] { unzip(folder_.path() / "page", out_, 1); }), "not a zip file"));
}

}  // namespace
}  // namespace qiao
