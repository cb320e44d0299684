"""Machine code for one network: written as LLVM, compiled for this processor, kept on disk."""
