"""Boxes that the chip decodes, through every step that uses them: backends, simulate, evaluate, detect, verify, report."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.backends import accelerated, stored
from models.data.folder import open_folder
from models.score import detect
from sw import steps
from sw.compiler import load_graph
from sw.decode import Detections, decode
from sw.detections import Boxes, with_decoder
from sw.graph import Graph
from sw.report import write_report
from sw.runtime.accelerator import GoldenAccelerator
from sw.testing import micro_network

#: As in tests/e2e/test_detections.py, so that both take one build of the simulation from the cache.
BOXES = Boxes(top_k=17, threshold=0.6)
BOX = (
    "<annotation><size><width>32</width><height>32</height></size><object><name>{}</name>"
    "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>22</ymax></bndbox></object></annotation>"
)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    model = micro_network(tmp_path_factory.mktemp("boxes") / "m.onnx", detector=True)
    return with_decoder(load_graph(model), BOXES)


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, 32, 32, 3), np.uint8)


def same(found: list[Detections], wanted: list[Detections]) -> None:
    assert len(found) == len(wanted) and sum(len(d.labels) for d in wanted) > 10
    for got, want in zip(found, wanted, strict=True):
        for name in ("boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name))


def test_a_backend_gives_the_boxes_of_its_own_maps(graph: Graph) -> None:
    images, accelerator = pictures(3), GoldenAccelerator(graph)
    backend = accelerated("golden", accelerator)
    assert backend.finder is not None and backend.classes == ("0", "1", "2")
    wanted = decode(*backend.network(images), top_k=17, stride=2, threshold=0.6)
    same(backend.finder(images), wanted)
    kept = stored("rtl", graph, images, accelerator.run(images.astype(np.int64)).outputs)
    assert kept.finder is not None
    same(kept.finder(images[[2, 0]]), [wanted[2], wanted[0]])
    with pytest.raises(ValueError, match="maps hm, wh, reg were not kept, only boxes"):
        kept.network(images)
    with pytest.raises(ValueError, match="1 of 2 images were not simulated"):
        kept.finder(np.stack([images[0], 255 - images[0]]))


def test_boxes_below_a_threshold_are_left_out(graph: Graph, data: Path) -> None:
    backend = accelerated("golden", GoldenAccelerator(graph))
    sample = open_folder(data, "test", backend.classes)[0]
    found = [detect(backend.network, [sample], (32, 32), threshold=t, finder=backend.finder)[0] for t in (0.0, 0.8)]
    assert 0 < len(found[1].scores) < len(found[0].scores) and found[1].scores.min() >= 0.8
    assert (found[0].scores >= 0.8).sum() == len(found[1].scores)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / "voc" / name).mkdir(parents=True)
    for k, image in enumerate(pictures(2)):
        Image.fromarray(image).save(tmp_path / "voc" / "JPEGImages" / f"{k}.png")
        (tmp_path / "voc" / "Annotations" / f"{k}.xml").write_text(BOX.format(k))
    (tmp_path / "voc" / "ImageSets" / "Main" / "test.txt").write_text("0\n1\n")
    return tmp_path / "voc"


@pytest.mark.rtl
def test_every_step_uses_the_chips_boxes(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    micro_network(run / "model.onnx", detector=True)
    steps.compile(run, boxes=BOXES)
    steps.simulate(run, data=data, images=2)
    stored_ap = steps.evaluate(run, backend="rtl", data=data)
    assert stored_ap["images"] == 2
    drawn = steps.detect(run, data=data)
    assert sum(len(p["detections"]) for p in drawn["pictures"]) > 0
    record = steps.verify(run, data=data, images=2, exercise=0, torch=False)
    assert record["mismatches"] == 0
    pairs = {(row["tensor"], row["left"], row["right"]) for row in record["tensors"]}
    assert {("detections", "golden", "rtl"), ("detections", "host", "rtl"), ("hm", "golden", "rtl")} <= pairs
    write_report(run)
    text = (run / "report.md").read_text()
    assert "The 17 best boxes with a score of at least 0.6 leave it" in text and "Boxes from the Verilog (left)" in text
