# A file's suffix names the instruction set it is compiled for; nothing else in the folder may use more than
# the platform's baseline. Contraction is off so that every set rounds as the contracts say.
if(sources)
  # Without reassociation: it turns the chains of integer sums into trees, whose leaves spill.
  target_compile_options(qiao_backend_cpu PRIVATE -ffp-contract=off $<$<CXX_COMPILER_ID:GNU>:-fno-tree-reassoc>)
  set(avx2 -mavx2 -mfma -mf16c -mbmi2)
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=512)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    list(APPEND avx512 -Wno-maybe-uninitialized)  # its own headers' _mm512_undefined_* (GCC bug 105593)
  endif()
  set(vnni ${avx512} -mavx512vnni)
  set(bf16 ${vnni} -mavx512bf16)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    foreach(source ${sources})
      if(source MATCHES "_(avx2|avx512|vnni|bf16)\\.cc$")
        set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${${CMAKE_MATCH_1}}"
                                    SKIP_PRECOMPILE_HEADERS ON)  # made for the baseline
      endif()
    endforeach()
  endif()
endif()
