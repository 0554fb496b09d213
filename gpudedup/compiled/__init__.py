"""Tools of compiled code: compiling and caching it, LLVM intrinsics, huge pages, XXH3."""
