// EXPECT_QIAO_ERROR(statement, kind, part…): the statement throws qiao::Error of that kind, in one line that
// holds every part.
#pragma once

#include <gtest/gtest.h>

#include <initializer_list>
#include <string>
#include <string_view>

#include "base/error.h"

namespace qiao::testing {

template <typename Body>
::testing::AssertionResult throws_error(Body&& body, ErrorKind kind,
                                        std::initializer_list<std::string_view> parts) {
  try {
    body();
  } catch (const Error& e) {
    const std::string message = e.what();
    if (e.kind() != kind) {
      return ::testing::AssertionFailure() << "kind " << static_cast<int>(e.kind()) << " of: " << message;
    }
    if (message.find('\n') != std::string::npos)
      return ::testing::AssertionFailure() << "several lines: " << message;
    for (const std::string_view part : parts) {
      if (message.find(part) == std::string::npos) {
        return ::testing::AssertionFailure() << "no \"" << part << "\" in: " << message;
      }
    }
    return ::testing::AssertionSuccess();
  }
  return ::testing::AssertionFailure() << "nothing was thrown";
}

}  // namespace qiao::testing

#define EXPECT_QIAO_ERROR(statement, kind, ...) \
  EXPECT_TRUE(                                  \
      ::qiao::testing::throws_error([&] { (void)(statement); }, ::qiao::ErrorKind::kind, {__VA_ARGS__}))
