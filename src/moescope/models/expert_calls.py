"""The experts of a layer as functions, and what they are given while a model runs.

Every architecture whose experts are called with (hidden states, ids, weights) can be asked for one
expert's output on any input by naming it as the only choice, with weight 1. Two families have
another form and are computed from their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import nn

from moescope.errors import BadInputError, CoverageError, ModelError
from moescope.models.anatomy import MoELayer
from moescope.models.capture import Routing, RoutingCapture


class ExpertLayer:
    """The routed experts of one MoE layer.

    Example::

        experts = ExpertLayer(loaded.model, loaded.anatomy.layers[0])
        output_TD = experts(9, hidden_TD)          # what E9 makes of these inputs, unweighted

    Attributes:
        weighs_input: the family multiplies an expert's input by the weight, not its output.
    """

    def __init__(self, model: nn.Module, layer: MoELayer) -> None:
        self.layer = layer
        self._experts: Any = model.get_submodule(layer.site.experts)
        self._router = model.get_submodule(layer.site.router)
        self._call = _SPECIAL.get(type(self._experts).__name__, _by_choice)
        self.weighs_input = self._call is _llama4

    @torch.inference_mode()
    def __call__(self, expert: int, hidden_TD: torch.Tensor) -> torch.Tensor:
        """The output of one expert, (T, D), before it is multiplied by any routing weight.

        Args:
            expert: its number, below ``layer.num_experts``.
            hidden_TD: what the experts of this layer receive (see `ExpertInputs`).

        Raises:
            BadInputError: there is no such expert, or the input is not rows of numbers.
        """
        if not 0 <= expert < self.layer.num_experts:
            raise BadInputError(
                f"layer {self.layer.layer_idx} has experts 0 to {self.layer.num_experts - 1}, "
                f"got {expert}"
            )
        if hidden_TD.dim() != 2:
            raise BadInputError(
                f"an expert takes rows (tokens × numbers), got the shape {tuple(hidden_TD.shape)}"
            )
        output: torch.Tensor = self._call(self._experts, expert, hidden_TD)
        return output

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The stacked weight tensors, ``(name, (E, …))``; biases and vectors included.

        Raises:
            ModelError: this family does not keep its experts stacked, or some have no weights.
        """
        router = {id(p) for p in self._router.parameters()}  # inside the experts in one family
        tensors = [
            (name, p.detach())
            for name, p in self._experts.named_parameters()
            if p.dim() >= 2 and id(p) not in router
        ]
        other = [tuple(p.shape) for _, p in tensors if p.shape[0] != self.layer.num_experts]
        if other or not tensors:
            raise ModelError(
                f"{self.layer.site.experts} ({type(self._experts).__name__}) does not keep its "
                f"{self.layer.num_experts} experts as stacked tensors (shapes: "
                f"{', '.join(map(str, other)) or 'none'}); their weights cannot be compared"
            )
        yield from tensors

    def router_rows(self) -> torch.Tensor:
        """The router's weight vector of each expert, (E, D).

        Raises:
            ModelError: the router is not a single linear map from hidden states.
        """
        shape = (self.layer.num_experts, self.layer.hidden_size)
        rows = [p.detach() for p in self._router.parameters() if tuple(p.shape) == shape]
        if len(rows) != 1:
            raise ModelError(
                f"{self.layer.site.router} ({type(self._router).__name__}) has {len(rows)} weights "
                f"of shape {shape}, expected one; its experts have no router rows to compare"
            )
        return rows[0]


class LayerInput(NamedTuple):
    """What one MoE layer received and decided: ``hidden`` (T, D), padding rows included."""

    hidden: torch.Tensor
    routing: Routing


