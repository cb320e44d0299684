"""Which channels of a network stand or fall together."""

from dataclasses import dataclass
from typing import final

from sparsemble.core.errors import InputError
from sparsemble.models.graph import Graph, Operation

KEEPS_CHANNELS = ("affine", "norm", "relu", "pool", "same", "flatten", "add")


@final
@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are added to each other, and so must have the same places everywhere."""

    channels: int
    producers: tuple[str, ...]
    """Layers whose outputs they are; empty for the image itself."""
    consumers: tuple[str, ...]
    """Layers that read them; empty for the logits."""
    operations: tuple[str, ...]
    """All operations whose results lie in the space."""

    @property
    def free(self) -> bool:
        """Whether channels can be taken out: the image's and the logits' cannot."""
        return bool(self.producers and self.consumers)


def channel_groups(graph: Graph) -> list[ChannelGroup]:
    """Group the channels of all operations by the adds that tie them.

    Raises:
        InputError: feature maps of different channel counts are added.
    """
    root: dict[str, str] = {}

    def find(name: str) -> str:
        while root[name] != name:
            name = root[name]
        return name

    for operation in graph.operations:
        root[operation.name] = operation.name
        if operation.kind in KEEPS_CHANNELS:
            for given in operation.inputs:
                root[find(given)] = find(operation.name)
    members: dict[str, list[Operation]] = {}
    for operation in graph.operations:
        members.setdefault(find(operation.name), []).append(operation)
    return [_space(graph, inside) for inside in members.values()]


def _space(graph: Graph, inside: list[Operation]) -> ChannelGroup:
    widths = {operation.shape[0] for operation in inside if operation.kind != "flatten"}
    if len(widths) > 1:
        raise InputError(f"operation {inside[-1].name} adds feature maps of {' and '.join(map(str, widths))} channels")
    readers = [
        reader.name
        for operation in inside
        for reader in graph.consumers[operation.name]
        if reader.kind in ("conv", "linear")
    ]
    return ChannelGroup(
        channels=widths.pop(),
        producers=tuple(operation.name for operation in inside if operation.kind in ("conv", "linear")),
        consumers=tuple(dict.fromkeys(readers)),
        operations=tuple(operation.name for operation in inside),
    )
