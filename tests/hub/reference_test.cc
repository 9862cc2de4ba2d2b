#include "hub/reference.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "hub/temporary_folder.h"

namespace qiao {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<RemoteFile> files(std::initializer_list<const char*> paths) {
  std::vector<RemoteFile> result;
  for (const char* path : paths) result.push_back({.path = path, .bytes = 1, .sha256 = {}, .git_blob = {}});
  return result;
}

std::vector<std::string> select(const std::string& reference, std::initializer_list<const char*> paths) {
  std::vector<std::string> result;
  for (const RemoteFile& file : select_files(*parse_hub_reference(reference), files(paths)))
    result.push_back(file.path);
  return result;
}

TEST(HubReferenceTest, ReadsItsParts) {
  const auto reference = parse_hub_reference("ms:Org-1/Repo_2.GGUF:sub/x-Q4_K_M.gguf");
  ASSERT_TRUE(reference);
  EXPECT_EQ(reference->kind, HubKind::kModelScope);
  EXPECT_EQ(reference->organisation, "Org-1");
  EXPECT_EQ(reference->repository, "Repo_2.GGUF");
  EXPECT_EQ(reference->file, "sub/x-Q4_K_M.gguf");
  EXPECT_EQ(reference->text(), "ms:Org-1/Repo_2.GGUF:sub/x-Q4_K_M.gguf");
  EXPECT_FALSE(parse_hub_reference("smollm2"));
  EXPECT_FALSE(parse_hub_reference("/tmp/hf:a/b"));
}

TEST(HubReferenceTest, RefusesWhatCannotBeAFolder) {
  for (const char* text :
       {"hf:", "hf:a", "hf:a/", "hf:/b", "hf:a/b/c", "hf:../b", "hf:a/..", "hf:.a/b", "hf:a/b c", "hf:a/b%2f",
        "hf:a/b:", "hf:a/b:../x", "hf:a/b:/etc/passwd", "hf:a/b:x//y", "ms:a/b:x\ny"}) {
    EXPECT_NE(message_of([&] { parse_hub_reference(text); }), "nothing") << text;
  }
}

TEST(HubReferenceTest, SafePaths) {
  EXPECT_TRUE(is_safe_path("a/b-c/d.gguf"));
  EXPECT_TRUE(is_safe_path("..a/b"));
  for (const char* path : {"", "/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", "a\\b", "a\nb", "a/\x7f"}) {
    EXPECT_FALSE(is_safe_path(path)) << path;
  }
  EXPECT_FALSE(is_safe_path(std::string("a\0b", 3)));
  EXPECT_FALSE(is_safe_path(std::string(256, 'a')));
  std::string deep;
  for (int i = 0; i < 300; ++i) deep += "a/";
  EXPECT_FALSE(is_safe_path(deep + "a"));
}

TEST(SelectFilesTest, TakesTheDirectoryWithConfigLast) {
  EXPECT_THAT(
      select("hf:a/b", {"README.md", "config.json", "model.safetensors", "tokenizer.json", "onnx/config.json",
                        "tokenizer_config.json", "consolidated.safetensors", "pytorch_model.bin",
                        "merges.txt", "chat_template.jinja", "generation_config.json", "x-Q4_K_M.gguf"}),
      ElementsAre("model.safetensors", "tokenizer.json", "tokenizer_config.json", "merges.txt",
                  "chat_template.jinja", "generation_config.json", "config.json"));
}

TEST(SelectFilesTest, PrefersQ4KMThenQ8ThenAny) {
  EXPECT_THAT(select("hf:a/b", {"m-Q2_K.gguf", "m-Q8_0.gguf", "m-Q4_K_M.gguf", "mmproj-Q4_K_M.gguf"}),
              ElementsAre("m-Q4_K_M.gguf"));
  EXPECT_THAT(select("hf:a/b", {"m-F16.gguf", "m.q8_0.gguf"}), ElementsAre("m.q8_0.gguf"));
  EXPECT_THAT(select("hf:a/b", {"mmproj-m.gguf", "z.gguf"}), ElementsAre("z.gguf"));
}

TEST(SelectFilesTest, TakesATagAsAWord) {
  EXPECT_THAT(select("hf:a/b:q4_k", {"m-Q4_K_M.gguf", "m-Q4_K.gguf", "m-IQ4_K.gguf"}),
              ElementsAre("m-Q4_K.gguf"));
  EXPECT_THAT(select("hf:a/b:sub/m.gguf", {"sub/m.gguf", "m.gguf"}), ElementsAre("sub/m.gguf"));
}

TEST(SelectFilesTest, TakesAWholeSplitSetInOrder) {
  const auto expected = ElementsAre("q/m-Q8_0-00001-of-00003.gguf", "q/m-Q8_0-00002-of-00003.gguf",
                                    "q/m-Q8_0-00003-of-00003.gguf");
  for (const char* reference : {"hf:a/b", "hf:a/b:Q8_0", "hf:a/b:q/m-Q8_0-00002-of-00003.gguf"}) {
    EXPECT_THAT(select(reference, {"q/m-Q8_0-00003-of-00003.gguf", "q/m-Q8_0-00001-of-00003.gguf",
                                   "q/m-Q8_0-00002-of-00003.gguf", "q/m-Q2_K.gguf"}),
                expected)
        << reference;
  }
}

TEST(SelectFilesTest, SaysWhatThereIs) {
  EXPECT_EQ(message_of([] {
              select("hf:a/b:Q5_K_M", {"m-Q4_K_M.gguf", "x.bin"});
            }),
            "hf:a/b: no GGUF is named Q5_K_M; it has: m-Q4_K_M.gguf");
  EXPECT_THAT(message_of([] {
                select("hf:a/b:Q4_0", {"m-Q4_0.gguf", "n-Q4_0.gguf"});
              }),
              HasSubstr("means more than one: m-Q4_0.gguf, n-Q4_0.gguf"));
  EXPECT_THAT(message_of([] { select("hf:a/b:README.md", {"README.md"}); }), HasSubstr("is not a GGUF file"));
  EXPECT_THAT(message_of([] {
                select("hf:a/b", {"README.md", "config.json", "pytorch_model.bin"});
              }),
              HasSubstr("holds no model that Qiao reads"));
  EXPECT_THAT(message_of([] {
                select("hf:a/b", {"m-00001-of-00003.gguf", "m-00003-of-00003.gguf"});
              }),
              HasSubstr("is split into 3 files, of which the hub has 2"));
}

}  // namespace
}  // namespace qiao
