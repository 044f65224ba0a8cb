"""Count what a step does: its operations, the bytes that they move, and their floating-point operations."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view", "_reshape_alias"}


class FlopCounter(TorchDispatchMode):
    """A mode that counts the floating-point operations of matrix products and convolutions, two for a multiply-add.

    The formulas are those of `torch.utils.flop_counter.FlopCounterMode`. That class also says which module an operation
    belongs to, for which it hooks into gradients, and it fails where a loss contains gradients itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, formula = kwargs or {}, flop_registry.get(func._overloadpacket)
        if formula is None:
            with self:  # an operation that consists of others is counted by them
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if formula is not None:
            self.num_flops += formula(*args, **kwargs, out_val=result)
        return result


class OpCounter(TorchDispatchMode):
    """A mode that counts operations that start work, and the bytes of the tensors that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.num_ops, self.num_bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.is_view or func.namespace != "aten" or func._schema.name.removeprefix("aten::") in NO_KERNEL:
            return result
        self.num_ops += 1
        self.num_bytes += _num_bytes((args, kwargs))
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        for argument in func._schema.arguments:
            # AdamW's schema says that it writes to gradients, but it only does so to unscale them, which we never ask.
            if argument.alias_info and argument.alias_info.is_write and argument.name != "grads":
                self.num_bytes += _num_bytes(given.get(argument.name))
        if all(returned.alias_info is None for returned in func._schema.returns):
            self.num_bytes += _num_bytes(result)
        return result


def _num_bytes(tree: object) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
