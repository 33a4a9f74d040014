# Turns a file into a C array: cmake -DFROM=page.html -DTO=page.c -DNAME=page -P embed.cmake
file(READ ${FROM} hex HEX)
string(LENGTH "${hex}" n)
math(EXPR n "${n} / 2")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
string(REGEX REPLACE "(................................................................................)" "\\1\n" bytes "${bytes}")
file(WRITE ${TO} "#include <stddef.h>\nextern const unsigned char ${NAME}[];\nextern const size_t ${NAME}_bytes;\n"
                 "const unsigned char ${NAME}[] = {\n${bytes}};\nconst size_t ${NAME}_bytes = ${n};\n")
