"""Split any network into a frozen backbone and a trainable head.

A layer is a valid split point if exactly one tensor crosses the point before it: one result of an earlier layer is used
there or later. Split points are read from the graph that torch.fx traces. Only the modules around a split point are
traced; all other modules stay whole.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from headstart.console import UserError
from headstart.network.models import BatchNorm, classifier_name

# Values of `finetune_from` that are no layer. Both fit every network.
AUTO = "auto"  # the layer from which on the head has the later half of the parameters
ALL = "all"  # the network's input: the head is the whole network


def split_backbone_head(model: nn.Module, layer: str) -> tuple[nn.Module, nn.Module]:
    """Split ``model`` before ``layer`` into (backbone, head), with head(backbone(x)) equal to model(x).

    Raises:
        UserError: see ``split_model``.
    """
    backbone, head = split_model(model, [layer])
    return backbone, head


def resolve_layer(model: nn.Module, name: str) -> str:
    """Return the layer that ``AUTO`` stands for; any other ``name`` is returned as it is."""
    return _auto_split_layer(model) if name == AUTO else name


def split_model(model: nn.Module, layers: Sequence[str]) -> list[nn.Module]:
    """Split ``model`` before each of ``layers`` into len(layers) + 1 parts.

    Run in sequence, the parts equal the whole network, in training mode too. They share the model's layers, so training
    a part trains the model. The part before the first layer of the network, and before ``ALL``, is the identity.

    Args:
        layers: in the order they run; ``AUTO`` and ``ALL`` are allowed.

    Raises:
        UserError: the model has no such layer, or several tensors cross that point.
    """
    layers = [resolve_layer(model, layer) for layer in layers]
    eval_parts, train_parts = (_split_graph(model, graph, layers) for graph in _trace(model, layers))
    return [
        eval_part if eval_part.code == train_part.code else _TrainEvalModule(eval_part, train_part, model.training)
        for eval_part, train_part in zip(eval_parts, train_parts, strict=True)
    ]


class _TrainEvalModule(nn.Module):
    """Dispatch to separate train and eval graphs, for models whose ``forward`` branches on ``self.training``."""

    def __init__(self, eval_part: nn.Module, train_part: nn.Module, training: bool) -> None:
        super().__init__()
        self.in_eval = eval_part
        self.in_training = train_part
        self.training = training

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (self.in_training if self.training else self.in_eval)(inputs)

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return every tensor once, by its name in the model: both graphs share their layers."""
        return {**self.in_training.state_dict(), **self.in_eval.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any], *arguments: Any, **options: Any) -> None:
        for part in (self.in_training, self.in_eval):
            part.load_state_dict({name: state_dict[name] for name in part.state_dict()})


class _Tracer(fx.Tracer):
    """Trace into the modules ``traced`` and into no others."""

    def __init__(self, traced: set[str]) -> None:
        super().__init__()
        self.traced = traced

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.traced

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        """Return a single input; all other arguments of ``forward`` have their defaults."""
        return root_fn, [self.root, self.create_proxy("placeholder", "inputs", (), {})]


def _trace(model: nn.Module, layers: Sequence[str]) -> tuple[fx.Graph, fx.Graph]:
    """Return the graphs of ``model`` in eval and in training mode, in which each of ``layers`` is visible."""
    paths = [layer.split(".") for layer in layers]
    tracer = _Tracer({".".join(path[:depth]) for path in paths for depth in range(1, len(path))})
    modes = {module: module.training for module in model.modules()}
    try:
        return tracer.trace(model.eval()), tracer.trace(model.train())
    except Exception as error:  # model code may raise anything if a tensor has no values
        problem = f"torch.fx cannot trace the modules around this point ({error})"
        raise UserError(f"cannot split the model at {_quoted(layers)}: {problem}. {_choices(model)}.") from None
    finally:
        for module, training in modes.items():
            module.training = training


def _quoted(layers: Sequence[str]) -> str:
    return " and ".join(map(repr, layers))


def _choices(model: nn.Module) -> str:
    return f"Choose one of {', '.join(valid_split_points(model))}"


def _position(model: nn.Module, graph: fx.Graph, layer: str) -> int:
    """Return the index of the first node of ``layer`` in ``graph``."""
    if layer == ALL:
        return 1  # after the input
    for index, node in enumerate(graph.nodes):
        if node.op == "call_module" and f"{node.target}.".startswith(f"{layer}."):
            return index
    raise UserError(f"unknown layer: {layer!r}. {_choices(model)}, or {ALL} to train the whole network.")


def has_parameters(backbone: nn.Module) -> bool:
    """Return whether ``backbone`` has parameters. It has none if the head is the whole network."""
    return next(backbone.parameters(), None) is not None


