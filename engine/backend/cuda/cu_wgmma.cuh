/*
 * Matrix products of a warpgroup (wgmma), asynchronous: D [64][N] (+)= A B^T.
 *
 * A is [64][K], B [N][K], K = 16 of BF16 or 32 of e4m3fn.  Both are in shared
 * memory, or A in registers (_rs).  D is N / 2 float32 in each thread: d[i] of
 * lane l of warp w is row 16 w + l / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2
 * (l % 4) + i % 2.  A in registers: a[r] is of row 16 w + l / 4 + 8 (r % 2),
 * elements 2 (l % 4) + 8 (r / 2) and the next one (BF16), or 4 (l % 4) + 16 (r
 * / 2) and three more (e4m3fn).  With `add` 0, D is overwritten.
 *
 * Order: cu_wgmma_fence() after ordinary code has used the registers, products,
 * cu_wgmma_commit() closes a group, cu_wgmma_wait<n>() until at most n groups
 * are open.  Until then neither D nor A in registers nor the shared memory may
 * be touched.  Sums of e4m3fn have about 14 bits: add them up elsewhere every
 * 128 elements.
 *
 * A descriptor is where an operand lies in shared memory, in tiles of 128
 * bytes by 8 lines with the 128-byte swizzle (16-byte piece p of line i is at p
 * ^ i % 8), as TMA writes them; tiles begin at multiples of 1024.
 *
 *     cu_desc_k(p)         a line is 128 bytes along K of one row; 8 rows, 1024
 *                          bytes, follow each other.  The next 32 bytes of K:
 *                          p + 32, up to 128.
 *     cu_desc_mn(p, next)  a line is 64 rows (BF16) of one k; 8 k, 1024 bytes,
 *                          follow each other; the next 64 rows are at p + next.
 *                          The next 16 k: p + 2048.  For cu_wgmma_bf16 with TA
 *                          or TB 1.
 */

#ifndef CU_WGMMA_CUH
#define CU_WGMMA_CUH


#ifndef CU_EMU

/* Start, distance of lines' tiles, of tiles along the rows, all / 16. */

CU_FN uint64_t
cu_desc_k(const void *p)
{
    return (uint64_t) ((cu_smem(p) & 0x3ffff) >> 4) | (uint64_t) 1 << 16
           | (uint64_t) (1024 >> 4) << 32 | (uint64_t) 1 << 62;
}


CU_FN uint64_t
cu_desc_mn(const void *p, uint32_t next)
{
    return (uint64_t) ((cu_smem(p) & 0x3ffff) >> 4)
           | (uint64_t) (next >> 4) << 16
           | (uint64_t) (1024 >> 4) << 32 | (uint64_t) 1 << 62;
}


CU_FN void
cu_wgmma_fence(void)
{
    asm volatile ("wgmma.fence.sync.aligned;" ::: "memory");
}


CU_FN void
cu_wgmma_commit(void)
{
    asm volatile ("wgmma.commit_group.sync.aligned;" ::: "memory");
}


template <int N>
CU_FN void
cu_wgmma_wait(void)
{
    asm volatile ("wgmma.wait_group.sync.aligned %0;" :: "n"(N) : "memory");
}


/* Keeps the compiler from moving uses of d over this point. */

template <int N>
CU_FN void
cu_wgmma_hold(float *d)
{
    int  i;

#pragma unroll
    for (i = 0; i < N / 2; i++) {
        asm volatile ("" : "+f"(d[i]) :: "memory");
    }
}


template <int N, int TA, int TB> struct cu_wgmma_n;

#define CU_D4                                                                 \
    "%0, %1, %2, %3"
#define CU_D8                                                                 \
    CU_D4 ", "                                                                \
    "%4, %5, %6, %7"
#define CU_D16                                                                \
    CU_D8 ", "                                                                \
    "%8, %9, %10, %11, %12, %13, %14, %15"
#define CU_D32                                                                \
    CU_D16 ", "                                                               \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, "            \
    "%28, %29, %30, %31"
#define CU_D64                                                                \
    CU_D32 ", "                                                               \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, "            \
    "%44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, "            \
    "%56, %57, %58, %59, %60, %61, %62, %63"
#define CU_D128                                                               \
    CU_D64 ", "                                                               \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, "            \
    "%76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, "            \
    "%88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, "            \
    "%100, %101, %102, %103, %104, %105, %106, %107, %108, %109, "            \
    "%110, %111, %112, %113, %114, %115, %116, %117, %118, %119, "            \
    "%120, %121, %122, %123, %124, %125, %126, %127"

#define CU_O4                                                                 \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define CU_O8                                                                 \
    CU_O4,                                                                    \
    "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define CU_O16                                                                \
    CU_O8,                                                                    \
    "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]),            \
    "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define CU_O32                                                                \
    CU_O16,                                                                   \
    "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),          \
    "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]),          \
    "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]),          \
    "+f"(d[31])
#define CU_O64                                                                \
    CU_O32,                                                                   \
    "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]),          \
    "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),          \
    "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]),          \
    "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]),          \
    "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),          \
    "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]),          \
    "+f"(d[62]), "+f"(d[63])
