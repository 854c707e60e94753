"""A whole project folder made by hand, small and seeded, in the layout that the stages leave behind."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from fer_pipeline.artifacts.arrow import write_rows
from fer_pipeline.artifacts.auxiliary import auxiliary_schema
from fer_pipeline.artifacts.distilled import DistilledSet, write_distilled
from fer_pipeline.artifacts.faces import encode, face_schema, write_shard
from fer_pipeline.artifacts.labels import write_labels
from fer_pipeline.artifacts.metrics import write_predictions
from fer_pipeline.artifacts.mined import RuleSweep, mined_schema, sweep_table
from fer_pipeline.artifacts.scores import score_batch, score_schema, write_scores
from fer_pipeline.core.files import write_json
from fer_pipeline.core.settings import DatasetSettings, ProjectSettings, Summary
from fer_pipeline.evaluation.predictions import Predictions, worst_failures
from fer_pipeline.evaluation.statistics import Resampling, summarise
from fer_pipeline.networks.settings import CARD, Card, NetworkSettings, preprocessing_of
from fer_pipeline.reporting import charts
from fer_pipeline.stages import report
from tests.project import recipe_settings

SKILL = {"labelled": 0.62, "mined": 0.69, "distilled": 0.64, "random": 0.63, "random_real": 0.62}
USES = {
    "baseline": "labelled",
    "vas": "mined",
    "das": "distilled",
    "random_vas": "random",
    "random_real": "random_real",
}
# What distilled images were compared with: they beat noise and permuted labels from theta_0, not random real images.
CONTENT_OF_CONTROLS = {
    "reason": "",
    "heldout_images": 120,
    "heldout_persons": 14,
    "trainings": [
        {
            "start": start,
            "training": "plain",
            "images": images,
            "draws": 3,
            "accuracy": mean,
            "mean_class_accuracy": {"mean": mean, "low": mean - 0.05, "high": mean + 0.05},
        }
        for start, means in {"theta_0": (0.4, 0.15, 0.38, 0.1), "fresh": (0.35, 0.15, 0.25, 0.1)}.items()
        for images, mean in zip(("distilled", "noise", "random_real", "permuted_labels"), means, strict=True)
    ],
    "differences": [
        {"start": start, "against": images, "mean": mean, "low": mean - 0.06, "high": mean + 0.06}
        for start, means in {"theta_0": (0.25, 0.02, 0.3), "fresh": (0.2, 0.1, 0.25)}.items()
        for images, mean in zip(("noise", "random_real", "permuted_labels"), means, strict=True)
    ],
}
CONTROLS = {"mined": "random", "distilled": "random_real"}
DESCRIPTIONS = {"mined": "Mined faces", "distilled": "Distilled images"}


@dataclass
class Project:
    """What the builder is asked for; the defaults are a whole world."""

    root: Path
    classes: tuple[str, ...] = ("anger", "fear", "happiness", "neutral")
    seeds: tuple[int, ...] = (10, 11, 12)
    pools: tuple[str, ...] = ("street", "studio_pool")
    targets: tuple[str, ...] = ("studio", "film")
    recipes: dict[str, str] = field(default_factory=lambda: dict(USES))
    faces: int = 80
    crop: int = 32
    pool_faces: int = 120
    absent: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"film": ("fear",)})
    odd_name: str = ""
    protocols: dict[str, Any] = field(default_factory=dict)
    stopped_rising: bool | None = None
    resampling: Resampling = Resampling(bootstrap=200)  # noqa: RUF009

    @property
    def settings(self) -> dict[str, Any]:
        """What `report` is told of the recipes."""
        by_use = {use: name for name, use in reversed(self.recipes.items())}
        controls = {name: by_use.get(CONTROLS.get(use, "")) for name, use in self.recipes.items()}
        return {
            "controls": {name: control for name, control in controls.items() if control},
            "descriptions": {name: DESCRIPTIONS[use] for name, use in self.recipes.items() if use in DESCRIPTIONS},
        }

    @property
    def world(self) -> ProjectSettings:
        names = dict.fromkeys(["studio", *self.pools, *self.targets])
        return ProjectSettings(
            classes=self.classes,
            seeds=self.seeds,
            anchor="studio",
            train="studio",
            pools=self.pools,
            targets=self.targets,
            datasets={
                name: DatasetSettings(
                    adapter="synthetic", path=Path("data/raw") / name, protocol=self.protocols.get(name)
                )
                for name in names
            },
            recipes={name: recipe_settings({"labelled": Path("data")}) for name in self.recipes},
        )

    def rng(self, *names: str) -> np.random.Generator:
        return np.random.default_rng([ord(letter) for letter in "/".join(names)])

    def build(self) -> "Project":
        for recipe in self.recipes:
            for target in self.targets:
                self.evaluate(recipe, target)
            self.train(recipe)
        self.mine()
        self.label_pool()
        if "distilled" in self.recipes.values():
            self.distill()
        self.align()
        self.lock()
        return self

    def predictions(self, recipe: str, target: str) -> Predictions:
        present = [k for k, name in enumerate(self.classes) if name not in self.absent.get(target, ())]
        labels = np.asarray([present[i % len(present)] for i in range(self.faces)])
        # Errors are shared between recipes, as they are in life: hard faces are hard for all.
        hard = self.rng(target).random(self.faces)
        skill, size = SKILL[self.recipes[recipe]], len(self.classes)
        shares = []
        for seed in self.seeds:
            rng = self.rng(recipe, target, str(seed))
            right = hard + rng.normal(0, 0.08, self.faces) < skill - 0.1 * (target == "film")
            chosen = np.where(right, labels, (labels + 1 + rng.integers(0, size - 1, self.faces)) % size)
            sure = rng.uniform(0.5, 0.97, self.faces)
            row = np.repeat(((1 - sure) / (size - 1))[:, None], size, axis=1)
            row[np.arange(self.faces), chosen] = sure
            shares.append(row)
        return Predictions(
            classes=self.classes,
            seeds=self.seeds,
            face_id=np.array([f"{target}/{self.odd_name}{i:03d}" for i in range(self.faces)], dtype=object),
            labels=labels,
            subjects=np.array([f"s{i // 4}" if target == "studio" else "" for i in range(self.faces)], dtype=object),
            probabilities=np.stack(shares).astype(np.float32),
        )

    def evaluate(self, recipe: str, target: str) -> None:
        folder = self.root / "reports" / "metrics" / recipe / target
        predictions = self.predictions(recipe, target)
        write_predictions(folder / "predictions.parquet", predictions)
        (folder / "metrics.json").write_text(json.dumps(summarise(predictions, self.resampling, target=target)))
        rows = []
        for one in worst_failures(predictions, per_class=4):
            rows.append({**vars(one), "file": one.file})
            path = folder / "failures" / one.file
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encode(self.draw(one.label, one.face_id), format="png"))
        (folder / "failures").mkdir(exist_ok=True)
        (folder / "failures" / "failures.json").write_text(json.dumps(rows))

    def train(self, recipe: str) -> None:
        seconds = {"mined": 3.1, "random": 3.0, "distilled": 1.3, "random_real": 1.25}.get(self.recipes[recipe], 1.1)
        record = {
            str(seed): {
                "seconds_per_epoch": seconds + 0.01 * k,
                "seconds_per_step": 0.05,
                "steps_per_epoch": 20,
                "steps": 200,
                "times_seen": {"labelled": 20.0},
                "stopped_rising": self.stopped_rising,
                "peak_memory_bytes": 412_000_000 - k,
            }
            for k, seed in enumerate(self.seeds)
        }
        path = self.root / "reports" / "timings" / f"{recipe}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"recipe": recipe, "seeds": record}))
        for seed in self.seeds:
            rng = self.rng(recipe, str(seed), "history")
            path = self.root / "models" / "final" / recipe / str(seed) / "history.csv"
            path.parent.mkdir(parents=True)
            with path.open("w", newline="") as stream:
                writer = csv.writer(stream)
                writer.writerow(["epoch", "steps", "learning_rate", "train_labelled", "validation_mean_class_accuracy"])
                for epoch in range(1, 11):
                    gain = SKILL[self.recipes[recipe]] * (1 - np.exp(-epoch / 3)) + rng.normal(0, 0.01)
                    writer.writerow([epoch, 20 * epoch, 0.1, 2 * np.exp(-epoch / 4) + rng.normal(0, 0.01), gain])

    def label_pool(self) -> None:
        """What the last recipe calls thirty faces of the first pool, of which two lie outside of its truth."""
        pool, rng = self.pools[0], self.rng("pool_labels")
        rows = []
        for index, probability in enumerate(rng.uniform(0.3, 1, 30)):
            name = self.classes[index % (len(self.classes) - 1)]  # nothing is called the last class
            face_id = f"{pool}/{self.odd_name}{index:04d}" if index < 28 else f"other/{index}"
            shown = index < 24
            rows.append({"face_id": face_id, "predicted": name, "probability": float(probability), "label": None})
            rows[-1]["image"] = encode(self.draw(name, face_id)) if shown else None
        rows[29]["label"] = rows[29]["predicted"]
        for index, probability in enumerate(rng.uniform(0, 1, 20)):  # labelled, the first five falsely
            given, called = (self.classes[(index + step) % len(self.classes)] for step in (0, index % 3))
            face_id = f"anchor/{self.odd_name}{index:04d}"
            rows.append({"face_id": face_id, "given": given, "given_probability": float(probability)})
            rows[-1] |= {"predicted": called, "probability": 0.9, "label": self.classes[0] if index < 5 else given}
            rows[-1]["image"] = encode(self.draw(given, face_id)) if index < 18 else None
        path = self.root / "reports" / "labels" / f"{[*self.recipes][-1]}.parquet"
        write_labels(path, rows, seed=self.seeds[0], pool=self.pool_faces, labelled=300)
        network = NetworkSettings(size=24)
        card = Card(
            network=network,
            classes=tuple(self.classes),
            preprocessing=preprocessing_of(network, None),
            training={"options": {"threshold": 0.6, "reject": 0.4}},
        )
        write_json(self.root / "models/final" / path.stem / str(self.seeds[0]) / CARD, card.model_dump(mode="json"))

    def mine(self) -> None:
        size, data = len(self.classes), self.root / "data"
        mined, control, pools = [], [], {}
        for pool in self.pools:
            rng = self.rng(pool)
            face_id = [f"{pool}/{self.odd_name}{i:04d}" for i in range(self.pool_faces)]
            true = rng.integers(0, size, self.pool_faces)
            mixed = rng.random(self.pool_faces) < (0.3 if pool == self.pools[0] else 0.05)
            cosine = rng.uniform(-0.2, 0.4, (self.pool_faces, size)).astype(np.float32)
            cosine[np.arange(self.pool_faces), true] += np.where(mixed, 0.05, 0.4).astype(np.float32)
            ordered = np.sort(cosine, axis=1)
            nearest, margin = cosine.argmax(1), ordered[:, -1] - ordered[:, -2]
            schema, logit = score_schema(self.classes, logits=True), 9 * cosine[:, ::-1]  # another opinion
            batch = score_batch(
                schema,
                face_id=pa.array(face_id),
                cosine=cosine,
                nearest=nearest.astype(np.int64),
                margin=margin,
                logit=logit,
            )
            write_scores(data / "scores" / pool / "part-00000.arrow", schema, [batch])
            dominant = [None if mixed[i] else self.classes[true[i]] for i in range(self.pool_faces)]
            (data / "truth").mkdir(exist_ok=True)
            pq.write_table(pa.table({"face_id": face_id, "dominant": dominant}), data / "truth" / f"{pool}.parquet")
            passed = np.flatnonzero(margin >= 0.2)
            drawn = rng.choice(self.pool_faces, len(passed), replace=False)
            for rows, chosen in ((mined, passed), (control, drawn)):
                for i in chosen:
                    row = (face_id[i], pool, int(nearest[i]), float(ordered[i, -1]), float(margin[i]), 0)
                    rows.append(dict(zip(("face_id", "pool", "label", "cosine", "margin", "rank"), row, strict=True)))
            by_class = {name: int((nearest[passed] == k).sum()) for k, name in enumerate(self.classes)}
            counted = {"excluded": 0, "no_direction": 0, "below_margin": self.pool_faces - len(passed), "over_cap": 0}
            pools[pool] = {"faces": self.pool_faces, **counted, "kept": len(passed), "by_class": by_class}
        schema = face_schema(self.classes, crop=self.crop)
        anchor = data / "faces" / "studio" / "train" / "part-00000.parquet"
        write_shard(anchor, pa.Table.from_pylist([], schema=schema))
        for name, rows, folder in (("mined", mined, "auxiliary"), ("random", control, "control")):
            rows.sort(key=lambda row: (row["label"], -row["cosine"], row["face_id"]))
            for k in range(size):
                for rank, row in enumerate([row for row in rows if row["label"] == k], 1):
                    row["rank"] = rank
            write_rows(
                data / "mined" / f"{name}.parquet", pa.Table.from_pylist(rows, schema=mined_schema(self.classes))
            )
            self.shards(data / folder, rows, anchor.parent)
        kept = {name: sum(pools[pool]["by_class"][name] for pool in self.pools) for name in self.classes}
        estimate = {
            name: {"kept": kept[name], "passed": kept[name], "heldout": 30, "precision": 0.9, "low": 0.8, "high": 0.96}
            | {"reason": "", "pool_share": {"share": 0.2, "low": 0.1, "high": 0.3}}
            for name in self.classes
        }
        estimate[self.classes[-1]] |= {"low": None, "reason": "its share of the pool may be 0"}
        summary = {
            "classes": list(self.classes),
            "rule": {"by": "margin", "value": 0.2},
            "seed": self.seeds[0],
            "margins": dict.fromkeys(self.classes, 0.2),
            "pools": pools,
            "kept": len(mined),
            "passed": len(mined),
            "random": len(control),
            "by_class": estimate,
            "ranked_by": "margin",
            "rules": {
                rule: {"threshold": 0.2, "kept": len(mined), "precision": precision, "low": 0.5, "high": 0.97}
                | {"by_class": estimate}
                for rule, precision in (("margin", 0.9), ("probability", 0.85))
            },
            "precision": {"estimate": 0.9, "low": 0.86, "high": 0.93, "level": 0.95},
            "heldout": {"faces": 90, "persons": 12, "model": "calibration"},
        }
        (data / "mined" / "summary.json").write_text(json.dumps(summary))
        self.sweep(data)

    def sweep(self, data: Path) -> None:
        margin = np.linspace(0, 0.6, 13)
        size = len(self.classes)
        kept = np.repeat((self.pool_faces * np.clip(1 - margin / 0.6, 0, 1)).astype(np.int64)[:, None], size, axis=1)
        middle = np.clip(0.6 + 0.6 * margin, 0, 0.98)
        overall = np.stack([middle, middle - 0.05, np.minimum(1, middle + 0.05)], axis=1)
        overall[-1] = np.nan
        rest = kept, np.full_like(kept, 30), np.repeat(overall[:, None], size, axis=1), overall
        rules = {"margin": RuleSweep(margin, *rest), "probability": RuleSweep(0.25 + margin, *rest)}
        write_rows(data / "mined" / "sweep.parquet", sweep_table(self.classes, rules))

    def shards(self, folder: Path, rows: list[dict[str, Any]], anchor: Path) -> None:
        schema = auxiliary_schema(anchor, self.classes)
        for pool in self.pools:
            for k, name in enumerate(self.classes):
                members = [row for row in rows if (row["pool"], row["label"]) == (pool, k)]
                table = [
                    {
                        "face_id": row["face_id"],
                        "image": {"bytes": encode(self.draw(name, row["face_id"])), "path": None},
                        "pseudo_label": k,
                        "margin": row["margin"],
                        "rank": row["rank"],
                    }
                    for row in members
                ]
                if table:
                    write_shard(folder / pool / name / "part-00000.parquet", pa.Table.from_pylist(table, schema=schema))

    def distill(self) -> None:
        folder = self.root / "data" / "distilled" / "auxiliary"
        size = len(self.classes)
        images = self.rng("distill").normal(size=(1, size, 3, self.crop, self.crop)).astype(np.float32)
        distilled = DistilledSet(
            images, np.arange(size)[None], np.ones(1, np.float32), self.classes, {"size": self.crop}
        )
        write_distilled(folder, distilled, {"source_images": 60})
        (folder / "previews").mkdir()
        for k, name in enumerate(self.classes):
            pixels = np.clip(images[0, k].transpose(1, 2, 0) * 40 + 128, 0, 255).astype(np.uint8)
            (folder / "previews" / f"{name}.png").write_bytes(encode(np.ascontiguousarray(pixels), format="png"))
        curve = [{"epoch": e, "train": 1 - 0.7 * 0.8**e, "test": 1 - 0.75 * 0.85**e} for e in range(1, 21)]
        probe = {
            "moments": [0, 10],
            "chance": 1 / size,
            "saved_image": [curve, curve],
            "unseen_image": [],
            "reason": "",
        }
        (folder / "probe.json").write_text(json.dumps(probe))
        (folder / "controls.json").write_text(json.dumps(CONTENT_OF_CONTROLS))
        rows = ["epoch,loss_before,loss", *(f"{e},1.2,{0.5 + 0.7 * 0.9**e}" for e in range(1, 31))]
        (folder / "history.csv").write_text("\n".join(rows) + "\n")

    def align(self) -> None:
        for name in self.world.datasets:
            folder = self.root / "reports" / "census"
            folder.mkdir(parents=True, exist_ok=True)
            labels = {label: 0 if name in self.pools else 10 + k for k, label in enumerate(self.classes)}
            faces = sum(labels.values())
            split = {"faces": faces or 120, "labels": labels, "unlabelled": 0 if faces else 120}
            split |= {"samples": split["faces"] + 4, "rejected": {"no_face": 3, f"{self.odd_name}small": 1}}
            (folder / f"{name}.json").write_text(json.dumps({"splits": {"train": split, "test": split}}))

    def lock(self) -> None:
        (self.root / "dvc.lock").write_text(
            "schema: '2.0'\n"
            "stages:\n"
            "  mine:\n"
            "    cmd: python -m fer_pipeline mine --out data/mined\n"
            "    deps:\n"
            "    - {path: data/scores, hash: md5, md5: 0123456789abcdef0123456789abcdef.dir, size: 12, nfiles: 3}\n"
            "    params: {params.yaml: {mine: {value: 0.2}}}\n"
            "    outs:\n"
            "    - {path: data/mined, hash: md5, md5: fedcba9876543210fedcba9876543210.dir, size: 34, nfiles: 4}\n"
            "  report:\n"
            "    cmd: python -m fer_pipeline report --out reports\n"
            "    outs:\n"
            "    - {path: reports/index.html, hash: md5, md5: deadbeefdeadbeefdeadbeefdeadbeef, size: 9}\n"
        )

    def draw(self, label: str, key: str) -> np.ndarray:
        """A cartoon: skin by key, mouth by class."""
        rng, scale = self.rng(label, key), 4
        side = self.crop * scale
        picture = Image.new("RGB", (side, side), tuple(int(v) for v in rng.integers(90, 200, 3)))
        pen, mid = ImageDraw.Draw(picture), side / 2
        skin = tuple(int(v * rng.uniform(0.75, 1.05)) for v in (224, 180, 150))
        pen.ellipse((side * 0.14, side * 0.06, side * 0.86, side * 0.96), fill=skin)
        for x in (0.35, 0.65):
            pen.ellipse((side * (x - 0.05), side * 0.4, side * (x + 0.05), side * 0.48), fill=(40, 30, 30))
        bend = (self.classes.index(label) - len(self.classes) / 2) * 0.08
        box = (mid - side * 0.18, side * 0.68 - abs(bend) * side, mid + side * 0.18, side * 0.68 + abs(bend) * side + 1)
        pen.arc(box, 180 if bend < 0 else 0, 360 if bend < 0 else 180, fill=(120, 30, 40), width=max(2, side // 30))
        return np.asarray(picture.resize((self.crop, self.crop), Image.Resampling.LANCZOS))


@dataclass(frozen=True)
class Reported:
    """A project and the page that the stage wrote for it."""

    project: Project
    page: str
    summary: Summary

    def learner(self, recipe: str) -> str:
        return (self.project.root / "reports" / "learners" / f"{recipe}.html").read_text(encoding="utf-8")

    def table(self, name: str) -> list[dict[str, str]]:
        path = self.project.root / "reports" / "tables" / f"{name}.csv"
        with path.open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))


def write_report(project: Project, **settings: Any) -> Reported:
    """Runs the stage."""
    out = project.root / "reports"
    config = report.Config(**{**project.settings, **settings})
    summary = report.run(config, project.world, out=out, root=project.root)
    return Reported(project, (out / "index.html").read_text(encoding="utf-8"), summary)


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Reported]:
    """Runs the stage on a project; keyword arguments are its settings. Nothing is drawn."""
    monkeypatch.setattr(charts, "picture", lambda draw, height: b"<?xml version='1.0'?><svg/>")
    return write_report


@pytest.fixture
def write() -> Callable[..., Reported]:
    """The same with all drawings."""
    return write_report


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """The report of a whole world, made once; no test may change it."""
    return write_report(Project(tmp_path_factory.mktemp("whole")).build())


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., Project]:
    """Makes a project folder; keyword arguments are fields of `Project`."""
    return lambda **changes: Project(tmp_path / "project", **changes).build()
