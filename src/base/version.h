// Which Qiao this is: "0.1.0 (81041bb)": the project's version, and the commit where it was built from a
// checkout.
#pragma once

namespace qiao {

const char* version();

}  // namespace qiao
