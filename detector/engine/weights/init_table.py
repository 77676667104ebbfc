"""What a training began with, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from detector.engine.weights.class_rows import NameMatch
from detector.engine.weights.weight_transfer import Transfer

# Titles of what became of tensors, and the attribute of a Transfer that lists them.
ROWS = {
    "loaded": "loaded",
    "carried by name": "carried",
    "re-initialised": "reinitialised",
    "missing": "missing",
    "unused": "unused",
}
NUM_EXAMPLES = 3


def transfer_report(transfer: Transfer) -> Iterator[Table | str]:
    """The table, and a line about the names of each kind of rows, to print one after the other."""
    yield transfer_table(transfer)
    for of, match in transfer.matches.items():
        yield f"{of}: {_describe(match)}"


def transfer_table(transfer: Transfer) -> Table:
    """Tensors and parameters of each part of the model, by what became of them.

    Parameters are counted with the statistics of batch norms. Of what was not simply loaded the
    layers are named, without ``weight`` and ``bias``.
    """
    table = Table(title=f"init: {transfer.source}", title_justify="left")
    table.add_column("part")
    table.add_column("")
    table.add_column("tensors", justify="right", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("of these")
    names = [name for row in ROWS.values() for name in getattr(transfer, row)]
    for part in dict.fromkeys(name.partition(".")[0] for name in (*transfer.sizes, *names)):
        for title, attribute in ROWS.items():
            inside = [n for n in getattr(transfer, attribute) if n.startswith(f"{part}.")]
            if inside:
                style = {"loaded": "", "carried by name": "green", "unused": "dim"}
                table.add_row(
                    Text(part),
                    Text(title, style=style.get(title, "yellow")),
                    str(len(inside)),
                    f"{sum(transfer.sizes[name] for name in inside):,}",
                    Text("" if title == "loaded" else layers(inside, part)),
                )
        table.add_section()
    for title, attribute in ROWS.items():
        whole = getattr(transfer, attribute)
        if whole:
            count = sum(transfer.sizes[name] for name in whole)
            table.add_row("in all", title, str(len(whole)), f"{count:,}", "")
    return table


def layers(names: Sequence[str], part: str) -> str:
    """``"predictor.scores, predictor.deltas"``: the first layers of ``part`` among ``names``."""
    inside = (name.removeprefix(f"{part}.").rpartition(".") for name in names)
    found = list(dict.fromkeys(layer or last for layer, _, last in inside))
    more = f", ... {len(found)} layers" if len(found) > NUM_EXAMPLES else ""
    return ", ".join(found[:NUM_EXAMPLES]) + more


def _describe(match: NameMatch) -> str:
    former, names = (_some(x) for x in (match.former, match.names))
    if match.how == "same":
        return f"the same {len(match.names)} as in the checkpoint"
    if match.how == "order":
        return (
            f"{names}: as many as the checkpoint's {former}, whose rows they take in order "
            "(init.match_names=true goes by names)"
        )
    if match.how == "name":
        new = [n for n, place in zip(match.names, match.source, strict=True) if place is None]
        random = f"; {len(new)} begin with random values: {_some(new)}" if new else ""
        return f"{len(match.carried)} go on from rows of their name: {_some(match.carried)}{random}"
    return f"{len(match.former)} before ({former}), {len(match.names)} now ({names})"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
