// A loop of sixteen independent chains of 512-bit instructions, in assembly: gcc 12 spills such loops written
// with intrinsics. Each instruction stands once a chain and iteration; zmm30 and zmm31 are zero.
#define QIAO_REPEAT_16(instruction)                                                                     \
  instruction("0") instruction("1") instruction("2") instruction("3") instruction("4") instruction("5") \
      instruction("6") instruction("7") instruction("8") instruction("9") instruction("10")             \
          instruction("11") instruction("12") instruction("13") instruction("14") instruction("15")
#define QIAO_CLEAR(r) "vpxord %%zmm" r ", %%zmm" r ", %%zmm" r "\n\t"
#define QIAO_LOOP(iterations, instruction)                                                                \
  asm volatile(QIAO_REPEAT_16(QIAO_CLEAR) QIAO_CLEAR("30")                                                \
                   QIAO_CLEAR("31") "1:\n\t" QIAO_REPEAT_16(instruction) "dec %0\n\tjnz 1b\n\t"           \
               : "+r"(iterations)                                                                         \
               :                                                                                          \
               : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
                 "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm29", "xmm30", "xmm31", "cc")
