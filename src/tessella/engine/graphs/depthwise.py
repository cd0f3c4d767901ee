"""Depthwise convolutions with a kernel that OpenVINO has, but does not choose by itself.

On CPUs with AVX-512 it takes `brgconv_avx512_dw`; `jit_avx512_dw` is faster for ConvMixer in float32, and in bfloat16
for kernels of 9 x 9 (docs/log.md). The choice is an attribute of a node, which the Python interface cannot set, but a
node of a model that is read from XML can have. So a model with one convolution is read, and its convolution is
connected to the graph.
"""

from __future__ import annotations

from ...machine import vector_features
from ..openvino import core
from ..runtime import op, ov

KERNEL = "cpu:jit_avx512_dw"
SMALL = 7  # side of a convolution kernel, up to which OpenVINO's choice is faster in bfloat16
TEMPLATE = """<net name="depthwise" version="11"><layers>
<layer id="0" name="x" type="Parameter" version="opset1"><data shape="?,{width},?,?" element_type="f32"/>
<output><port id="0" precision="FP32">{map}</port></output></layer>
<layer id="1" name="weight" type="Parameter" version="opset1">
<data shape="{width},1,1,{side},{side}" element_type="f32"/>
<output><port id="0" precision="FP32">{weight}</port></output></layer>
<layer id="2" name="y" type="GroupConvolution" version="opset1">
<data strides="1, 1" pads_begin="{before}, {before}" pads_end="{after}, {after}" dilations="1, 1" auto_pad="explicit"/>
<rt_info><attribute name="primitives_priority" version="0" value="{kernel}"/></rt_info>
<input><port id="0" precision="FP32">{map}</port><port id="1" precision="FP32">{weight}</port></input>
<output><port id="2" precision="FP32">{map}</port></output></layer>
<layer id="3" name="z" type="Result" version="opset1"><input><port id="0" precision="FP32">{map}</port></input></layer>
</layers><edges><edge from-layer="0" from-port="0" to-layer="2" to-port="0"/>
<edge from-layer="1" from-port="0" to-layer="2" to-port="1"/>
<edge from-layer="2" from-port="2" to-layer="3" to-port="0"/></edges></net>"""


def depthwise_convolution(x_BDhw: ov.Output, weight: ov.Node, precision: str) -> ov.Node:
    """Return a depthwise convolution that keeps the size: (B,D,h,w) -> (B,D,h,w); weight: a node (D,1,1,k,k).

    precision: in which the runtime computes it.
    """
    width, side = weight.shape[0], weight.shape[-1]
    before, after = (side - 1) // 2, side // 2  # as padding="same" of PyTorch
    if "avx512" not in vector_features() or (precision == "bfloat16" and side <= SMALL):
        return op.group_convolution(x_BDhw, weight, [1, 1], [before] * 2, [after] * 2, [1, 1])
    values = dict(width=width, side=side, before=before, after=after, kernel=KERNEL)
    xml = TEMPLATE.format(map=_ports(-1, width, -1, -1), weight=_ports(width, 1, 1, side, side), **values)
    model = core().read_model(xml.encode(), b"")
    node = next(node for node in model.get_ordered_ops() if node.get_type_name() == "GroupConvolution")
    for index, source in enumerate((x_BDhw, weight)):
        node.input(index).replace_source_output(source.output(0) if isinstance(source, ov.Node) else source)
    return node  # its shapes are inferred when the graph is complete


def _ports(*sizes: int) -> str:
    return "".join(f"<dim>{size}</dim>" for size in sizes)
