"""List every reader of bytes from outside, with a small project to read and the files that are changed in it."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from PIL import Image, ImageCms

from fer_pipeline.alignment.pictures import Rejection, decode_picture
from fer_pipeline.alignment.shards import write_faces
from fer_pipeline.artifacts import (
    census,
    contents,
    distilled,
    embeddings,
    faces,
    history,
    metrics,
    mined,
    review,
    scores,
    split,
)
from fer_pipeline.artifacts import truth as truths
from fer_pipeline.artifacts.arrow import write_rows
from fer_pipeline.artifacts.auxiliary import collect_faces
from fer_pipeline.artifacts.input_hashes import InputHashes
from fer_pipeline.artifacts.seed_folders import SEEDS, of_seed
from fer_pipeline.artifacts.store import Store, read_checksums
from fer_pipeline.commands import results, survey
from fer_pipeline.commands.check import check_commands
from fer_pipeline.core.errors import PipelineError
from fer_pipeline.core.plugins import load
from fer_pipeline.core.settings import read_project, validate
from fer_pipeline.distillation import loop
from fer_pipeline.distillation.start import Synthetic
from fer_pipeline.embedding import shards
from fer_pipeline.health import diagnosis, dvc_project, recorded_settings
from fer_pipeline.inspection import revisions, sql, tables
from fer_pipeline.inspection.gallery import read_lineage
from fer_pipeline.inspection.sheets import write_script
from fer_pipeline.mining import duplicates
from fer_pipeline.mining.candidates import collect_candidates, read_exclusions
from fer_pipeline.mining.review import read_opinions
from fer_pipeline.networks.backbones import build
from fer_pipeline.networks.checkpoints import load_checkpoint, save_checkpoint
from fer_pipeline.networks.preprocessing import Preprocessing
from fer_pipeline.networks.settings import Card, NetworkSettings
from fer_pipeline.networks.weights import WeightSettings, load_weights, read_tensors
from fer_pipeline.reporting import learners, lineage, mining, trainings
from fer_pipeline.training import records, sets
from fer_pipeline.training.images import MemoryBudget
from fer_pipeline.training.optimizers import build_optimizer
from fer_pipeline.training.settings import Sgd
from pipelines import FlowError, artifacts
from pipelines.locks import repair_rwlock
from pipelines.sweep import set_params
from pipelines.workspace import Outcome, describe_workspace, order_new_stages, read_locked_stages
from tests.datasets.conftest import load_example_module
from tests.project import project_settings
from tests.reporting.conftest import Project
from tests.stages.conftest import CLASSES as FACE_CLASSES
from tests.stages.conftest import SIZE, face_rows

CLASSES = ("anger", "fear", "neutral")
torch.set_num_threads(1)


@dataclass(frozen=True)
class Reader:
    """`read` reads what `write` left in a folder; of the `files` there (patterns) one is changed.

    With `one_at_a_time` only the changed one is there.
    """

    write: Callable[[Path], object]
    files: tuple[str, ...]
    read: Callable[[Path], object]
    one_at_a_time: bool = False
    refusals: tuple[type[Exception], ...] = (PipelineError, Rejection, FlowError)


def write_pictures(folder: Path) -> None:
    """Every format in the modes that go other ways through the decoder, with an orientation and a profile."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 4), np.uint8)
    rgb, grey, deep = (
        Image.fromarray(pixels[..., :3]),
        Image.fromarray(pixels[..., 0]),
        pixels[..., 0].astype(np.uint16),
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pictures: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "plain.jpeg": (rgb, {}),
        "progressive.jpeg": (rgb, {"progressive": True, "exif": exif, "icc_profile": srgb}),
        "inks.jpeg": (Image.fromarray(pixels, "CMYK"), {"icc_profile": lab}),
        "plain.png": (rgb, {"exif": exif, "icc_profile": srgb}),
        "deep.png": (Image.fromarray(deep * 200), {}),
        "palette.png": (rgb.quantize(30), {"transparency": 3}),
        "plain.gif": (grey, {"save_all": True, "append_images": [rgb], "comment": b"a comment"}),
        "plain.bmp": (rgb, {}),
        "plain.webp": (Image.fromarray(pixels), {"exif": exif}),
        "moving.webp": (rgb, {"save_all": True, "append_images": [grey.convert("RGB")], "lossless": True}),
        "plain.tiff": (rgb, {"exif": exif, "icc_profile": srgb}),
        "packed.tiff": (Image.fromarray(deep * 9), {"compression": "tiff_lzw"}),
        "floats.tiff": (Image.fromarray(pixels[..., 0].astype(np.float32)), {"compression": "tiff_adobe_deflate"}),
        "inks.tiff": (Image.fromarray(pixels, "CMYK"), {"compression": "jpeg"}),
        "plain.ppm": (rgb, {}),
        "plain.jp2": (rgb, {}),
        "plain.avif": (rgb, {"exif": exif}),
    }
    for name, (picture, options) in pictures.items():
        picture.save(folder / name, **options)


