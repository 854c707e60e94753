"""What `init` found in, the lines it says out: a row a set and split with its classes' counts, then the decisions."""

from collections.abc import Sequence

from fer_pipeline.commands.survey import Found


def table(found: Found, classes: Sequence[str]) -> list[str]:
    """One line a set and split with the counts of its classes, and under it what was decided."""
    head = ("set", "part", "split", "pictures", *classes)
    rows: list[tuple[str, ...]] = []
    for name, one in found.sets.items():
        parts = {
            "anchor": name == found.anchor,
            "train": name == found.train != found.anchor,
            "pool": name in found.pools,
            "target": name in found.targets,
        }
        for split in sorted({split for split, _ in one.counts}, key=("train", "val", "test").index):
            total = sum(count for (where, _), count in one.counts.items() if where == split)
            labelled = one.classes_in(split)  # type: ignore[arg-type]
            shown = [f"{labelled.get(label, 0):,}" if labelled else "-" for label in classes]
            rows.append((name, "+".join(part for part, plays in parts.items() if plays), split, f"{total:,}", *shown))
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        return "  ".join(cells).rstrip()

    notes = []
    for name, one in found.sets.items():
        settings = one.settings
        read = ", ".join(f"{key} {value}" for key, value in settings.options.items())
        notes.append(f"{name}: {settings.adapter} in {settings.path}{f' ({read})' if read else ''}")
        notes += [f"{name}: {label} means {target}" for label, target in settings.classes.items() if target]
        notes += [f"{name}: {note}" for note in one.notes]
        if name in found.targets and (absent := [c for c in classes if not one.classes_in("test").get(c)]):
            notes.append(f"{name}: no test picture of {', '.join(absent)}")
    return [line(row) for row in (head, *rows)] + notes
