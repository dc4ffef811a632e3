#!/usr/bin/env bash
# build.sh [OBJECT]: compiles the kernel program. Needs clang-14, llvm-14, libc6-dev and linux-libc-dev of
# Debian 12, which make the same object everywhere; the one beside this file is what cargo builds in.
set -euo pipefail
source="$(realpath "$(dirname "$0")")"
object="$(realpath -m "${1:-$source/flowgate.bpf.o}")"
mkdir -p "$(dirname "$object")"
cd "$source"
clang-14 -O2 -g -Wall -Wextra -Werror -target bpf -mcpu=v3 "-ffile-prefix-map=$PWD=." \
    -I/usr/include/x86_64-linux-gnu -c flowgate.bpf.c -o "$object"
llvm-strip-14 --strip-debug "$object"
