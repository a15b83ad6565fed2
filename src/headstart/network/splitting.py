"""Split any network into parts: the frozen backbone and the trainable head.

A valid split point is a layer that exactly one tensor enters from everything that runs before it. It is read from the
graph that torch.fx traces. Only the modules around the layer are opened; all other modules stay whole.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from headstart.console import UserError
from headstart.network.models import BatchNorm, classifier_name

# Values of `finetune_from` in place of a layer. Both fit every network.
AUTO = "auto"  # the layer with which the later half of the parameters begins
ALL = "all"  # before everything: the whole network is the head


def split_backbone_head(model: nn.Module, layer: str) -> tuple[nn.Module, nn.Module]:
    """Cut ``model`` before ``layer``: (backbone, head), with head(backbone(x)) equal to model(x).

    Raises:
        UserError: see ``split_model``.
    """
    backbone, head = split_model(model, [layer])
    return backbone, head


def resolve_layer(model: nn.Module, name: str) -> str:
    """Return the layer that ``name`` means: itself, ``ALL`` too, or the one that ``AUTO`` finds."""
    return _auto_split_layer(model) if name == AUTO else name


def split_model(model: nn.Module, before: Sequence[str]) -> list[nn.Module]:
    """Cut ``model`` before each of the layers ``before``, which are in the order they run: so many parts and one.

    A layer may be ``AUTO`` or ``ALL``.

    One after the other they are the whole network, in training mode too. The layers in them are the model's own, so
    training one trains the model. Before the first layer, and before ``ALL``, stands a part that changes nothing.

    Raises:
        UserError: the model has no such layer, or several tensors cross there.
    """
    before = [resolve_layer(model, name) for name in before]
    in_eval, in_training = (_part_modules(model, graph, before) for graph in _trace(model, before))
    return [
        one if one.code == other.code else _TrainEvalModule(one, other, model.training)
        for one, other in zip(in_eval, in_training, strict=True)
    ]


class _TrainEvalModule(nn.Module):
    """A part whose code is another one in training: where a model asks for its mode itself, and not through a layer."""

    def __init__(self, in_eval: nn.Module, in_training: nn.Module, training: bool) -> None:
        super().__init__()
        self.in_eval = in_eval
        self.in_training = in_training
        self.training = training

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (self.in_training if self.training else self.in_eval)(inputs)

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """Every tensor once, by its name in the model: both parts have the same layers."""
        return {**self.in_training.state_dict(), **self.in_eval.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any], *arguments: Any, **options: Any) -> None:
        for part in (self.in_training, self.in_eval):
            part.load_state_dict({name: state_dict[name] for name in part.state_dict()})


class _Tracer(fx.Tracer):
    """Opens the modules ``opened`` and no others."""

    def __init__(self, opened: set[str]) -> None:
        super().__init__()
        self.opened = opened

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.opened

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        """One input; what else a forward pass may be given has its default."""
        return root_fn, [self.root, self.create_proxy("placeholder", "inputs", (), {})]


def _trace(model: nn.Module, layers: Sequence[str]) -> tuple[fx.Graph, fx.Graph]:
    """The graphs of ``model`` in eval and in training mode, in which each of ``layers`` can be seen."""
    paths = [layer.split(".") for layer in layers]
    tracer = _Tracer({".".join(path[:depth]) for path in paths for depth in range(1, len(path))})
    modes = {module: module.training for module in model.modules()}
    try:
        return tracer.trace(model.eval()), tracer.trace(model.train())
    except Exception as error:  # whatever code makes of a tensor that has no values
        problem = f"what is around finetune_from {' and '.join(layers)} cannot be taken apart ({error})"
        raise UserError(f"{problem}; this model can be cut at {', '.join(valid_split_points(model))}") from None
    finally:
        for module, training in modes.items():
            module.training = training


def _position(model: nn.Module, graph: fx.Graph, layer: str) -> int:
    """Return the index of the node in ``graph`` with which the layer begins."""
    if layer == ALL:
        return 1  # behind the input
    for at, node in enumerate(graph.nodes):
        if node.op == "call_module" and f"{node.target}.".startswith(f"{layer}."):
            return at
    raise UserError(f"finetune_from {layer!r} is no layer of this model; it can be cut at {', '.join(valid_split_points(model))}; "
                    f"with {ALL} the whole network is trained")  # fmt: skip


def has_parameters(backbone: nn.Module) -> bool:
    """Whether there is anything to be trained in ``backbone`` that is not: not so before the first layer."""
    return next(backbone.parameters(), None) is not None


def leaf_modules(model: nn.Module) -> list[str]:
    """The layers of ``model`` in the order they run, as far as they are opened by ``valid_split_points``."""
    return [str(node.target) for node in _trace_coarse(model).nodes if node.op == "call_module"]


def valid_split_points(model: nn.Module) -> list[str]:
    """The layers before which ``model`` can be cut: its own, theirs, and those of sequences in it.

    The first one of a sequence is named as the sequence.
    """
    nodes = list(_trace_coarse(model).nodes)
    found, seen = [], set()
    for at, node in enumerate(nodes):
        if node.op == "call_module":
            path = str(node.target).split(".")
            prefixes = [".".join(path[:depth]) for depth in range(1, len(path) + 1)]
            if at > 1 and len(_live_nodes(nodes, at)) == 1:
                found += [prefix for prefix in prefixes if prefix not in seen][:1]
            seen.update(prefixes)
    return found


def _auto_split_layer(model: nn.Module) -> str:
    """Return the last of ``valid_split_points`` from which on are half of the parameters, not counting the classifier's.

    Where there is none, because several tensors pass wherever the network could be cut, it is ``ALL``.
    """
    nodes = list(_trace_coarse(model).nodes)
    classifier = classifier_name(model)
    counted = {id(parameter) for name, parameter in model.named_parameters() if not name.startswith(f"{classifier}.")}
    total = sum(parameter.numel() for parameter in model.parameters() if id(parameter) in counted)
    later = 0
    for at, node in reversed(list(enumerate(nodes))):
        if node.op != "call_module":
            continue
        for parameter in model.get_submodule(str(node.target)).parameters():
            if id(parameter) in counted:
                counted.remove(id(parameter))  # a layer that runs twice counts once
                later += parameter.numel()
        if at > 1 and 2 * later >= total and len(_live_nodes(nodes, at)) == 1:
            return str(node.target)
    return ALL


def _trace_coarse(model: nn.Module) -> fx.Graph:
    """The graph of ``model`` in which sequences are opened, and what stands in it directly if that can be traced."""
    sequences = {name for name, module in model.named_modules() if isinstance(module, nn.Sequential)}
    blocks = {name for name, child in model.named_children() if not isinstance(child, BatchNorm)}
    try:
        return _Tracer(sequences | {name for name in blocks if any(model.get_submodule(name).children())}).trace(model)
    except Exception:  # whatever their code makes of a tensor that has no values
        pass
    try:
        return _Tracer(sequences).trace(model)
    except Exception as error:
        raise UserError(f"this model cannot be taken apart ({error}): name another one") from None


def _live_nodes(nodes: list[fx.Node], at: int) -> list[fx.Node]:
    """The nodes before ``at`` whose results are used there or later."""
    later = set(nodes[at:])
    return [node for node in nodes[:at] if later & node.users.keys()]


def _nearest(nodes: list[fx.Node], end: int) -> str:
    """The layer nearest to ``end`` that one tensor enters."""
    layers = [at for at, node in enumerate(nodes) if node.op == "call_module" and at > 1]
    near = sorted(layers, key=lambda at: abs(at - end))
    return next((str(nodes[at].target) for at in near if len(_live_nodes(nodes, at)) == 1), "no layer")


def _part_modules(model: nn.Module, graph: fx.Graph, before: Sequence[str]) -> list[fx.GraphModule]:
    nodes = list(graph.nodes)
    ends = [_position(model, graph, layer) for layer in before]
    [entry] = [node for node in nodes if node.op == "placeholder"]
    found = []
    for start, end in zip([0, *ends], [*ends, len(nodes)], strict=True):
        part = fx.Graph()
        values = {entry: part.placeholder("inputs")}
        for node in nodes[start:end]:
            if node is not entry:
                values[node] = part.node_copy(node, values.__getitem__)
        if end < len(nodes):
            crossing = _live_nodes(nodes, end)
            if len(crossing) != 1:
                layer = before[ends.index(end)]
                problem = f"finetune_from {layer!r} is where {len(crossing)} tensors pass, and one must"
                nearest = _nearest(nodes, end)
                raise UserError(f"{problem}: {nearest} is the nearest where it does; this model can be cut at "
                                f"{', '.join(valid_split_points(model))}")  # fmt: skip
            [entry] = crossing
            part.output(values[entry])
        found.append(fx.GraphModule(model, part))
    return found
