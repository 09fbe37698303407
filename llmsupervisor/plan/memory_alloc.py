"""The compute buffer of a graph: ggml's allocator, run on sizes alone.

A buffer is as large as the furthest end that any tensor of the graph reaches while the graph is worked off in order:
inputs first, then each result in place of a parent, in the best fitting hole, or at the end; freed with its last
reader. Source: `ggml-alloc.c` (one backend, one chunk), `ggml_build_forward_expand`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import prod

Dims = tuple[int, int, int, int]

_WIDTH = {"f32": 4, "f16": 2, "i32": 4, "i64": 8}


class Tensor:
    __slots__ = (
        "address",
        "allocated",
        "base",
        "children",
        "dims",
        "external",
        "extra",
        "in_place",
        "output",
        "sources",
        "strides",
        "type",
        "views",
    )

    def __init__(
        self,
        dims: Dims,
        kind: str,
        sources: Sequence[Tensor] = (),
        *,
        base: Tensor | None = None,
        strides: Dims | None = None,
        in_place: bool = False,
        external: bool = False,
    ) -> None:
        self.dims = dims
        self.type = kind
        self.sources = sources
        self.base = base
        """Of a view: the tensor whose bytes it shows."""
        self.strides = strides or packed(dims, kind)
        self.in_place = in_place
        self.external = external
        self.extra = 0
        """Bytes that a backend asks for beyond the result itself."""
        self.output = False
        self.children = 0
        self.views = 0
        self.allocated = False
        self.address = 0

    @property
    def bytes(self) -> int:
        return prod(self.dims) * _WIDTH[self.type] + self.extra

    @property
    def contiguous(self) -> bool:
        return self.strides == packed(self.dims, self.type)

    @property
    def root(self) -> Tensor:
        return self.base or self


def packed(dims: Dims, kind: str) -> Dims:
    width = _WIDTH[kind]
    return width, width * dims[0], width * dims[0] * dims[1], width * dims[0] * dims[1] * dims[2]


def dims_of(dims: Sequence[int]) -> Dims:
    a, b, c, d = (*dims, 1, 1, 1, 1)[:4]
    return a, b, c, d


CACHE = Tensor((1, 1, 1, 1), "f32", external=True)
"""Stands for every KV cache, recurrent state and weight: they have buffers of their own."""


class Graph:
    """Tensors in the order in which they run. A weight is never named: it takes no part."""

    def __init__(self) -> None:
        self.nodes: list[Tensor] = []
        self.leaves: list[Tensor] = []
        self._seen: set[int] = set()

    # --- operations: the name of ggml, without weights and parameters ---

    def input(self, *dims: int, kind: str = "f32") -> Tensor:
        return Tensor(dims_of(dims), kind)

    def new(self, dims: Sequence[int], *sources: Tensor, kind: str = "f32") -> Tensor:
        """The result of an operation that never works in place."""
        return Tensor(dims_of(dims), kind, sources)

    def same(self, *sources: Tensor) -> Tensor:
        """The result of an element-wise operation: shaped as the first source, in its place where nobody else reads."""
        first = sources[0]
        return Tensor(first.dims, first.type, sources, in_place=True)

    def matmul(self, rows: int, b: Tensor, *others: Tensor) -> Tensor:
        return self.new((rows, *b.dims[1:]), *others, b)

    def view(self, a: Tensor, dims: Sequence[int], strides: Sequence[int] = ()) -> Tensor:
        """Strides in bytes beyond the first, as ggml's `view_2d` … `view_4d` take them."""
        shape = dims_of(dims)
        given = (_WIDTH[a.type], *strides)
        whole = list(given)
        for i in range(len(given), 4):
            whole.append(whole[i - 1] * shape[i - 1])
        return Tensor(shape, a.type, (a,), base=a.root, strides=dims_of(whole))

    def reshape(self, a: Tensor, *dims: int) -> Tensor:
        return Tensor(dims_of(dims), a.type, (a,), base=a.root)

    def permute(self, a: Tensor, *axes: int) -> Tensor:
        dims, strides = [1] * 4, [0] * 4
        for i, axis in enumerate(axes):
            dims[axis], strides[axis] = a.dims[i], a.strides[i]
        return Tensor(dims_of(dims), a.type, (a,), base=a.root, strides=dims_of(strides))

    def transpose(self, a: Tensor) -> Tensor:
        return self.permute(a, 1, 0, 2, 3)

    def copy(self, a: Tensor, *dims: int) -> Tensor:
        """`cont`."""
        return self.new(dims or a.dims, a, kind=a.type)

    def store(self, *sources: Tensor) -> Tensor:
        """Written into a cache (`set_rows`, `cpy`): a view of what lies elsewhere."""
        return Tensor((1, 1, 1, 1), "f32", sources, base=CACHE)

    # --- order and size ---

    def expand(self, tensor: Tensor) -> None:
        """Adds a tensor after everything that it needs, sources from left to right."""
        stack: list[tuple[Tensor, int]] = [(tensor, 0)]
        while stack:
            node, i = stack.pop()
            if i == 0:
                if id(node) in self._seen:
                    continue
                self._seen.add(id(node))
            if i < len(node.sources):
                stack.append((node, i + 1))
                stack.append((node.sources[i], 0))
            elif node.sources or node.base is not None:
                self.nodes.append(node)
            elif not node.external:
                self.leaves.append(node)

    def input_bytes(self, alignment: int) -> int:
        return sum(-(-leaf.bytes // alignment) * alignment for leaf in self.leaves)

    def size(self, alignment: int) -> int:
        """Bytes of the buffer. The graph is used up."""
        space = _Space(alignment)
        for leaf in self.leaves:
            _place(leaf, space)
        for node in self.nodes:
            if node.base is not None:
                node.base.views += 1
            for source in node.sources:
                source.children += 1
        for node in self.nodes:
            _place(node, space)
            for source in node.sources:
                source.children -= 1
                if source.children == 0 and source.views == 0:
                    _release(source, space)
        return space.end


class _Space:
    """Free blocks by address; the last one has no end."""

    def __init__(self, alignment: int) -> None:
        self.alignment = alignment
        self.free: list[list[int]] = [[0, 2**62]]
        self.end = 0

    def padded(self, size: int) -> int:
        return -(-size // self.alignment) * self.alignment

    def take(self, size: int) -> int:
        size = self.padded(size)
        best, best_size = len(self.free) - 1, 2**63
        for i, (_, available) in enumerate(self.free[:-1]):
            if size <= available <= best_size:
                best, best_size = i, available
        block = self.free[best]
        address = block[0]
        block[0] += size
        block[1] -= size
        if block[1] == 0:
            del self.free[best]
        self.end = max(self.end, address + size)
        return address

    def give(self, address: int, size: int) -> None:
        size = self.padded(size)
        if size == 0:
            return
        free = self.free
        i = bisect_left(free, [address])
        if i and sum(free[i - 1]) == address:
            free[i - 1][1] += size
            if sum(free[i - 1]) == free[i][0]:
                free[i - 1][1] += free.pop(i)[1]
        elif address + size == free[i][0]:
            free[i] = [address, size + free[i][1]]
        else:
            free.insert(i, [address, size])


def _place(tensor: Tensor, space: _Space) -> None:
    if tensor.external or tensor.allocated or tensor.base is not None:
        return
    tensor.allocated = True
    if tensor.in_place:
        for parent in tensor.sources:
            reusable = parent.allocated and not parent.output and parent.children == 1 and not parent.views
            layout = (parent.type, parent.dims, parent.strides)
            if reusable and layout == (tensor.type, tensor.dims, tensor.strides):
                tensor.address = parent.address
                parent.allocated = False
                return
    tensor.address = space.take(tensor.bytes)


def _release(tensor: Tensor, space: _Space) -> None:
    root = tensor.root
    if tensor.base is not None:
        root.views -= 1
        if root.views or root.children:
            return
    if root.allocated and not root.output:
        space.give(root.address, root.bytes)
        root.allocated = False
