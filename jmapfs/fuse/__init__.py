"""The pyfuse3 adapter and the kernel caches."""
