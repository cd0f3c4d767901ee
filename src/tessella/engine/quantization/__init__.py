"""int8: graphs whose products multiply 8-bit weights and activations.

`observe.py` measures the inputs of all products on calibration images, `quantize.py` builds the graph from the ranges,
and `search.py` finds the products that have to stay in float32 for the outputs to agree with the exact ones.
"""

from __future__ import annotations

from .calibrate import quantized_graph as quantized_graph