def read_picture(folder: Path) -> None:
    (path,) = folder.iterdir()
    decode_picture(path.read_bytes())


@lru_cache
def build_example(name: str) -> dict[str, Any]:
    """The adapter's own small example, built once, to say where it is and with which options it is read."""
    with TemporaryDirectory() as folder:
        return {"root": Path(folder), **load_example_module(name).build(Path(folder) / "example")}


def write_example(name: str, folder: Path) -> None:
    load_example_module(name).build(folder / "example")


def read_example(name: str, folder: Path) -> None:
    """All samples, and each of their pictures; one that is refused spoils no other."""
    example = build_example(name)
    adapter = load("fer_pipeline.datasets", name)
    options = validate(adapter.Options, example["options"], where="options")
    for sample in adapter.samples(folder / Path(example["path"]).relative_to(example["root"]), options):
        try:
            decode_picture(adapter.read(sample, options))
        except (PipelineError, Rejection):
            pass


def write_project(folder: Path) -> None:
    """A whole small project, as the stages leave it, with what the report does not read."""
    uses = {"baseline": "labelled", "vas": "mined", "das": "distilled"}
    Project(
        folder, classes=CLASSES, seeds=(0,), pools=("street",), targets=("studio",), recipes=uses, faces=9, crop=16,
        pool_faces=40,
    ).build()  # fmt: skip
    table = face_rows("street", range(12))
    faces.write_shard(folder / "faces" / "part-00000.parquet", table)
    names = table.column("face_id").combine_chunks()
    vectors = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    (folder / "embeddings").mkdir()
    shard = folder / "embeddings" / "part-00000.arrow"
    embeddings.write_embeddings(shard, [(names, vectors)], dimensions=8, model="0" * 64, shard="street")
    street = folder / "data" / "scores" / "street"
    schema = scores.score_schema(CLASSES, labelled=True, logits=True)
    whole = np.arange(12, dtype=np.int64) % 3
    cosine, margin = np.eye(3, dtype=np.float32)[whole], np.ones(12, np.float32)
    batch = scores.score_batch(
        schema, face_id=names, cosine=cosine, nearest=whole, margin=margin, logit=cosine, label=whole
    )
    scores.write_scores(street / scores.HELDOUT, schema, [batch])
    scores.write_centroids(street, scores.Centroids(vectors[:3].astype(np.float64), whole[:3] + 1, CLASSES))
    network = NetworkSettings(name="small", width=4, size=16)
    model = build(network, 3, seed=0)
    options = {"options": {"threshold": 0.6, "reject": 0.4}}
    card = Card(network=network, classes=CLASSES, preprocessing=Preprocessing(size=16), training=options)
    save_checkpoint(folder / "model", model, card)
    torch.save({"state_dict": model.state_dict()}, folder / "model" / "weights.pth")
    split.write_split(folder / "model", face_id=names.to_pylist(), label=whole, part=["fit", "heldout"] * 6)
    contents.write_contents(
        folder / "contents.parquet",
        [pa.Table.from_batches(contents.hash_faces(folder / "faces" / "part-00000.parquet"))],
    )
    hashed = [["a", "b"], ["train", "test"], [None] * 2, [bytes(16)] * 2, [bytes(32), bytes(96)]]
    contents.write_contents(folder / "hashes.parquet", [pa.table(hashed, schema=contents.HASHED)], contents.HASHED)
    alike = [
        ["a", "b"],
        ["street"] * 2,
        [mined.NEAR_TEST, mined.WITHIN_POOLS],
        ["x", "a"],
        ["studio", "street"],
        [3, 0],
    ]
    write_rows(folder / "data" / "mined" / mined.PAIRS, pa.table(alike, schema=mined.LIKENESS))
    rejected = [census.RejectedSample("a", "a.png", "train", "no_face")]
    manifest = folder / "shard"
    manifest.mkdir()
    shutil.copy(folder / "faces" / "part-00000.parquet", manifest / "faces.parquet")
    history.write_json(manifest / "manifest.json", {"labels": {"0": 12}, "rejected": [rejected[0]._asdict()]})
    census.write_census(folder / "census", {}, rejected, {}, {"test": contents.SharedCounts(1, 2)})
    pq.write_table(pa.table({"face_id": ["a", "b"]}), folder / "exclude.parquet")
    (folder / "exclude.csv").write_text("face_id,why\na,x\nb,y\n")
    distilled.write_arrays(
        folder / "data" / "distilled" / "auxiliary" / "saved" / distilled.saved_name(1),
        {"images": np.zeros((1, 3, 3, 16, 16), np.float32)},
    )
    tables = folder / "reports" / "tables"
    tables.mkdir(exist_ok=True)
    figures = [f"{name}{end}" for name in results.FIGURES for end in ("", "_seeds_low", "_seeds_high")]
    figures += [f"class_accuracy_sd{end}" for end in ("", "_both_low", "_both_high")]
    head = ["recipe", "target", "seeds", "faces", *figures]
    (tables / "results.csv").write_text(",".join(head) + "\nvas,film,2,56" + ",0.5" * len(figures) + "\n")
    (tables / "differences.csv").write_text(
        "recipe,against,target,metric,difference,low,high,p_corrected,claim,seeds_for_a_point\n"
        "vas,baseline,film,mean_class_accuracy,0.1,0,1,0.5,unclear,9\n"
    )
    store = Store(folder / "store", owner="align@street")
    store.make("ab" * 32, lambda path: path.write_bytes(b"a shard"))
    store.record_run(["ab" * 32])
    with InputHashes(store.memory("hashes.json")) as hashes:
        hashes.hash_file(shard)
    settings = {**project_settings().model_dump(mode="json"), "mine": {"by": "margin", "cap": 500}}
    (folder / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    stage = {"cmd": "true", "deps": ["data/scores"], "outs": ["data/mined", {"reports/a.json": {"cache": False}}]}
    (folder / "dvc.yaml").write_text(
        yaml.safe_dump({"stages": {"mine": stage, "report": {"foreach": ["a"], "do": stage}}})
    )
    (folder / "raw.dvc").write_text(
        "outs:\n- md5: 0123456789abcdef0123456789abcdef.dir\n  size: 12\n  nfiles: 3\n  hash: md5\n  path: raw\n"
    )


def read_scored(folder: Path) -> None:
    street = folder / "data" / "scores" / "street"
    pools = {"street": scores.read_scores(street, classes=CLASSES)}
    scores.read_heldout(street, classes=CLASSES)
    scores.read_centroids(street)
    candidates = collect_candidates(pools, exclude=pa.array(["a"]), test_faces={})
    assert sum(map(len, candidates.scores())) == len(candidates)


def read_embedded(folder: Path) -> None:
    for path in embeddings.embedding_paths(folder / "embeddings"):
        for batch in embeddings.iter_embeddings(path, batch_size=5):
            batch.vector.sum(), batch.face_id.to_pylist()
        for block in embeddings.stream_embeddings(path, rows=5):
            [part.sum() for part in block.parts], block.face_id.to_pylist()


def read_aligned(folder: Path) -> None:
    place = folder / "faces"
    faces.read_classes(place), faces.read_metadata(place)
    faces.read_table(place, ["face_id", "label", "subject", "split"]).to_pylist()
    faces.read_faces(place)
    for path in faces.shard_paths(place):
        for _, images in faces.iter_encoded(path, 5):
            [bytes(image) for image in images]
        list(contents.hash_faces(path))
        shards.check_shard(path, shards.EmbedOptions(Path(), "", {}, FACE_CLASSES, crop=SIZE))
        [images.sum() for _, images in shards.decoded_batches(path, 5, threads=0)]


def read_training_set(folder: Path) -> None:
    for budget in (None, MemoryBudget(torch.device("cpu"), 10**9)):
        sets.read_images(folder / "faces", classes=FACE_CLASSES, budget=budget, landmarks=True).all_pixels()


def read_auxiliary(folder: Path) -> None:
    place = folder / "data" / "auxiliary" / "street"
    list(faces.iter_faces(place, 7, label="pseudo_label"))
    collect_faces(place, pa.array(["street/0001"]), folder / "spill.arrow")
    mining.load_crops(place, {"street/0001"})


def read_mined(folder: Path) -> None:
    place = folder / "data" / "mined"
    for name in (mined.MINED, mined.RANDOM):
        mined.read_rows(place, name, classes=CLASSES).to_pylist()
    mined.read_summary(place)
    mined.read_sweep(place)
    mined.read_pairs(place)
    truth = truths.read_truth(folder / "data" / "truth", ["street"])
    mining.load_sweep(folder / "data", classes=CLASSES, truth=truth, seed=0)
    mining.load_mined_faces(folder / "data", classes=CLASSES, truth=truth, per_class=3, seed=0)


def read_metrics(folder: Path) -> None:
    place = folder / "reports" / "metrics" / "vas" / "studio"
    metrics.read_predictions(place / metrics.PREDICTIONS)
    metrics.read_resampling(place)
    metrics.read_failures(place / "failures")


def read_labels(folder: Path) -> None:
    truth = truths.read_truth(folder / "data" / "truth", ["street"])
    learners.view_labels(
        folder / "reports" / "labels" / "das.parquet", CLASSES, truth, shown=3, options={"reject": 0.5}
    )


def read_courses(folder: Path) -> None:
    trainings.load_histories(folder / "models" / "final", ["vas"], [0])
    trainings.load_timings(folder / "reports" / "timings", ["vas", "baseline"], baseline="baseline")
    history.read_history(folder / "data" / "distilled" / "auxiliary")


def read_distilled(folder: Path) -> None:
    place = folder / "data" / "distilled"
    distilled.read_distilled(place, classes=CLASSES)
    with patch.object(trainings, "lines", lambda *known, **options: b""):  # drawing takes a quarter of a second
        trainings.load_distilled_sets(place / "auxiliary", 0)
    distilled.read_saved(place / "auxiliary")


def build_synthetic() -> tuple[Synthetic, torch.optim.Optimizer]:
    images, sizes = torch.zeros(2, 3, 3, 16, 16), torch.zeros(2)
    return Synthetic(images, sizes, torch.zeros(2, 3, dtype=torch.int64)), torch.optim.Adam([images, sizes], lr=0.1)


def build_training() -> tuple[dict[str, Any], torch.optim.Optimizer]:
    model = build(NetworkSettings(name="small", width=4, size=16), 3, seed=0)
    return {"strategy": model}, build_optimizer(model.parameters(), Sgd())


def write_distillation(folder: Path) -> None:
    """What a distillation leaves to go on with, after a step."""
    synthetic, optimizer = build_synthetic()
    synthetic.images.grad, synthetic.raw_sizes.grad = torch.ones(2, 3, 3, 16, 16), torch.ones(2)
    optimizer.step()
    done = loop.DistillationProgress([{"loss": 1.5, "accuracy": 0.5}])
    done.look(synthetic, 1.2)
    loop.save_state(folder, synthetic, optimizer, done)


def read_distillation(folder: Path) -> None:
    synthetic, optimizer = build_synthetic()
    course = loop.load_state(folder, synthetic, optimizer).history
    synthetic.images.grad = torch.ones_like(synthetic.images)
    optimizer.step()
    history.write_history(folder / "course", course)


def write_training(folder: Path) -> None:
    """What a training leaves to go on with, after a step."""
    parts, optimizer = build_training()
    model = parts["strategy"]
    model.train()(torch.arange(1536.0).reshape(2, 3, 16, 16) / 1536).sum().backward()
    optimizer.step()
    best = {"best": {"mean_class_accuracy": 0.5}, "best_weights": model.state_dict()}
    rows: list[history.Row] = [{"epoch": 1, "steps": 20, "train_loss": 1.5}]
    progress = records.Progress(phase_epochs=1, steps=20, seconds=1.5, history=rows, epoch=1, **best)
    folder.mkdir(exist_ok=True)
    progress.save(folder, parts, {"model": SimpleNamespace(optimizer=optimizer)})


def read_training(folder: Path) -> None:
    parts, optimizer = build_training()
    model = parts["strategy"]
    progress, saved = records.restore(folder, parts, model, torch.device("cpu"))
    records.restore_one(folder, optimizer, "model", saved)
    model.train()(torch.arange(1536.0).reshape(2, 3, 16, 16) / 1536).sum().backward()
    optimizer.step()
    history.write_history(folder / "course", progress.history)
    model.load_state_dict(progress.best_weights or {}, strict=False)


def read_census(folder: Path) -> None:
    census.read_census(folder / "reports" / "census" / "studio.json")
    census.read_shared(folder / "census" / "summary.json")


def read_weights(folder: Path) -> None:
    network = NetworkSettings(name="small", width=4, size=16)
    settings = WeightSettings(path=folder / "model" / "weights.pth", layout="checkpoint", least_filled=0.1, head=True)
    load_weights(build(network, 3, seed=0), network, settings)


def read_checkpoint(folder: Path) -> None:
    load_checkpoint(folder / "model").predict(np.zeros((1, 16, 16, 3), np.uint8))


def read_split(folder: Path) -> None:
    split.read_split(folder / "model", num_classes=3).labels_of(pa.array(["street/1"]), ["fit"])


def read_contents(folder: Path) -> None:
    path = folder / "contents.parquet"
    contents.read_contents(path).to_pylist()
    contents.faces_with(path, contents.read_test_contents(folder, ["contents"]))
    contents.count_shared(contents.SplitContents([path], "train"), contents.SplitContents([path], "test"))


def read_hashes(folder: Path) -> None:
    path = folder / "hashes.parquet"
    contents.read_contents(path, contents.HASHED).to_pylist()
    faces = duplicates.read_pools(folder, [path.stem])
    duplicates.find_near_test(faces.hashes, path, 40)
    duplicates.find_near_train(faces.hashes, path, 12)


def read_store(folder: Path) -> None:
    store = Store(folder / "store", owner="align@street")
    store.last_runs()
    for path in (folder / "store" / "checksums").rglob("*.json"):
        read_checksums(path)
    with InputHashes(store.memory("hashes.json")) as hashes:
        hashes.hash_file(folder / "embeddings" / "part-00000.arrow")


def read_settings(folder: Path) -> None:
    describe_workspace(folder)
    read_project(folder / "params.yaml")
    check_commands(folder / "params.yaml")


def write_sweep(folder: Path) -> None:
    (folder / "params.yaml").write_text(
        "seeds: [0, 1] # a comment\nmine: {by: margin, cap: 500}\nalign:\n  crop: 112\n"
    )


def read_sweep(folder: Path) -> None:
    text = (folder / "params.yaml").read_text(encoding="utf-8", errors="replace")
    set_params(text, {"mine.cap": 1, "seeds": [3]})


def read_dvc_files(folder: Path) -> None:
    lock = folder / "dvc.lock"
    dvc_project.read_outputs(folder)
    lineage.read_stages(lock)
    stages = dvc_project.read_stages(lock)
    list(recorded_settings.find_contradictions(folder, stages))
    order_new_stages(lock, read_locked_stages(lock)[:1], ["report", "mine"])


def read_survey(name: str, folder: Path) -> None:
    """A stranger's set as `init` is shown it, by its folder alone."""
    choices = {"label_column": ["emotion (voted)"]} if name == "csv" else {}
    settings = survey.SurveySettings(choices, [], reject_missing=True, project=folder)
    source = survey.Source(
        name, folder / Path(build_example(name)["path"]).relative_to(build_example(name)["root"]), "set"
    )
    default_split = None if name == "recordio" else "train"
    survey.survey_set(source, "set", settings, default_split=default_split, names=["set"]).notes()


def write_objects(folder: Path) -> None:
    (folder / "list.json").write_text(json.dumps([{"md5": "0" * 32, "relpath": f"a/{n}"} for n in range(5)]))


def read_objects(folder: Path) -> None:
    """A list of the files of a folder as DVC keeps it, under the name that its bytes give it."""
    data = (folder / "list.json").read_bytes()
    name = f"{hashlib.md5(data, usedforsecurity=False).hexdigest()}.dir"
    path = diagnosis.object_path(folder, name)
    shutil.rmtree(folder / "files", ignore_errors=True)
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    hasher = diagnosis.FileHasher()
    objects = diagnosis.Objects("cache", folder, hasher)
    hasher.run(threads=1)
    objects.list_files(name)
    revisions.list_folder(dvc_project.DvcConfig(folder, {}), name)


def write_revision(folder: Path) -> None:
    """What `dvc.lock` names as `data/mined` lies in the cache: a list of one file, and that file."""
    write_project(folder)
    listed = json.dumps([{"md5": "0" * 32, "relpath": "a"}])
    for md5, text in (("fedcba9876543210fedcba9876543210.dir", listed), ("0" * 32, "")):
        path = revisions.object_path(folder, md5)
        path.parent.mkdir(parents=True)
        path.write_text(text)


def read_revision(folder: Path) -> None:
    """The lock and the settings of a commit, whose bytes git would give, and the files that they name in the cache."""

    def git(root: Path, *words: str) -> tuple[int, str, str]:
        data = (root / words[-1].rpartition("/")[2]).read_bytes()
        return 0, str(len(data)) if "-s" in words else data.decode("utf-8", "replace"), ""

    commit, view = "0" * 40, folder / "view"
    shutil.rmtree(view, ignore_errors=True)
    with patch.object(revisions, "_git", git):
        revisions.read_lock(folder, commit, only="mine|evaluate")
        stages = revisions.read_lock(folder, commit)
        revision = revisions.Revision(
            "v1", commit, stages, folder, view, dvc_project.DvcConfig(folder, {}), "no remote"
        )
        revision.settings(), revision.names("data"), revision.path("data/mined")


def write_tables(folder: Path) -> None:
    write_project(folder)
    (folder / ".dvc").mkdir()
    shutil.rmtree(folder / "data" / "faces")
    shutil.copytree(folder / "faces", folder / "data" / "faces" / "street" / "train")
    shutil.copy(folder / "census" / "rejected.parquet", folder / "data" / "faces" / "street")


def read_tables(folder: Path) -> None:
    with revisions.open_revision(folder) as revision:
        for name in tables.TABLES:
            sql.query(revision, f"SELECT * FROM {name}")
        tables.show(revision)


def write_rwlock(folder: Path) -> None:
    entry = {"pid": 2**22 - 3, "cmd": "dvc repro"}
    (folder / ".dvc" / "tmp").mkdir(parents=True)
    (folder / ".dvc" / "tmp" / "rwlock.json").write_text(
        json.dumps({"write": {"/a": entry}, "read": {"/b": [entry, entry]}})
    )


def read_rwlock(folder: Path) -> None:
    shutil.copy(folder / ".dvc" / "tmp" / "rwlock.json", folder / ".dvc" / "tmp" / "rwlock")
    repair_rwlock(folder)


def write_differences(folder: Path) -> None:
    (folder / "reports" / "tables").mkdir(parents=True)
    (folder / "reports" / "tables" / "differences.csv").write_text(
        "recipe,against,target,metric,difference,seeds_low,seeds_high\nvas,baseline,film,mean_class_accuracy,0.1,0,1\n"
    )
    stage = {"cmd": "true", "outs": [{"path": "reports/tables", "hash": "md5", "md5": f"{'0' * 32}.dir"}]}
    (folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"report": stage}}))


