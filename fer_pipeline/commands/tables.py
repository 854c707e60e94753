"""Guess how a table of pictures is to be read, where one answer is obvious.

A column is known by its name, the image root by where the pictures of the first rows are. No answer, or more than one,
is one line that lists the candidates and names the option of `init` that decides.
"""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from fer_pipeline.core.errors import DataError
from fer_pipeline.core.expressions import BASIC_8
from fer_pipeline.core.settings import Split
from fer_pipeline.datasets import csv
from fer_pipeline.datasets._files import SPLITS, PictureRoot, is_absolute, kind_of, visible_entries
from fer_pipeline.datasets.csv import ROWS_TRIED, Table, is_picture, open_table

USUAL_NAMES = {
    "image": "image images img imgs file files filename filepath path imagepath imagename imagefile imageid "
    "picture pic photo subdirectoryfilepath",
    "label": "label labels emotion emotions expression class category emotionlabel expressionlabel",
    "subject": "subject subjectid identity identityid person personid participant participantid actor",
    "split": "split usage set subset partition",
}
PICTURE_FOLDERS = frozenset("image images img imgs face faces picture pictures photos".split())
MOST_FOLDERS = 1000  # below one folder: those of identities are thousands
MOST_BEGINNINGS = 10  # of lists from several machines, put together in one table
MARKS = {"tab": "\t", "\\t": "\t", "blank": " ", "space": " ", "comma": ",", "semicolon": ";"}  # a shell eats some
NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?"
EXPRESSIONS = frozenset(word for word in (*BASIC_8, "happy", "sad", "angry", "disgusted", "fearful", "surprised"))
CHOICE = r"(?:([A-Za-z0-9][A-Za-z0-9_.-]*)=(?=.))?(.+)"  # [SET=]VALUE; `x=` alone is a value

Choices = Mapping[str, Sequence[str | Path]]  # by the option of `init`, in the order in which they are tried


def split_choices(choices: Choices) -> list[tuple[str, str, str]]:
    """Returns option, set (empty where none is named) and value of each choice, written `value` or `set=value`."""
    matches = [(key, re.fullmatch(CHOICE, str(value))) for key, values in choices.items() for value in values]
    return [(key, match[1] or "", match[2]) for key, match in matches if match]


def choices_for_set(choices: Choices, name: str) -> Choices:
    """Returns the choices for one set: first those that name it, then those that name none."""
    parts = sorted((part for part in split_choices(choices) if part[1] in (name, "")), key=lambda part: not part[1])
    return {key: [value for option, _, value in parts if option == key] for key in choices}


def sets_marked(words: str, names: Iterable[str]) -> list[tuple[str, str]]:
    """Returns the sets that `words` may name before a colon or an equals sign, each with the rest of `words`.

    Names may hold these signs, so there can be several; the longest name is first.
    """
    marked = [name for name in names if words.startswith((f"{name}:", f"{name}="))]
    return [(name, words[len(name) + 1 :].strip()) for name in sorted(marked, key=len, reverse=True)]


def first_choice(choices: Choices, option: str) -> str | None:
    """Returns the value that counts of an option that takes one; None where it is not given."""
    return next(map(str, choices.get(option, ())), None)


