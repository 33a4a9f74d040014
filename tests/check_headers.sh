#!/bin/bash
# Every header compiles alone as C11, but those that are a part of one .c file per instruction set.
set -euo pipefail
cd "$(dirname "$0")/.."

read -ra flags <<<"-std=gnu11 -fsyntax-only -x c -D_GNU_SOURCE -DH2O_USE_LIBUV=0 -Wall -Wextra -Werror -Wno-psabi -I. \
$(pkg-config --cflags libh2o-evloop ucx hiredis libcjson | tr '\n' ' ')"
code=0
while read -r header; do
    case $header in
    */undef.h | */ignore_fields.h | *_body.h | *_avx512.h | *_avx2.h | *_amx.h) continue ;;
    esac
    if ! echo "#include \"$header\"" | gcc "${flags[@]}" -; then
        echo "$header does not compile alone"
        code=1
    fi
done < <(git ls-files '*.h')
exit $code
