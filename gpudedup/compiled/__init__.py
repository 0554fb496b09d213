"""What compiled code is made of: how it is compiled and kept, what LLVM is asked for, XXH3."""
