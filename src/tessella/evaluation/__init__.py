"""Accuracy on labelled images."""