def write_review(folder: Path) -> None:
    """Verdicts of two persons on faces whose pictures are known, in all that a row may say."""
    words = [("right", "anger"), ("wrong", "fear"), ("other", "neutral"), ("other", ""), ("", "anger")]
    rows = [
        review.Judgement(f"street/{number}", "street", f"{number:032x}", *said, who, "2026-11-28T12:00:00Z", "0 7")
        for number, said in enumerate(words)
        for who in ("Ada", 'Bob "B", Jr.')
    ]
    review.write_review(folder / "review.csv", rows)
    names = [f"street/{number}" for number in range(5)]
    pictures = [number.to_bytes(16, "big") for number in range(5)]
    columns = [names, ["train"] * 5, [None] * 5, pictures]
    contents.write_contents(folder / "data/contents/street.parquet", [pa.table(columns, schema=contents.CONTENTS)])


def read_opinions_of(folder: Path) -> None:
    rows = review.read_review(folder / "review.csv", classes=CLASSES, who="Eve", when="2026-01-01T00:00:00+00:00")
    merged = review.merge_reviews(rows)
    again = review.parse_review(review.format_review(merged).encode(), "again", classes=CLASSES)
    assert again == merged, "what is accepted is kept as it is"
    read_opinions(folder / "review.csv", folder / "data/contents", ["street"], CLASSES)