#define CU_O128                                                               \
    CU_O64,                                                                   \
    "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]),          \
    "+f"(d[69]), "+f"(d[70]), "+f"(d[71]), "+f"(d[72]), "+f"(d[73]),          \
    "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]),          \
    "+f"(d[79]), "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]),          \
    "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]),          \
    "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]),          \
    "+f"(d[94]), "+f"(d[95]), "+f"(d[96]), "+f"(d[97]), "+f"(d[98]),          \
    "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]),                    \
    "+f"(d[103]), "+f"(d[104]), "+f"(d[105]), "+f"(d[106]),                   \
    "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]),                   \
    "+f"(d[111]), "+f"(d[112]), "+f"(d[113]), "+f"(d[114]),                   \
    "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]),                   \
    "+f"(d[119]), "+f"(d[120]), "+f"(d[121]), "+f"(d[122]),                   \
    "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])


/*
 * The products of one N: D's places and operands, then the places behind them
 * that the others take.
 */

#define CU_WGMMA(n, D, O, p0, p1, p2, p3, p4, p5, p6)                         \
    template <int TA, int TB>                                                 \
    struct cu_wgmma_n<n, TA, TB> {                                            \
        CU_FN void                                                            \
        bf16(float *d, uint64_t a, uint64_t b, int add)                       \
        {                                                                     \
            asm volatile ("{\n"                                               \
                "    .reg .pred p;\n"                                         \
                "    setp.ne.b32 p, " p2 ", 0;\n"                             \
                "    wgmma.mma_async.sync.aligned.m64n" #n                    \
                "k16.f32.bf16.bf16 {" D "}, " p0 ", " p1 ", p, 1, 1, "        \
                p3 ", " p4 ";\n"                                              \
                "}\n" : O : "l"(a), "l"(b), "r"(add), "n"(TA), "n"(TB));      \
        }                                                                     \
                                                                              \
        CU_FN void                                                            \
        bf16_rs(float *d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, \
            uint64_t b, int add)                                              \
        {                                                                     \
            asm volatile ("{\n"                                               \
                "    .reg .pred p;\n"                                         \
                "    setp.ne.b32 p, " p5 ", 0;\n"                             \
                "    wgmma.mma_async.sync.aligned.m64n" #n                    \
                "k16.f32.bf16.bf16 {" D "}, {" p0 ", " p1 ", " p2 ", " p3     \
                "}, " p4 ", p, 1, 1, " p6 ";\n"                               \
                "}\n" : O : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b),       \
                            "r"(add), "n"(TB));                               \
        }                                                                     \
                                                                              \
        CU_FN void                                                            \
        e4m3(float *d, uint64_t a, uint64_t b, int add)                       \
        {                                                                     \
            asm volatile ("{\n"                                               \
                "    .reg .pred p;\n"                                         \
                "    setp.ne.b32 p, " p2 ", 0;\n"                             \
                "    wgmma.mma_async.sync.aligned.m64n" #n                    \
                "k32.f32.e4m3.e4m3 {" D "}, " p0 ", " p1 ", p, 1, 1;\n"       \
                "}\n" : O : "l"(a), "l"(b), "r"(add));                        \
        }                                                                     \
                                                                              \
        CU_FN void                                                            \
        e4m3_rs(float *d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, \
            uint64_t b, int add)                                              \
        {                                                                     \
            asm volatile ("{\n"                                               \
                "    .reg .pred p;\n"                                         \
                "    setp.ne.b32 p, " p5 ", 0;\n"                             \
                "    wgmma.mma_async.sync.aligned.m64n" #n                    \
                "k32.f32.e4m3.e4m3 {" D "}, {" p0 ", " p1 ", " p2 ", " p3     \
                "}, " p4 ", p, 1, 1;\n"                                       \
                "}\n" : O : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b),       \
                            "r"(add));                                        \
        }                                                                     \
    };

CU_WGMMA(8, CU_D4, CU_O4, "%4", "%5", "%6", "%7", "%8", "%9", "%10")
CU_WGMMA(16, CU_D8, CU_O8, "%8", "%9", "%10", "%11", "%12", "%13", "%14")
CU_WGMMA(32, CU_D16, CU_O16, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
CU_WGMMA(64, CU_D32, CU_O32, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
CU_WGMMA(128, CU_D64, CU_O64, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
CU_WGMMA(256, CU_D128, CU_O128, "%128", "%129", "%130", "%131", "%132",
         "%133", "%134")

/* The same `bytes` further on. */

CU_FN uint64_t
cu_desc_plus(uint64_t desc, uint32_t bytes)
{
    return desc + (bytes >> 4);
}

#endif /* !CU_EMU */


/* N: 8, 16, 32, 64, 128 or 256; TA, TB: 1 where cu_desc_mn() made it. */

template <int N, int TA = 0, int TB = 0>
CU_FN void
cu_wgmma_bf16(float *d, uint64_t a, uint64_t b, int add)
{
    cu_wgmma_n<N, TA, TB>::bf16(d, a, b, add);
}


template <int N, int TB = 0>
CU_FN void
cu_wgmma_bf16_rs(float *d, uint32_t a0, uint32_t a1, uint32_t a2,
    uint32_t a3, uint64_t b, int add)
{
    cu_wgmma_n<N, 0, TB>::bf16_rs(d, a0, a1, a2, a3, b, add);
}


template <int N>
CU_FN void
cu_wgmma_e4m3(float *d, uint64_t a, uint64_t b, int add)
{
    cu_wgmma_n<N, 0, 0>::e4m3(d, a, b, add);
}


template <int N>
CU_FN void
cu_wgmma_e4m3_rs(float *d, uint32_t a0, uint32_t a1, uint32_t a2,
    uint32_t a3, uint64_t b, int add)
{
    cu_wgmma_n<N, 0, 0>::e4m3_rs(d, a0, a1, a2, a3, b, add);
}

#endif /* CU_WGMMA_CUH */
