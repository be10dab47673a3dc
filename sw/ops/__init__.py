"""The operators of the integer graph, one module each. A new operator adds its line here."""
from .add import Add
from .base import Array, Op, TensorType
from .concat import Concat
from .conv import Conv
from .decode import Decode
from .deform import Deform
from .depthwise import Depthwise
from .max_pool import MaxPool
from .requant import Requant
from .shuffle import Shuffle
from .split import Split
from .upsample import Upsample

OPS: dict[str, type[Op]] = {
    op.name: op
    for op in (
        Conv, Depthwise, Deform, Requant, MaxPool, Upsample, Split, Concat, Shuffle, Add, Decode,
    )
}  # fmt: skip

__all__ = [
    "OPS",
    "Add",
    "Array",
    "Concat",
    "Conv",
    "Decode",
    "Deform",
    "Depthwise",
    "MaxPool",
    "Op",
    "Requant",
    "Shuffle",
    "Split",
    "TensorType",
    "Upsample",
]
