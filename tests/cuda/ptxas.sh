#!/bin/sh
# What the assembler says of the kernels: registers, shared memory, stack
# frame, spills; and how many of Hopper's own instructions they have: products
# of a warpgroup in BF16 (HGMMA) and FP8 (QGMMA), copies of tensors (UTMA) and
# other bulk copies.  They are counted in the machine code where there is
# nvdisasm, else in PTX.  A kernel that spills, or
# whose products of a warpgroup are serialized, ends it with status 1.
#
#     NVCC=… NVCCFLAGS=… BUILD=… ptxas.sh FILE.cu …

set -e

out=${BUILD:-build}/ptxas
rm -rf "$out"
mkdir -p "$out"
dis=$(command -v nvdisasm "$(dirname "$NVCC")/nvdisasm" | head -n 1)
echo "instructions counted in ${dis:-PTX}"

printf '%-36s %5s %7s %6s %6s %6s %6s %6s %6s\n' kernel regs smem stack \
    spill HGMMA QGMMA UTMA bulk

for f in "$@"; do
    o=$out/$(basename "$f" .cu)
    opt=
    [ "$(basename "$f")" != cu_sample.cu ] || opt=-fmad=false   # as cuda.mk

    if ! "$NVCC" $NVCCFLAGS $opt --keep --keep-dir "$out" -Xptxas -v -cubin \
        -o "$o.cubin" "$f" > "$o.log" 2>&1
    then
        cat "$o.log"
        exit 1
    fi

    if [ -n "$dis" ]; then
        "$dis" -c "$o.cubin" | sed 's/^\.text\.\(.*\):$/.entry \1(/'
    else
        cat "$o.ptx"
    fi > "$o.code"

    awk '
    FNR == NR {
        if (match($0, /\.entry [A-Za-z0-9_$]+\(/)) {
            name = substr($0, RSTART + 7, RLENGTH - 8)
        }
        q = /QGMMA|wgmma\.mma_async.*e4m3/
        qgmma[name] += q
        hgmma[name] += !q && /HGMMA|wgmma\.mma_async/
        t = /UTMALDG|UTMASTG|cp\.async\.bulk\.tensor/
        utma[name] += t
        bulk[name] += !t && /UBLKCP|cp\.async\.bulk\.(shared|global)/
        next
    }
    /Compiling entry function/ {
        split($0, part, "\047")
        kernel = part[2]
        stack = -1
    }
    /bytes stack frame/ && kernel != "" && stack < 0 {
        stack = $1
        spill = $5 + $9
    }
    /Used [0-9]+ registers/ && kernel != "" {
        smem = 0
        n = split($0, part, ", ")
        for (i = 1; i <= n; i++) {
            if (part[i] ~ /bytes smem/) smem = part[i] + 0
        }
        sub(/.*Used /, "")
        short = kernel
        if (match(short, /^_Z[0-9]+/)) {
            len = substr(short, 3, RLENGTH - 2)
            tail = substr(short, RLENGTH + 1)
            short = substr(tail, 1, len)
            tail = substr(tail, len + 1)
            if (match(tail, /^I[^E]*(E[^v]*)?EE?v/)) {
                short = short " " substr(tail, 2, RLENGTH - 3)
                gsub(/L[a-z]|E/, " ", short)
                gsub(/ +/, " ", short)
            }
        }
        printf "%-36.36s %5d %7d %6d %6d %6d %6d %6d %6d\n", short, $1 + 0,
            smem, stack, spill, hgmma[kernel], qgmma[kernel], utma[kernel],
            bulk[kernel]
        bad += spill > 0
        kernel = ""
    }
    /instructions are serialized/ { print; bad++ }
    END { exit bad > 0 }' "$o.code" "$o.log" || bad=1
done

[ -z "$bad" ] || { echo "there are spills, or products that wait"; exit 1; }
