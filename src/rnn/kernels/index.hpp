// The type of all sizes, counts and places: 64 bits everywhere, also where `long` has 32.
#pragma once

#include <cstdint>

namespace fastrnn {

using Index = int64_t;

}  // namespace fastrnn
