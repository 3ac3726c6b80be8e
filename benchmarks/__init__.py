"""Benchmarks: time this library against public code on the same images and maps (`make bench`)."""
