"""The native runtime: a generator's export, and the C++ library that runs it without Python."""
