"""Bulk runs on a Ray cluster."""
