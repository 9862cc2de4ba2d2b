// The source of the targets whose precompiled headers others share: see cmake/QiaoTargets.cmake.
