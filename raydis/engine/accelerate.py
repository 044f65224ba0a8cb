"""Make a training step launch fewer kernels: compile blocks of the network, or capture the step as one CUDA graph.

A step of a small network consists of more than a thousand kernels of a few microseconds each, and a GPU may wait for
their launches longer than it computes. Compilation fuses kernels, and a CUDA graph launches all of them at once. Both
need tensors of fixed shapes, and a step that reads no values back from the device. The loader and the padded buffers of
the anchors have fixed shapes for this reason.
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
WARMUP_CALLS = 3  # before a capture, as in PyTorch's notes on CUDA graphs: libraries then choose their algorithms


def resolve_mode(compute: ComputeConfig, device: torch.device) -> Mode:
    """Return `compute.compile` if the device supports it.

    Raises:
        ResourceError: the configuration asks for a CUDA graph, and the device is not a GPU.
    """
    if compute.compile in ("graph", "full") and device.type != "cuda":
        raise ResourceError(
            f"compute.compile={compute.compile} captures a CUDA graph, but this run computes on {device.type}: "
            "set compute.compile=off or compute.compile=blocks"
        )
    return compute.compile


def compile_blocks(network: nn.Module, backend: str = "inductor") -> None:
    """Compile each residual block and each transformer of a network in place. The first call of a block compiles it.

    Blocks of equal shapes share their code, so the time of the compilation depends on the number of different blocks. A
    block that cannot be compiled as a whole raises an error instead of making the run slower.
    """
    import torch._dynamo  # takes a second, so only runs that compile import it

    blocks = [module for module in network.modules() if isinstance(module, ResBlock | TokenTransformer)]
    # Torch stops compiling a function after 8 variants. Each block is a variant, and a process may hold several runs.
    for name in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(torch._dynamo.config, name, getattr(torch._dynamo.config, name) + len(blocks))
    for block in blocks:
        block.compile(fullgraph=True, dynamic=False, backend=backend)


def naming_compiler_errors(step: Function) -> Function:
    """Return the same function, but turn errors of torch.compile into a FitError that names the setting to change."""
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
    """A recording of work on a device."""

    def warm_up(self, call: Callable[[], Tensors]) -> Tensors:
        """Run a call on the stream on which it will be captured."""
        ...

    def capture(self, call: Callable[[], Tensors]) -> Tensors:
        """Record a call without running it; return the tensors that every replay fills."""
        ...

    def replay(self) -> None:
        """Run the recorded work."""
        ...


class CudaGraph:
    """A CUDA graph, captured on a side stream after a warm-up there (PyTorch's notes on CUDA graphs)."""

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
    """A function of named tensors that is called WARMUP_CALLS times, then captured, and then replayed.

    Random numbers follow torch's global generator as in a plain call: each replay starts from its present state.

    Args:
        function: a function that works on the device alone, takes tensors of the same names and shapes in every call,
            and changes other tensors in place only.
        graph: the recording to fill and to replay.
    """

    def __init__(self, function: Function, graph: Graph) -> None:
        self._function = function
        self._graph = graph
        self._inputs: Tensors = {}
        self._outputs: Tensors | None = None
        self._num_calls = 0

    def __call__(self, tensors: Tensors) -> Tensors:
        """Return the results of the function. After the capture, the next call overwrites the returned tensors.

        Raises:
            ValueError: the tensors have other names or shapes than in the first call.
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
    """Return the beginning of torch's message, which can be several pages long."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
