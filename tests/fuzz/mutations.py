"""Change files as damage and strangers do: bytes, the nodes of documents, the columns of tables, all by a seed.

Half of the changes know the format, since a wrong byte in a checksummed page says little about the code behind it.
"""

import io
import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
VALUES: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: True,
    lambda: 0,
    lambda: -1,
    lambda: 2**63,
    lambda: 10**400,
    lambda: 1e308,
    lambda: float("nan"),
    lambda: float("inf"),
    lambda: "",
    lambda: "a\0b",
    lambda: "a\nb\x1b[31m",
    lambda: "x" * 200_000,
    lambda: "../../etc/passwd",
    lambda: "\udcff",
    lambda: [],
    lambda: {},
    lambda: [[]],
    lambda: {"": None},
    lambda: [0] * 5000,
)
WORDS = (
    b"\0",
    b"\x1b[31m",
    b"\xff\xfe",
    b"null",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 5000,
    b"2001-99-99",
    b"[" * 5000,
    b"{" * 5000,
    b"- " * 3000,
    b"&a [*a, *a]",
    b"&a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c]",
    b"!!python/object/apply:os.system [true]",
    b"<<: {a: 1}",
    b"? [a, b]\n: 1",
    b'"',
    b"'",
    b",,,,",
    b"\t",
    b"\r",
    b"\n\n",
    b"a" * 200_000,
)
TEXTS = (".json", ".yaml", ".yml", ".lock", ".dvc", ".csv", ".idx")
MOST_ROWS = 300


def mutate(name: str, data: bytes, random: Random, others: list[bytes]) -> bytes:
    """Returns other bytes for the file `name`; `others` are files of its kind, to splice with."""
    suffix = name[name.rfind(".") :]
    if random.random() < 0.5:
        try:
            if suffix == ".json":
                return json.dumps(mutate_node(json.loads(data), random)).encode("utf-8", "surrogatepass")
            if suffix in (".yaml", ".yml", ".lock", ".dvc"):
                text = yaml.safe_dump(mutate_node(yaml.safe_load(data), random), sort_keys=False, allow_unicode=True)
                return text.encode("utf-8", "surrogatepass")
            if suffix == ".safetensors":
                return mutate_safetensors(data, random)
            if suffix in (".parquet", ".arrow"):
                return mutate_table(data, random, is_parquet=suffix == ".parquet")
        except Exception:  # a change that the format cannot hold
            pass
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        data = mutate_bytes(data, random, others, is_text=suffix in TEXTS)
    return data


def mutate_bytes(data: bytes, random: Random, others: list[bytes], *, is_text: bool) -> bytes:
    """Returns bytes with one change of any kind."""
    place, end = sorted((random.randrange(len(data) + 1), random.randrange(len(data) + 1)))
    kind = random.randrange(9)
    if kind == 0 and data:
        at = random.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
    if kind == 1 and data:
        at = random.randrange(len(data))
        return data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
    if kind == 2:  # a number
        size, order = random.choice((1, 2, 4, 8)), random.choice("<>")
        number = random.choice(NUMBERS) & (256**size - 1)
        return data[:place] + struct.pack(order + {1: "B", 2: "H", 4: "I", 8: "Q"}[size], number) + data[place + size :]
    if kind == 3:
        return data[:place]
    if kind == 4:
        return data[:place] + data[end:]
    if kind == 5:
        return data[:end] + data[place:end] * random.choice((1, 2, 50)) + data[end:]
    if kind == 6 and others:
        other = random.choice(others)
        return data[:place] + other[random.randrange(len(other) + 1) :]
    if kind == 7 or is_text:
        return data[:place] + random.choice(WORDS) + data[place if random.random() < 0.5 else end :]
    return data[:place] + random.randbytes(end - place if end - place < 4096 else 4096) + data[end:]


