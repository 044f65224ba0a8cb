"""Fewer launches a training step: compiled blocks, and the whole step as one CUDA graph.

A step of a small network is over a thousand kernels of a few microseconds each, and a GPU can wait longer for their
launches than it computes. Compilation fuses kernels; a graph launches all of them at once. Both need shapes that never
change, which the loader and the anchors' padded buffers give, and a host that reads nothing back within the step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from raydis.config import ComputeConfig
from raydis.errors import FitError, ResourceError
from raydis.models.blocks import ResBlock, TokenTransformer

Tensors: TypeAlias = dict[str, Tensor]
Function: TypeAlias = Callable[[Tensors], Tensors]
Mode = Literal["off", "blocks", "graph", "full"]
WARMUP_CALLS = 3  # before a capture, as in PyTorch's notes on CUDA graphs: libraries choose, compilers compile


def resolve_mode(compute: ComputeConfig, device: torch.device) -> Mode:
    """`compute.compile`, if this device can do it.

    Raises:
        ResourceError: a graph is asked for where there is no GPU.
    """
    if compute.compile in ("graph", "full") and device.type != "cuda":
        raise ResourceError(
            f"compute.compile={compute.compile} captures a CUDA graph, but this run computes on {device.type}: "
            "set compute.compile=off or compute.compile=blocks"
        )
    return compute.compile


def compile_blocks(network: nn.Module, backend: str = "inductor") -> None:
    """Give every residual block and transformer of a network to torch.compile, in place; compiled at their first use.

    Blocks of equal shapes share their code, so that start-up grows with the kinds of blocks and not with their number.
    A block that cannot be compiled whole is an error, never a slower run.
    """
    import torch._dynamo  # a second, for runs that compile alone

    blocks = [module for module in network.modules() if isinstance(module, ResBlock | TokenTransformer)]
    # Torch gives up on a function after 8 kinds of arguments. A block is one kind, and a process may hold many runs.
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(torch._dynamo.config, name, getattr(torch._dynamo.config, name) + len(blocks))
    for block in blocks:
        block.compile(fullgraph=True, dynamic=False, backend=backend)


def naming_compiler_errors(step: Function) -> Function:
    """The same function; what torch.compile raises within it becomes a FitError that says how to do without."""
    from torch._dynamo.exc import TorchDynamoException

    @functools.wraps(step)
    def named(tensors: Tensors) -> Tensors:
        try:
            return step(tensors)
        except TorchDynamoException as error:
            raise FitError(
                f"torch.compile cannot compile the U-Net's blocks ({_summary(error)}): set compute.compile=off or "
                "compute.compile=graph"
            ) from error

    return named


class Graph(Protocol):
    """A recording of device work."""

    def warm_up(self, call: Callable[[], Tensors]) -> Tensors:
        """Run a call where it will be captured."""
        ...

    def capture(self, call: Callable[[], Tensors]) -> Tensors:
        """Record a call without running it; return the tensors that every replay fills."""
        ...

    def replay(self) -> None:
        """Run what was recorded."""
        ...


class CudaGraph:
    """torch.cuda.graph with its warm-up, on one side stream (PyTorch's notes on CUDA graphs, whole-network capture)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graph = torch.cuda.CUDAGraph()
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, call: Callable[[], Tensors]) -> Tensors:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = call()
        current.wait_stream(self._stream)
        return result

    def capture(self, call: Callable[[], Tensors]) -> Tensors:
        with torch.cuda.device(self._device), torch.cuda.graph(self._graph, stream=self._stream):
            return call()

    def replay(self) -> None:
        with torch.cuda.device(self._device):
            self._graph.replay()


class Captured:
    """A function of named tensors that is called WARMUP_CALLS times, then captured, and replayed from then on.

    Random numbers within it follow torch's global generator as in a plain call: each replay starts from its state.

    Args:
        function: works on the device alone, on arguments of the same names and shapes every time, and writes whatever
            it changes in place.
        graph: what records it.
    """

    def __init__(self, function: Function, graph: Graph) -> None:
        self._function = function
        self._graph = graph
        self._inputs: Tensors = {}
        self._outputs: Tensors | None = None
        self._num_calls = 0

    def __call__(self, tensors: Tensors) -> Tensors:
        """Return the function's results; from the capture on in tensors that the next call overwrites.

        Raises:
            ValueError: other names or shapes than before.
            FitError: the function cannot be captured.
        """
        if not self._inputs:
            self._inputs = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
        before, now = ({name: tuple(t.shape) for name, t in held.items()} for held in (self._inputs, tensors))
        if before != now:
            raise ValueError(f"a captured function of {before} was called with {now}")
        for name, tensor in tensors.items():
            self._inputs[name].copy_(tensor)
        self._num_calls += 1
        if self._num_calls <= WARMUP_CALLS:
            return self._graph.warm_up(self._call)
        if self._outputs is None:
            self._outputs = self._capture()
        self._graph.replay()
        return self._outputs

    def _call(self) -> Tensors:
        return self._function(self._inputs)

    def _capture(self) -> Tensors:
        try:
            return self._graph.capture(self._call)
        except RuntimeError as error:
            raise FitError(
                f"the step cannot be captured as a CUDA graph ({_summary(error)}): set compute.compile=off or "
                "compute.compile=blocks"
            ) from error


def _summary(error: Exception) -> str:
    """The beginning of what torch says, which can be pages."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
