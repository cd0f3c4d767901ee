"""Benchmarks and tuning."""