def leaf_modules(model: nn.Module) -> list[str]:
    """Return the layers of ``model`` in the order they run, at the depth at which ``valid_split_points`` looks."""
    return [str(node.target) for node in _trace_coarse(model).nodes if node.op == "call_module"]


def valid_split_points(model: nn.Module) -> list[str]:
    """Return the valid split points: direct children, their children, and members of ``nn.Sequential`` modules.

    The first member of a module is named as the module.
    """
    nodes = list(_trace_coarse(model).nodes)
    split_points, seen = [], set()
    for index, node in enumerate(nodes):
        if node.op == "call_module":
            path = str(node.target).split(".")
            prefixes = [".".join(path[:depth]) for depth in range(1, len(path) + 1)]
            if _is_split_point(nodes, index):
                split_points += [prefix for prefix in prefixes if prefix not in seen][:1]
            seen.update(prefixes)
    return split_points


def _auto_split_layer(model: nn.Module) -> str:
    """Return the last valid split point that leaves the head at least half of the parameters, without the classifier's.

    If there is none, because several tensors cross all earlier points, return ``ALL``.
    """
    nodes = list(_trace_coarse(model).nodes)
    classifier = classifier_name(model)
    uncounted = {id(parameter) for name, parameter in model.named_parameters() if not name.startswith(f"{classifier}.")}
    total = sum(parameter.numel() for parameter in model.parameters() if id(parameter) in uncounted)
    n_head = 0
    for index, node in reversed(list(enumerate(nodes))):
        if node.op != "call_module":
            continue
        for parameter in model.get_submodule(str(node.target)).parameters():
            if id(parameter) in uncounted:
                uncounted.remove(id(parameter))  # a layer that runs twice counts once
                n_head += parameter.numel()
        if 2 * n_head >= total and _is_split_point(nodes, index):
            return str(node.target)
    return ALL


def _trace_coarse(model: nn.Module) -> fx.Graph:
    """Trace ``model``, descending into ``nn.Sequential`` modules and, if traceable, into its direct children."""
    sequences = {name for name, module in model.named_modules() if isinstance(module, nn.Sequential)}
    blocks = {name for name, child in model.named_children() if not isinstance(child, BatchNorm)}
    try:
        return _Tracer(sequences | {name for name in blocks if any(model.get_submodule(name).children())}).trace(model)
    except Exception:  # model code may raise anything if a tensor has no values
        pass
    try:
        return _Tracer(sequences).trace(model)
    except Exception as error:
        raise UserError(f"torch.fx cannot trace this model ({error}). Choose another model_name.") from None


def _live_nodes(nodes: list[fx.Node], index: int) -> list[fx.Node]:
    """Return the nodes before ``index`` whose results are used there or later: the tensors that cross this point."""
    later = set(nodes[index:])
    return [node for node in nodes[:index] if later & node.users.keys()]


def _is_split_point(nodes: list[fx.Node], index: int) -> bool:
    """Return whether exactly one tensor crosses the point before ``index``, and layers run before it."""
    return index > 1 and len(_live_nodes(nodes, index)) == 1


def _nearest_split_point(nodes: list[fx.Node], end: int) -> str:
    """Return the valid split point nearest to the node ``end``."""
    candidates = [i for i, node in enumerate(nodes) if node.op == "call_module" and _is_split_point(nodes, i)]
    nearest = min(candidates, key=lambda index: abs(index - end), default=None)
    return "none" if nearest is None else repr(str(nodes[nearest].target))


def _split_graph(model: nn.Module, graph: fx.Graph, layers: Sequence[str]) -> list[fx.GraphModule]:
    """Return the parts of ``graph`` between ``layers`` as modules that share the layers of ``model``."""
    nodes = list(graph.nodes)
    ends = [_position(model, graph, layer) for layer in layers]
    [entry] = [node for node in nodes if node.op == "placeholder"]
    parts = []
    for begin, end, layer in zip([0, *ends], [*ends, len(nodes)], [*layers, ""], strict=True):
        part = fx.Graph()
        values = {entry: part.placeholder("inputs")}
        for node in nodes[begin:end]:
            if node is not entry:
                values[node] = part.node_copy(node, values.__getitem__)
        if end < len(nodes):
            live_nodes = _live_nodes(nodes, end)
            if len(live_nodes) != 1:
                raise UserError(f"cannot split the model at {layer!r}: {len(live_nodes)} tensors cross this point, but "
                                f"exactly one must. Nearest valid split point: {_nearest_split_point(nodes, end)}. "
                                f"{_choices(model)}.")  # fmt: skip
            [entry] = live_nodes
            part.output(values[entry])
        parts.append(fx.GraphModule(model, part))
    return parts
