target_compile_definitions(qiao_backend_cuda PUBLIC QIAO_WITH_CUDA)
# Each product and each addition rounds by itself, as kernel.h says; ptxas tells each kernel's registers and spills
# (cmake/ptxas_report.py reads them from the build's log).
target_compile_options(qiao_backend_cuda PRIVATE
  $<$<COMPILE_LANGUAGE:CUDA>:--fmad=false --extended-lambda --expt-relaxed-constexpr -Xptxas=-v -Werror=all-warnings>)
