"""TIFF slides decoded by cuCIM, in this process or, where torch came first, in one of its own."""