class ExpertInputs:
    """Context manager that records, for each forward pass, what the experts receive.

    Example::

        with ExpertInputs(model, layers) as inputs:
            model(input_ids)
            hidden_TD, routing = inputs.take()[5]       # layer 5
    """

    def __init__(self, model: nn.Module, layers: Sequence[MoELayer]) -> None:
        self._model, self._layers = model, layers
        self._capture = RoutingCapture(model, [layer.site for layer in layers])
        self._hidden: dict[int, torch.Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        self._capture.__enter__()
        for layer in self._layers:
            block = self._model.get_submodule(layer.site.block)
            experts = self._model.get_submodule(layer.site.experts)
            own = type(experts).__name__ == "Llama4TextExperts"  # gets scaled copies, see _llama4
            module = block if own else experts
            self._handles.append(
                module.register_forward_pre_hook(self._keep(layer), with_kwargs=True)
            )
        return self

    def _keep(self, layer: MoELayer) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            self._hidden[layer.layer_idx] = hidden.detach().reshape(-1, hidden.shape[-1])

        return hook

    def __exit__(self, *raised: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._capture.__exit__(*raised)

    def take(self, expected_rows: int | None = None) -> dict[int, LayerInput]:
        """Inputs and routing of the one forward pass since the last take, by layer number.

        Raises:
            CoverageError: a layer was not called exactly once, or saw other rows.
        """
        routing = self._capture.take(expected_rows)
        hidden, self._hidden = self._hidden, {}
        for layer_idx, seen in routing.items():
            if layer_idx not in hidden or hidden[layer_idx].shape[0] != seen.topk_ids.shape[0]:
                raise CoverageError(
                    f"layer {layer_idx}: the experts' input was not seen, or has other rows than "
                    "the router"
                )
        return {n: LayerInput(hidden[n], seen) for n, seen in routing.items()}


def _by_choice(experts: Any, expert: int, hidden_TD: torch.Tensor) -> torch.Tensor:
    if expert >= getattr(experts, "num_experts", expert + 1):
        return torch.zeros_like(hidden_TD)  # a skip expert, which has no weights
    ids = torch.full((hidden_TD.shape[0], 1), expert, device=hidden_TD.device)
    weights = torch.ones_like(ids, dtype=hidden_TD.dtype)
    output = experts(hidden_TD, ids, weights)
    return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]


def _llama4(experts: Any, expert: int, hidden_TD: torch.Tensor) -> torch.Tensor:
    """Llama 4 multiplies the input by the weight, so this is the output at weight 1."""
    gate, up = (hidden_TD @ experts.gate_up_proj[expert]).chunk(2, dim=-1)
    return (up * experts.act_fn(gate)) @ experts.down_proj[expert]  # type: ignore[no-any-return]


def _jetmoe(experts: Any, expert: int, hidden_TD: torch.Tensor) -> torch.Tensor:
    gate, up = nn.functional.linear(hidden_TD, experts.input_linear.weight[expert]).chunk(2, dim=-1)
    hidden = experts.activation(gate) * up
    return nn.functional.linear(hidden, experts.output_linear.weight[expert])


def _by_two_choices(experts: Any, expert: int, hidden_TD: torch.Tensor) -> torch.Tensor:
    """For families whose code does not stand K = 1: a second choice with weight 0."""
    ids = torch.tensor([expert, 1 if expert == 0 else 0], device=hidden_TD.device)
    weights = torch.tensor([1.0, 0.0], device=hidden_TD.device, dtype=hidden_TD.dtype)
    rows = (hidden_TD.shape[0], 2)
    return experts(hidden_TD, ids.expand(rows), weights.expand(rows))  # type: ignore[no-any-return]


def _dbrx(experts: Any, expert: int, hidden_TD: torch.Tensor) -> torch.Tensor:
    """DBRX wants a batch axis."""
    return _by_choice(lambda hidden, *choice: experts(hidden[None], *choice)[0], expert, hidden_TD)


_SPECIAL: dict[str, Callable[[Any, int, torch.Tensor], torch.Tensor]] = {
    "Llama4TextExperts": _llama4,
    "JetMoeMoE": _jetmoe,
    "DbrxExperts": _dbrx,
    "LongcatFlashExperts": _by_two_choices,
}
