"""The operators of the integer graph, one module each. A new operator adds its line here."""
from .add import Add
from .average_pool import AveragePool
from .base import Array, Op, TensorType, narrowest
from .concat import Concat
from .conv import Conv
from .decode import Decode
from .deform import Deform
from .depthwise import Depthwise
from .global_average_pool import GlobalAveragePool
from .image import Image
from .max_pool import MaxPool
from .multiply import Multiply
from .requant import Requant
from .shuffle import Shuffle
from .split import Split
from .table import Table
from .upsample import Upsample

OPS: dict[str, type[Op]] = {
    op.name: op
    for op in (
        Conv, Depthwise, Deform, Requant, MaxPool, Upsample, Split, Concat, Shuffle, Add, Multiply, AveragePool, GlobalAveragePool,
        Table, Image, Decode,
    )
}  # fmt: skip

__all__ = [
    "OPS",
    "Add",
    "Array",
    "AveragePool",
    "Concat",
    "Conv",
    "Decode",
    "Deform",
    "Depthwise",
    "GlobalAveragePool",
    "Image",
    "MaxPool",
    "Multiply",
    "Op",
    "Requant",
    "Shuffle",
    "Split",
    "Table",
    "TensorType",
    "Upsample",
    "narrowest",
]
