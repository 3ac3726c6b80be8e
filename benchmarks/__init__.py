"""The library's time against public code's, on the same images and maps: `make bench`."""