def write_reviewed(folder: Path) -> None:
    schema = mined.mined_schema(CLASSES, reviewed=True)
    columns = [["a", "b"], ["street"] * 2, [0, 1], [0.5, 0.25], [0.1, 0.2], [1, 0], [2, -1]]
    rows = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    write_rows(folder / mined.REVIEWED, pa.Table.from_arrays(rows, schema=schema))


def write_index(folder: Path) -> None:
    write_script(folder / "index.js", "index", {"title": "v1", "lineage": {"mined": {"data/mined": "0" * 32}}})


READERS = {
    "pictures": Reader(write_pictures, ("*",), read_picture, one_at_a_time=True),
    **{
        f"datasets.{name}": Reader(partial(write_example, name), ("*",), partial(read_example, name))
        for name in ("ck_plus", "csv", "fer2013", "image_folder", "mmi", "recordio", "synthetic", "tfd")
    },
    "embeddings": Reader(write_project, ("embeddings/*",), read_embedded),
    "scores": Reader(write_project, ("data/scores/street/*",), read_scored),
    "faces": Reader(write_project, ("faces/*",), read_aligned),
    "auxiliary": Reader(write_project, ("data/auxiliary/street/*/*",), read_auxiliary),
    "mined": Reader(write_project, ("data/mined/*", "data/truth/*"), read_mined),
    "metrics": Reader(write_project, ("reports/metrics/vas/studio/*.*", "failures.json"), read_metrics),
    "labels": Reader(write_project, ("reports/labels/*", "model/card.json"), read_labels),
    "results": Reader(write_project, ("reports/tables/*",), lambda folder: results.run(reports=folder / "reports")),
    "courses": Reader(
        write_project, ("models/final/vas/0/*", "reports/timings/*", "data/distilled/*/history.csv"), read_courses
    ),
    "distilled": Reader(
        write_project,
        ("data/distilled/*/*.*", "data/distilled/*/previews/*", "data/distilled/*/saved/*"),
        read_distilled,
    ),
    "census": Reader(write_project, ("reports/census/studio.json", "census/*.json"), read_census),
    "manifest": Reader(
        write_project,
        ("shard/manifest.json",),
        lambda folder: write_faces(folder / "set", {"train/part-00000.parquet": folder / "shard"}, CLASSES, [], {}, {}),
    ),
    "seeds": Reader(
        lambda folder: (folder / SEEDS).write_text('{"seeds": [10, 11]}\n'),
        (SEEDS,),
        lambda folder: of_seed(folder, 10),
    ),
    "split": Reader(write_project, ("model/split.parquet",), read_split),
    "perceptual hashes": Reader(write_project, ("hashes.parquet",), read_hashes),
    "contents": Reader(write_project, ("contents.parquet",), read_contents),
    "exclusions (csv)": Reader(write_project, ("exclude.csv",), lambda folder: read_exclusions(folder / "exclude.csv")),
    "exclusions (parquet)": Reader(
        write_project, ("exclude.parquet",), lambda folder: read_exclusions(folder / "exclude.parquet")
    ),
    "review": Reader(write_review, ("review.csv", "data/contents/*"), read_opinions_of),
    "reviewed faces": Reader(
        write_reviewed, (mined.REVIEWED,), lambda folder: mined.read_rows(folder, mined.REVIEWED, classes=CLASSES)
    ),
    "gallery": Reader(write_index, ("index.js",), read_lineage),
    "checkpoint": Reader(write_project, ("model/*.safetensors", "model/card.json"), read_checkpoint),
    "weights": Reader(write_project, ("model/weights.pth",), lambda folder: read_tensors(folder / "model/weights.pth")),
    "weights in a network": Reader(write_project, ("model/weights.pth",), read_weights),
    "distillation's state": Reader(write_distillation, (loop.STATE,), read_distillation),
    "training's state": Reader(write_training, (records.STATE,), read_training),
    "training sets": Reader(write_project, ("faces/*",), read_training_set),
    **{
        f"survey.{name}": Reader(partial(write_example, name), ("*",), partial(read_survey, name))
        for name in ("csv", "image_folder", "recordio")
    },
    "store": Reader(write_project, ("store/*/*.json", "store/checksums/*/*.json"), read_store),
    "settings": Reader(write_project, ("params.yaml",), read_settings),
    "pipelines.sweep": Reader(write_sweep, ("params.yaml",), read_sweep),
    "revisions": Reader(write_revision, ("dvc.lock", "params.yaml"), read_revision),
    "tables of a revision": Reader(
        write_tables,
        ("data/mined/*", "data/scores/*/part*", "data/faces/*/*.*", "data/faces/*/train/*", "data/truth/*"),
        read_tables,
    ),
    "dvc's lists": Reader(write_objects, ("list.json",), read_objects),
    "dvc": Reader(write_project, ("dvc.lock", "dvc.yaml", "*.dvc"), read_dvc_files),
    "pipelines.results": Reader(
        write_project,
        ("data/mined/summary.json", "reports/metrics/*/*/*.json"),
        lambda folder: artifacts.read_results(folder).flat(),
    ),
    "pipelines.differences": Reader(
        write_differences,
        ("dvc.lock", "reports/tables/*"),
        lambda folder: artifacts.read_differences(folder, {"report": Outcome.CACHED}),
    ),
    "pipelines.rwlock": Reader(write_rwlock, ("*.json",), read_rwlock),
}
