"""The layers of a detector as its torch.fx graph shows them: convolution, batch norm, activation; and which quantizer feeds which."""
from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from models.detectors.codenet import trace
from models.ops.deform import SquareDeform
from models.ops.wiring import Add, Concat, Shuffle, Split, Upsample

#: Modules that pass values on unchanged, so that their output has their input's scale.
WIRING = (Concat, Shuffle, Split, Upsample, nn.MaxPool2d)


@dataclass(frozen=True)
class Layer:
    """Module paths of a convolution, of the batch norm behind it (None: there is none), of the place of its output's quantizer, and the
    place of its input's quantizer. ``output`` is the position among the network's outputs, None inside. An addition is a layer too."""

    conv: str
    norm: str | None
    slot: str
    source: str
    output: int | None


def _module(model: nn.Module, node: fx.Node) -> nn.Module:
    return model.get_submodule(str(node.target))


def _sources(model: nn.Module, node: fx.Node) -> list[str]:
    """Slots whose values arrive at ``node`` through wiring alone."""
    if node.op == "call_module" and not isinstance(_module(model, node), WIRING):
        return [str(node.target)]
    return [slot for before in node.all_input_nodes for slot in _sources(model, before)]


def find_layers(model: nn.Module) -> tuple[list[Layer], list[list[str]]]:
    """The float model's layers in order, and the groups of slots that one quantizer must serve because a concat or
    an addition joins them."""
    graph = trace(model)
    outputs = next(node for node in graph.nodes if node.op == "output").all_input_nodes
    layers, groups = [], []
    for node in graph.nodes:
        if node.op != "call_module":
            continue
        module = _module(model, node)
        if isinstance(module, (Concat, Add)):
            groups.append(sorted({slot for before in node.all_input_nodes for slot in _sources(model, before)}))
        if not isinstance(module, (nn.Conv2d, SquareDeform, Add)):
            continue
        last, norm = node, None
        if isinstance(_module(model, behind := _only_user(node)), nn.BatchNorm2d):
            last, norm = behind, str(behind.target)
        behind = _only_user(last)
        if behind.op == "call_module" and isinstance(_module(model, behind), (nn.ReLU, nn.Hardtanh, nn.Identity)):
            last = behind
        if last is node:
            raise ValueError(f"{node.target} must be followed by a batch norm, an activation or an nn.Identity, not {behind.target!r}")
        source = set(_sources(model, node.all_input_nodes[0]))
        layers.append(Layer(str(node.target), norm, str(last.target), min(source), outputs.index(last) if last in outputs else None))
    return layers, _merged(groups)


def _only_user(node: fx.Node) -> fx.Node:
    if len(node.users) != 1:
        raise ValueError(f"{node.target} must have one user, not {len(node.users)}")
    return next(iter(node.users))


def _merged(groups: list[list[str]]) -> list[list[str]]:
    """Groups with a common member become one."""
    merged: list[set[str]] = []
    for group in map(set, groups):
        touching = [other for other in merged if other & group]
        merged = [other for other in merged if not other & group] + [group.union(*touching)]
    return [sorted(group) for group in merged]
