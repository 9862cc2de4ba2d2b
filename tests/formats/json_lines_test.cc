#include "formats/json_lines.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "support/expect_error.h"

namespace qiao {
namespace {

std::vector<std::string> lines_of(std::string_view text) {
  std::vector<std::string> found;
  JsonLines lines(text);
  while (const auto line = lines.next())
    found.push_back(std::to_string(line->number) + ":" +
                    std::string(text.substr(line->begin, line->end - line->begin)));
  return found;
}

TEST(JsonLinesTest, CountsLinesAndPassesOverBlankOnes) {
  using Lines = std::vector<std::string>;
  EXPECT_EQ(lines_of(""), Lines());
  EXPECT_EQ(lines_of("\n \t\r\n\n"), Lines());
  EXPECT_EQ(lines_of("{}\n\n  [1]\r\n{}"), (Lines{"1:{}", "3:  [1]\r", "4:{}"}));
  EXPECT_EQ(lines_of("\xEF\xBB\xBF{}\n1\n"), (Lines{"1:{}", "2:1"}));
}

TEST(JsonLinesTest, ALineSaysWhatIsWrongWithIt) {
  EXPECT_EQ(parse_json_line("{\"a\": 1}\r").at("a"), 1);
  EXPECT_QIAO_ERROR(parse_json_line("{\"a\": }"), kInvalidInput, "row: byte");
  EXPECT_QIAO_ERROR(parse_json_line(std::string(200, '[')), kInvalidInput, "row");
}

}  // namespace
}  // namespace qiao
