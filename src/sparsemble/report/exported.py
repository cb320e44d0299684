"""What an export left, as a table in the terminal."""

from typing import Any

from rich.table import Table


def export_table(found: dict[str, Any]) -> Table:
    """Return the content of `export.json` as a table."""
    table = Table("what", "value", box=None, header_style="bold")
    table.add_row("values of the weights", found["values"])
    table.add_row("bytes of the packed file", f"{found['bytes']:,}")
    table.add_row("share of the dense parent in float32", f"{100 * found['share_of_dense_float32']:.2f} %")
    table.add_row("sparsity", f"{found['sparsity']:.4f}")
    for name in ("unrounded", "rounded"):
        accuracy = found[name]
        table.add_row(
            f"held-out accuracy, {name}",
            f"clean {100 * accuracy['clean']:.1f} %, robust {100 * accuracy['robust']:.1f} %",
        )
    for name, one in found["formats"].items():
        if isinstance(one, str):
            table.add_row(name, one)
        else:
            table.add_row(
                f"{name} against the rounded ensemble",
                f"logits within {one['logits']:.1g}; {one['labels']} labels and {one['decisions']} decisions differ of "
                f"{one['images']} ({one['near']} hang on rounding)",
            )
            if "static_ensemble" in one:
                table.add_row(
                    f"{name}, all members in one graph",
                    f"logits within {one['static_ensemble']:.1g}; within {one['batch_of_one']:.1g} in a batch of one",
                )
    return table