def split_names(text: str) -> tuple[str, ...]:
    """Returns the names in a list with commas between."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def guess_csv(
    file: Path, choices: Choices, *, labelled: bool, project: Path, splits: Mapping[str, Split] | None = None
) -> tuple[Path, csv.Options]:
    """Returns the folder that holds table and pictures, which DVC is to track, and the options relative to it.

    Args:
        file: The table.
        choices: What the user said of this set.
        labelled: Whether the table must have labels.
        project: The project's folder, which DVC cannot track as a data set.
        splits: The user's own words for splits.

    Raises:
        DataError: There is no obvious answer, or more than one; it names the option that decides.
    """
    encoding, mark, named = (first_choice(choices, option) for option in ("encoding", "delimiter", "columns"))
    delimiter = mark and MARKS.get(mark, mark)
    columns = split_names(named) if named else None
    table = open_table(file, delimiter=delimiter, encoding=encoding, columns=columns)
    if table.lacks_header:
        columns = _guess_columns(table, labelled=labelled)
        table = replace(table, columns=columns, has_header=False)
    if labelled:
        _refuse_votes(table, choices)
    pictures = _find_pictures(table, choices)
    image, root = pictures.column, pictures.root
    folder = _common_folder(file, root, project)
    kinds = ("label", "subject", "split") if labelled else ("subject",)
    found = {kind: _find_column(table, kind, choices) for kind in kinds}
    if (split := found.get("split")) and not choices.get("split_column"):
        words = (cells[table.position(split, "split")].strip().lower() for _, cells in table.rows())
        known = {*SPLITS, *(word.strip().lower() for word in splits or ())}
        if not any(word in known for word in words):  # one called `set` without names of splits is none
            found["split"] = None
    options = csv.Options(
        csv=Path(os.path.relpath(file, folder)),
        images=Path(os.path.relpath(root, folder)),
        image=image,
        label=found.get("label"),
        subject=found["subject"],
        split=found.get("split"),
        columns=columns,
        delimiter=delimiter,
        encoding=encoding,
        prefixes=pictures.prefixes,
        ending=pictures.ending,
    )
    if labelled and options.split is None:
        options = options.model_copy(update={"split_by_name": _names_tell_splits(table, options)})
    return folder, options


def _no_column(table: Table, kind: str) -> DataError:
    columns, cure = ", ".join(map(repr, table.columns)), f"name it by --{kind}-column"
    if len(table.columns) == 1:
        cure += ", or what is between the cells by --delimiter"
    return DataError(f"no column of {table.file} looks like the {kind}'s; found {columns}; {cure}")


def _candidates(table: Table, kind: str, choices: Choices) -> list[str]:
    if chosen := list(map(str, choices.get(f"{kind}_column", ()))):
        present = [name for name in chosen if name in table.columns]
        return present[:1] or [table.columns[table.position(chosen[0], kind)]]
    usual = USUAL_NAMES[kind].split()
    return [name for name in table.columns if "".join(filter(str.isalnum, name.lower())) in usual]


def _find_column(table: Table, kind: str, choices: Choices) -> str | None:
    columns = _candidates(table, kind, choices)
    if kind == "label" and not columns:
        raise _no_column(table, kind)
    if len(columns) > 1:
        fault = f"{table.file} has several columns that may be the {kind}'s"
        raise _several(fault, map(repr, columns), f"{kind}-column")
    return columns[0] if columns else None


def _several(fault: str, names: Iterable[object], option: str) -> DataError:
    return DataError(f"{fault}: {', '.join(map(str, names))}; name one by --{option}")


class Pictures(NamedTuple):
    """The column that names the pictures, the folder they are in, and how their names differ from those listed."""

    column: str
    root: Path
    prefixes: tuple[str, ...] = ()
    ending: str = ""

    def name(self, cell: str) -> str:
        """Returns what the picture of a cell is called below the root; nothing where its beginning is another."""
        try:
            return csv.picture_name(cell, self.prefixes, self.ending, where="").replace("\\", "/")
        except DataError:
            return ""


def _stands_there(root: PictureRoot, name: str) -> bool:
    file = Path(os.path.normpath(root.folder / name))
    return bool(name) and file.is_relative_to(root.folder) and os.path.isfile(file)  # False for a name that is too long


def _stands_there_in_another_form(root: PictureRoot, name: str) -> bool:
    """Says the same of a like name, such as one without suffix; this lists folders, so it is asked last."""
    return bool(name) and (file := root.match(name)) is not None and os.path.isfile(file)


def _find_pictures(table: Table, choices: Choices) -> Pictures:
    """Finds column and root together: of several columns the one whose files exist.

    Where no file is called as the table has it, the names are tried in another form (without suffix, in other
    capitals); then without their beginning (absolute paths of another machine), the longest rest first, and with
    another ending, where every row that is tried must have its file.
    """
    columns = _candidates(table, "image", choices)
    if not columns:
        raise _no_column(table, "image")
    rows = [cells for _, cells in islice(table.rows(), ROWS_TRIED)]
    names = {column: [cells[table.position(column, "image")] for cells in rows] for column in columns}
    if not rows:
        raise DataError(f"{table.file} has no row below its column names; it needs one row a picture")
    prefixes = tuple(str(prefix).replace("\\", "/") for prefix in choices.get("image_prefix", ()))
    ending, first = first_choice(choices, "image_ending") or "", names[columns[0]][0]
    roots = list(_roots(table.file, choices, names[columns[0]]))
    folders = {root: PictureRoot(root, follow_links=True) for group in roots for root in group}
    for find in (_stands_there, _stands_there_in_another_form):
        for group in roots:
            counts: dict[Pictures, int] = {}
            for one in (Pictures(column, root, prefixes, ending) for column in columns for root in group):
                counts[one] = sum(find(folders[one.root], one.name(cell)) for cell in names[one.column])
            if best := _best(counts):
                return _only(best, table)
    column, cuts = columns[0], [prefixes] if prefixes else [(), *_beginnings(table, columns[0])]
    ways = [(_stands_there, False), (_stands_there_in_another_form, False), (_stands_there, True)]
    for find, other_endings in ways[:2] if ending else ways:
        for group in roots:
            tried = [Pictures(column, root, cut, ending) for cut in cuts for root in group]
            if other_endings:
                tried = [one._replace(ending=other) for one in tried for other in _endings(one, first)]
            complete = [one for one in tried if all(find(folders[one.root], one.name(cell)) for cell in names[column])]
            shortest_cut = next((cut for cut in cuts if any(one.prefixes == cut for one in complete)), ())
            longest = [one for one in complete if one.prefixes == shortest_cut]
            if best := _best(dict.fromkeys(longest, len(rows))):
                return _only(best, table)
    name = Pictures(column, table.file.parent, prefixes, ending).name(first)
    raise _no_picture(table, first, name, folders)


def _no_picture(table: Table, cell: str, name: str, folders: Mapping[Path, PictureRoot]) -> DataError:
    """Says that no picture was found, with one like that of the first cell if there is any, and what to do."""
    near = ""
    if name and not is_absolute(name):
        near = next((near for folder in folders.values() if (near := folder.suggest(name))), "")
    tried_roots = ", ".join(map(str, [*folders][:8]))
    fault = f"none of the first pictures that {table.file} lists (first: {cell}{near}) is in {tried_roots}"
    if is_absolute(cell.strip()):
        return DataError(
            f"{fault}, by no part of its path; the table holds absolute paths of another machine: name the folder that "
            f"holds their last parts by --image-root, and what comes before these by --image-prefix, once for each "
            f"beginning"
        )
    return DataError(f"{fault}; name their folder by --image-root")


def _best(counts: Mapping[Pictures, int]) -> list[Pictures]:
    """Returns those with most files; a folder under two names counts once."""
    most, best = max(counts.values(), default=0), list[Pictures]()
    for one, count in counts.items():
        same = (o for o in best if o._replace(root=one.root) == one and os.path.samefile(o.root, one.root))
        if count == most > 0 and not any(same):
            best.append(one)
    return best


def _only(best: Sequence[Pictures], table: Table) -> Pictures:
    for key, what, option in (
        ("column", f"{table.file} has several columns that name pictures", "image-column"),
        ("root", f"the pictures that {table.file} lists are in several folders", "image-root"),
        ("ending", f"the pictures that {table.file} lists have several endings", "image-ending"),
    ):
        if len(choices := dict.fromkeys(getattr(one, key) for one in best)) > 1:
            raise _several(what, map(repr, choices) if key == "column" else choices, option)
    return best[0]


def _beginnings(table: Table, column: str) -> list[tuple[str, ...]]:
    """Returns beginnings that may be cut off the names of all rows, the shortest first.

    They are the folders that all share; then, where lists of several machines were put together, the folder that is
    common to the names of each: those that begin with the same two parts, a drive or a server and a folder.
    """
    place = table.position(column, "image")
    shared: dict[tuple[str, ...], list[str]] = {}  # folders in common, by the two parts; by () those of all rows
    for _, cells in table.rows():
        if not cells[place].strip():
            continue
        parts = cells[place].strip().replace("\\", "/").split("/")[:-1]
        start = next((number for number, part in enumerate(parts) if part), 0)  # behind the slashes of `//server`
        for key in ((), tuple(parts[: start + 2])):
            shared[key] = list(os.path.commonprefix([shared.get(key, parts), parts]))  # noqa: RUF071 - of lists, not texts
    common = shared.pop((), [])
    single = [("/".join(common[: number + 1]) + "/",) for number in range(len(common))]
    several = [tuple("/".join(parts) + "/" for parts in shared.values())] if len(shared) < MOST_BEGINNINGS else []
    return single + several


def _endings(pictures: Pictures, cell: str) -> list[str]:
    """Returns what files that begin with the stem of the listed name have behind it: `_aligned.jpg`, `.png`."""
    try:
        name = csv.picture_name(cell, pictures.prefixes, "", where="").replace("\\", "/")
    except DataError:
        return []
    stem = os.path.join(pictures.root, name.rpartition(".")[0] if is_picture(name) else name)
    found = [file[len(stem) :] for file in glob.glob(f"{glob.escape(stem)}[!a-zA-Z0-9]*")]
    return sorted(ending for ending in found if is_picture(f"x{ending}"))


def _roots(file: Path, choices: Choices, names: Sequence[str]) -> Iterator[list[Path]]:
    """Where pictures may be, tried in turn: what the user named; else beside and below the table, then above it.

    Last, for absolute paths that are right on this machine, the folder that holds them.
    """
    if roots := choices.get("image_root"):
        for root in map(Path, roots):
            places = [place for place in (root, file.parent / root) if place.is_dir()]
            if not places:
                raise DataError(f"--image-root {root} is no folder, neither here nor beside {file}; correct it")
            yield places[:1]
        return
    below = _folders(file.parent)
    yield [file.parent, *below]
    yield [folder for parent in below[:MOST_FOLDERS] for folder in _folders(parent)][:MOST_FOLDERS]
    # abspath, since the parent of `..` is not `.`
    parent = Path(os.path.abspath(file)).parent.parent
    above = parent if file.is_absolute() else Path(os.path.relpath(parent))
    beside = [folder for folder in _folders(above) if folder.name.lower() in PICTURE_FOLDERS]
    yield [above, *beside]
    yield [folder for one in beside for folder in _folders(one)][:MOST_FOLDERS]
    folders = [os.path.dirname(name.strip()) for name in names]
    if folders and all(map(os.path.isabs, folders)) and os.path.isdir(common := os.path.commonpath(folders)):
        yield [Path(common)]


def _folders(folder: Path) -> list[Path]:
    return [folder / entry.name for entry in visible_entries(folder) if kind_of(entry) == "folder"]


def _guess_columns(table: Table, *, labelled: bool) -> tuple[str, ...]:
    """Names the columns of a table without a header where one answer is obvious: one picture, splits, one label."""
    rows = [table.columns, *(cells for _, cells in islice(table.rows(), ROWS_TRIED))]
    names: list[str] = []
    for cells in zip(*rows, strict=True):
        words = [cell.strip() for cell in cells]
        kind = "image" if all(map(is_picture, words)) else "label"
        names.append("split" if all(word.lower() in SPLITS for word in words) else kind)
    if sorted(names) in (["image"], ["image", "label"], ["image", "label", "split"]):
        return tuple(names)
    if any(re.fullmatch(r"\(\d+, *\d+, *\d+, *\d+\)", cell.strip()) for cell in table.columns):
        raise _votes(table.file, table.columns)
    example = [name if name != "label" else f"column{number}" for number, name in enumerate(names, 1)]
    raise DataError(
        f"{table.file} has no line of column names but begins with {' '.join(table.columns)!r}; name its "
        f"{len(names)} columns by --columns, for example {','.join(example)}"
        f"{', and the one of labels label' if labelled else ''}"
    )


def _refuse_votes(table: Table, choices: Choices) -> None:
    """Refuses a table that has a column of numbers for each expression instead of one that names it."""
    named = {
        column for column in table.columns if any(word in EXPRESSIONS for word in re.split("[^a-z]+", column.lower()))
    }
    labels = set(_candidates(table, "label", choices))
    if len(named) < 2 or labels - named:
        return
    places = [table.position(column, "label") for column in named]
    cells = (cells[place].strip() for _, cells in islice(table.rows(), ROWS_TRIED) for place in places)
    if all(re.fullmatch(NUMBER, cell) for cell in cells if cell):
        raise _votes(table.file, [column for column in table.columns if column in named])


def _votes(file: Path, columns: Sequence[str]) -> DataError:
    return DataError(
        f"{file} holds votes or probabilities for each expression ({', '.join(columns[:12])}), which are not read; "
        f"make a table with the columns image,label,split of it, where the label is the expression with most votes, "
        f"without the rows that have no picture or no such expression"
    )


def _names_tell_splits(table: Table, options: csv.Options) -> bool:
    """Tells whether the pictures' names, and they alone, say of every row in which of several splits it is."""
    place = table.position(options.image, "image")
    names = (
        csv.picture_name(cells[place], options.prefixes, options.ending, where="")
        for _, cells in table.rows()
        if cells[place].strip()
    )
    found = {csv.split_of_name(name) for name in names}
    return None not in found and len({SPLITS[word] for word in found if word}) > 1


def _common_folder(file: Path, root: Path, project: Path) -> Path:
    """Returns the deepest folder that holds both, relative where both were given so."""
    folder = Path(os.path.commonpath([os.path.abspath(file.parent), os.path.abspath(root)]))
    here = Path(os.path.abspath(project))
    if {folder, folder.resolve()} & {Path("/"), Path.home(), here, *here.parents}:
        raise DataError(
            f"the folder that holds both {file} and the pictures in {root} is {folder}, which DVC would have to hash "
            f"whole; put the table and the pictures into a folder of their own"
        )
    return folder if file.is_absolute() or root.is_absolute() else Path(os.path.relpath(folder))
