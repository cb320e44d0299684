"""Groups of channels that can only be pruned together."""

from dataclasses import dataclass
from typing import final

from sparsemble.core.errors import InputError
from sparsemble.models.graph import Graph, Operation

KEEPS_CHANNELS = ("affine", "norm", "relu", "pool", "same", "flatten", "add")


@final
@dataclass(frozen=True)
class ChannelGroup:
    """Channels of layers whose outputs are added, so that the same ones must be removed everywhere."""

    channels: int
    producers: tuple[str, ...]
    """Layers whose outputs they are; empty for the input image."""
    consumers: tuple[str, ...]
    """Layers that read them; empty for the logits."""
    operations: tuple[str, ...]
    """All operations whose results have these channels."""

    @property
    def free(self) -> bool:
        """Whether channels can be removed: those of the image and of the logits cannot."""
        return bool(self.producers and self.consumers)


def channel_groups(graph: Graph) -> list[ChannelGroup]:
    """Group the channels of all operations by the additions that connect them."""
    root: dict[str, str] = {}

    def find(name: str) -> str:
        while root[name] != name:
            name = root[name]
        return name

    for operation in graph.operations:
        root[operation.name] = operation.name
        if operation.kind in KEEPS_CHANNELS:
            for source in operation.inputs:
                root[find(source)] = find(operation.name)
    members: dict[str, list[Operation]] = {}
    for operation in graph.operations:
        members.setdefault(find(operation.name), []).append(operation)
    return [_channel_group(graph, operations) for operations in members.values()]


def _channel_group(graph: Graph, operations: list[Operation]) -> ChannelGroup:
    widths = {operation.shape[0] for operation in operations if operation.kind != "flatten"}
    if len(widths) > 1:
        raise InputError(
            f"operation {operations[-1].name} adds feature maps of {' and '.join(map(str, widths))} channels"
        )
    readers = [
        reader.name
        for operation in operations
        for reader in graph.consumers[operation.name]
        if reader.kind in ("conv", "linear")
    ]
    return ChannelGroup(
        channels=widths.pop(),
        producers=tuple(operation.name for operation in operations if operation.kind in ("conv", "linear")),
        consumers=tuple(dict.fromkeys(readers)),
        operations=tuple(operation.name for operation in operations),
    )
