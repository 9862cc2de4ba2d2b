#include "base/quote.h"

#include <gtest/gtest.h>

#include <string>

namespace qiao {
namespace {

TEST(QuoteTest, EscapesWhatWouldBreakALineOrATerminal) {
  EXPECT_EQ(quote_text("blk.0"), "\"blk.0\"");
  EXPECT_EQ(quote_text("日本"), "\"日本\"");
  EXPECT_EQ(quote_text("a\nb\x1b\x7f"), "\"a\\x0ab\\x1b\\x7f\"");
  EXPECT_EQ(quote_text("say \"a\\b\""), "\"say \\\"a\\\\b\\\"\"");
  EXPECT_EQ(quote_text("\xc2\x9b"
                       "31m"),
            "\"\\xc2\\x9b31m\"");  // U+009B begins a terminal's command
  EXPECT_EQ(quote_text(std::string_view("\0", 1)), "\"\\x00\"");
  EXPECT_EQ(printable("[\"a\\b\"]\t"), "[\"a\\b\"]\\x09");
}

TEST(QuoteTest, BytesThatAreNotUtf8AreShownAsHex) {
  EXPECT_EQ(printable("\xff"), "\\xff");
  EXPECT_EQ(printable("\x80"), "\\x80");
  EXPECT_EQ(printable("\xe6\x97"), "\\xe6\\x97");  // cut short
  EXPECT_EQ(printable("\xc0\xaf"), "\\xc0\\xaf");  // overlong
  EXPECT_EQ(printable("\xe0\x80\xaf"), "\\xe0\\x80\\xaf");
  EXPECT_EQ(printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");           // a surrogate
  EXPECT_EQ(printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");  // over U+10FFFF
  EXPECT_EQ(printable("\xf0\x9f\x98\x80"), "\xf0\x9f\x98\x80");
}

TEST(QuoteTest, CutsBetweenCharacters) {
  EXPECT_EQ(printable("abcdef", 6), "abcdef");
  EXPECT_EQ(printable("abcdef", 5), "abcde…");
  EXPECT_EQ(printable("日本", 5), "日…");
  EXPECT_EQ(printable("", 0), "");
}

}  // namespace
}  // namespace qiao