def mutate_node(tree: Any, random: Random) -> Any:
    """Returns a document of which one node is another, gone, renamed or wrapped."""
    places: list[tuple[Any, Any]] = [({"": tree}, "")]
    for inside, key in places:
        node = inside[key]
        if isinstance(node, dict | list) and len(places) < 5000:
            places += [(node, one) for one in (node if isinstance(node, dict) else range(len(node)))]
    root, _ = places[0]
    inside, key = random.choice(places)
    kind = random.randrange(8)
    if kind == 0 and inside is not root:
        del inside[key]
    elif kind == 1 and isinstance(inside, dict) and inside is not root:
        inside[random.choice(["", "x", 7, None, f"{key}\n", "__class__"])] = inside.pop(key)
    elif kind == 2:
        inside[key] = [inside[key]]
    elif kind == 3:
        inside[key] = {str(key): inside[key]}
    elif kind == 4:
        other, place = random.choice(places)
        inside[key] = json.loads(json.dumps(other[place], default=str))
    elif kind == 5:
        inside[key] = str(inside[key])
    else:
        inside[key] = random.choice(VALUES)()
    return root[""]


def mutate_safetensors(data: bytes, random: Random) -> bytes:
    """Returns a file with another header, whose length is right as a rule."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(mutate_node(json.loads(data[8 : 8 + size]), random)).encode("utf-8", "surrogatepass")
    length = len(header) if random.random() < 0.9 else random.choice(NUMBERS)
    return length.to_bytes(8, "little") + header + data[8 + size :]


def mutate_table(data: bytes, random: Random, *, is_parquet: bool) -> bytes:
    """Returns a whole file with another schema, metadata or cells."""
    table = pq.read_table(io.BytesIO(data)) if is_parquet else pa.ipc.open_file(data).read_all()
    place = random.randrange(table.num_columns)
    name, column = table.column_names[place], table.column(place)
    kind = random.randrange(9)
    if kind == 0:
        table = table.remove_column(place)
    elif kind == 1:
        table = table.append_column(name, column)
    elif kind == 2:
        table = table.rename_columns(
            [random.choice(["", "a\nb", "x" * 5000]) if one == name else one for one in table.column_names]
        )
    elif kind == 3:
        types = (
            pa.string(),
            pa.int8(),
            pa.int64(),
            pa.float64(),
            pa.binary(),
            pa.bool_(),
            pa.null(),
            pa.list_(pa.string()),
        )
        chosen = random.choice(types)
        try:
            column = column.cast(chosen)
        except (pa.ArrowException, NotImplementedError):
            column = pa.nulls(len(table), chosen)
        table = table.set_column(place, name, column)
    elif kind == 4:
        table = table.set_column(place, table.schema.field(place), pa.nulls(len(table), column.type))
    elif kind == 5:
        rows = (
            [random.randrange(len(table)) for _ in range(random.choice((0, 1, len(table), MOST_ROWS)))]
            if len(table)
            else []
        )
        table = table.take(pa.array(rows, pa.int64()))
    elif kind == 6:
        metadata = dict(table.schema.metadata or {})
        for key, value in metadata.items():
            try:
                metadata[key] = json.dumps(mutate_node(json.loads(value), random)).encode("utf-8", "surrogatepass")
            except ValueError:
                metadata[key] = mutate_bytes(value, random, [], is_text=True)
        table = table.replace_schema_metadata(metadata if random.random() < 0.9 else {})
    elif kind == 7:
        values = column.to_pylist()
        odd = random.choice([None, *values, *VALUES])
        if values:
            values[random.randrange(len(values))] = odd() if callable(odd) else odd
        table = table.set_column(place, table.schema.field(place), pa.array(values, column.type))
    else:
        table = table.slice(0, 0)
    out = io.BytesIO()
    if is_parquet:
        pq.write_table(table, out, row_group_size=random.choice((1, 7, 1000)))
    else:
        with pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=random.choice((1, 7, 1000)))
    return out.getvalue()
