# Each product and each addition rounds by itself, as kernel.h says. ptxas
# tells registers and spills: cmake/keep_ptxas.sh.
string(REPLACE ";" "," warnings "${QIAO_WARNINGS}")
target_compile_options(qiao_backend_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:--fmad=false --extended-lambda --expt-relaxed-constexpr -Xptxas=-v -Werror=all-warnings
  -Xcompiler=${warnings}>)
# Kernels are compiled one by one, so that one that changes does not take all with it.
set_target_properties(qiao_backend_cuda PROPERTIES UNITY_BUILD OFF)
