"""Doors: what stays closed on the way to the first step, and that everything behind them works as ever.

What is imported is a matter of the process, so each question has a process of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datamodules import lazy_imports
from datamodules.lazy_imports import Door

ROOT = Path(__file__).resolve().parents[2]
# Packages whose code must not run before somebody uses it: closed, or not imported at all.
UNUSED = ("sympy", "torch._dynamo", "torch._inductor", "torch.onnx", "torchvision", "triton", "matplotlib.pyplot", "wandb.sdk")
RAN = f"""
import sys
from datamodules.lazy_imports import is_closed
ran = lambda: [name for name in {UNUSED!r} if name in sys.modules and not is_closed(name)]
"""


Run = Callable[..., Any]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """`run(program, VARIABLE=value)` gives what the program prints last, as JSON: a process of its own, where torch is imported
    and nothing else."""
    server = [sys.executable, str(ROOT / "tests" / "support" / "after_torch.py")]
    with subprocess.Popen(server, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def answer(program: str, **environment: str) -> Any:
            print(json.dumps([program, environment]), file=process.stdin, flush=True)
            status, out, error = json.loads(process.stdout.readline())
            assert status == 0, error
            return json.loads(out.splitlines()[-1])

        yield answer
        process.stdin.close()


# ------------------------------------------------------------------------------------------------ the way to a step


@pytest.mark.parametrize(
    "modules",
    [
        "lightning_modules, lightning.pytorch",
        "experiments.training.lightning_cli, lightning_modules.retrieval, lightning_modules.ranking, "
        "lightning_modules.captioning",
        "datamodules.coco, datamodules.flickr30k, datamodules.flickr30k_entities, datamodules.nocaps, datamodules.visual_genome",
    ],
)
def test_imports_run_nothing_that_a_run_may_never_use(modules: str, run: Run) -> None:
    assert run(f"{RAN}\nimport {modules}, json\nprint(json.dumps(ran()))") == []


STEP = """
import json, torch
from lightning_modules.networks.dual_encoder import DualEncoder
from lightning_modules.networks.towers.hugging_face import HFTextTower
from lightning_modules.networks.towers.timm import TimmImageTower
from datamodules.loading.images import evaluation_transform
from datamodules.inputs import ImageInput
from PIL import Image
torch.manual_seed(0)
tower = TimmImageTower("vit_tiny_patch16_224", image_size=32,
                       options=dict(img_size=32, patch_size=16, embed_dim=24, depth=1, num_heads=3))
pixels = torch.stack([evaluation_transform(tower.image_input)(Image.new("RGB", (40, 50), (10 * k, 99, 7))) for k in range(4)])
from transformers import AutoConfig, AutoModelForCausalLM
model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_embd=24, n_layer=1, n_head=2, vocab_size=30))
network = torch.nn.ModuleList([tower, model])
optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
def step():
    loss = tower.model(pixels.float() / 255).square().mean()
    loss = loss + model(torch.arange(12).view(2, 6), labels=torch.arange(12).view(2, 6)).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()
losses = [step() for _ in range(3)]
"""

DDP = """
import torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
replica = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 1, bias=False))
replica(torch.ones(2, 3)).sum().backward()
gradient, mode = replica.module.weight.grad.tolist(), torch._dynamo.utils.get_optimize_ddp_mode()
dist.destroy_process_group()
"""


NAMES = """
import importlib
from datamodules.lazy_imports import DOORS, _Part
missing = []
for package, door in DOORS.items():
    module = importlib.import_module(package)
    for room in door.rooms:
        importlib.import_module(f"{package}.{room}")
    names = [*door.stand_ins, *(name for lent in door.lent.values() for name in lent if name != "*")]
    missing += [f"{package}.{name}" for name in names if not hasattr(module, name)]
    for name, part in door.stand_ins.items():
        if type(part) is _Part:
            missing += [f"{package}.{name}.{one}" for one in part.functions if not hasattr(getattr(module, name), one)]
"""

COMPILER = """
plain = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.GELU())
compiled = torch.compile(plain, backend="eager", fullgraph=True)
x = torch.randn(2, 3)
same = torch.equal(compiled(x), plain(x))
real = torch._dynamo.OptimizedModule
kinds = [type(compiled) is real, wrappers.OptimizedModule is real, lightning_compile.OptimizedModule is real,
         isinstance(compiled, wrappers.OptimizedModule), isinstance(plain, wrappers.OptimizedModule)]
raised = "no"
@torch.compile(backend="eager", fullgraph=True)
def stepping(x):
    optimizer.zero_grad()
    return x + 1
try:
    stepping(x)
except torch._dynamo.exc.Unsupported:
    raised = "Unsupported"
marked = getattr(__import__("transformers.integrations.deepgemm", fromlist=["x"]).is_sm100, "_dynamo_marked_constant", False)
"""


@pytest.fixture(scope="module")
def steps(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """Three steps, then the compiler, then a step: behind closed doors, and with none, where all that doors name is asked for
    first."""
    program = f"""{RAN}
import lightning.pytorch, lightning.fabric.wrappers as wrappers, lightning.pytorch.utilities.compile as lightning_compile
{STEP}
{DDP}
before, wrapped = ran(), isinstance(model, wrappers.OptimizedModule)
{COMPILER}
print(json.dumps(dict(ran=before, wrapped=wrapped, losses=losses, same=same, kinds=kinds, as_ever=[raised, marked, step()],
                      ddp=[gradient, mode], missing=globals().get("missing"))))
"""
    return run(program), run(NAMES + program, CROSSLIGHT_EAGER_IMPORTS="1")


def test_a_step_runs_nothing_of_the_compiler_and_gives_the_same_numbers(steps: tuple[dict[str, Any], dict[str, Any]]) -> None:
    lazy, eager = steps
    assert lazy["ran"] == []
    assert {"sympy", "torch._dynamo", "torchvision"} <= set(eager["ran"])
    assert lazy["losses"] == eager["losses"]
    assert lazy["ddp"] == eager["ddp"] == [[[2.0] * 3], "ddp_optimizer"]


# ------------------------------------------------------------------------------------------------ behind the doors


def test_the_compiler_works_after_steps_without_it(steps: tuple[dict[str, Any], dict[str, Any]]) -> None:
    lazy, eager = steps
    assert not lazy["wrapped"]
    assert lazy["same"]
    assert lazy["kinds"] == [True, True, True, True, False]
    assert lazy["as_ever"] == eager["as_ever"]  # torch keeps its optimizers' functions out of graphs, as ever


def test_torchvision_torchmetrics_and_timm_work_as_ever(run: Run) -> None:
    program = """
import lightning_modules, lightning.pytorch, json, pickle, torch
from torchvision.transforms import v2
from torchvision.ops import box_iou
boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3]])
iou = box_iou(boxes, boxes).tolist()
import torchvision
from torchvision.ops import roi_align, nms, MultiScaleRoIAlign
aligned = roi_align(torch.arange(16.0).view(1, 1, 4, 4), [boxes], 1).flatten().tolist()
names = [torchvision.ops.RoIAlign.__name__, torchvision.models.get_model("resnet18", weights=None).fc.out_features]
from torchvision import datasets, tv_tensors
import torchmetrics, torchmetrics.metric
mean = torchmetrics.MeanMetric()
mean.update(torch.tensor([1.0, 2.0]))
mean = pickle.loads(pickle.dumps(mean))
collection = torchmetrics.MetricCollection({"m": mean})
kinds = [isinstance(mean, torchmetrics.metric.Metric), torchmetrics.Metric is torchmetrics.metric.Metric]
from torchmetrics.classification import BinaryAccuracy
accuracy = BinaryAccuracy()(torch.tensor([1, 0]), torch.tensor([1, 1])).item()
import matplotlib
matplotlib.use("agg")
figure, axes = collection["m"].plot()
import timm.data
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    boxes @ boxes.T
transform = pickle.loads(pickle.dumps(v2.Compose([v2.CenterCrop(2)])))
print(json.dumps([iou, aligned, names, collection.compute()["m"].item(), kinds, accuracy, type(axes).__name__,
                  timm.data.Mixup.__name__, counter.get_total_flops(), tuple(transform(torch.zeros(3, 4, 4)).shape)]))
"""
    iou, aligned, names, mean, kinds, accuracy, axes, mixup, flops, shape = run(program)
    assert iou[0] == pytest.approx([1, 1 / 7])
    assert len(aligned) == 2
    assert (names, mean, accuracy, axes, mixup, flops) == (["RoIAlign", 1000], 1.5, 0.5, "Axes", "Mixup", 32)
    assert kinds == [True, True]
    assert shape == [3, 2, 2]


def test_workers_of_any_start_method_find_their_classes(run: Run, tmp_path: Path) -> None:
    (tmp_path / "crops.py").write_text("""
import torch
import lightning_modules
from torch.utils.data import Dataset
from torchvision.transforms import v2
class Crops(Dataset):
    def __init__(self): self.crop = v2.CenterCrop(2)
    def __len__(self): return 4
    def __getitem__(self, row): return self.crop(torch.full((3, 4, 4), float(row)))
""")
    program = f"""
import json, sys
sys.path.insert(0, {str(tmp_path)!r})  # where a spawned worker finds the class, as it is told
from crops import Crops
from torch.utils.data import DataLoader
batches = []
for method in ("fork", "spawn"):
    loader = DataLoader(Crops(), batch_size=2, num_workers=1, multiprocessing_context=method)
    batches += [batch[:, 0, 0, 0].tolist() for batch in loader]
print(json.dumps(batches))
"""
    assert run(program) == [[0.0, 1.0], [2.0, 3.0]] * 2


# ---------------------------------------------------------------------------------------------------- the mechanism


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `doored` that counts how often its code runs, and a door at it."""
    folder = tmp_path / "doored"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text(
        "import builtins\nbuiltins.doored_runs = getattr(builtins, 'doored_runs', 0) + 1\n"
        "from doored.child import VALUE\nfrom doored.room import Lent\n__version__ = '3'\ndef given(): return 'real'\n"
    )
    (folder / "child.py").write_text("import builtins\nbuiltins.child_runs = getattr(builtins, 'child_runs', 0) + 1\nVALUE = 5\n")
    (folder / "other.py").write_text("import doored\nSEEN = doored.VALUE\n")
    (folder / "room.py").write_text("class Lent: pass\n")
    (tmp_path / "taker.py").write_text("from doored import given\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(
        lazy_imports.DOORS,
        "doored",
        Door(rooms=("room",), lent={"room": ("Lent",)}, stand_ins={"given": lazy_imports._Later("doored", "given")}),
    )
    before = set(sys.modules)
    monkeypatch.setattr("builtins.doored_runs", 0, raising=False)
    monkeypatch.setattr("builtins.child_runs", 0, raising=False)
    yield folder
    for name in set(sys.modules) - before:
        if name.startswith(("doored", "taker")):
            del sys.modules[name]


def runs() -> tuple[int, int]:
    import builtins

    return builtins.doored_runs, builtins.child_runs  # type: ignore[attr-defined]


def test_a_room_and_what_it_lends_leave_the_door_closed(package: Path) -> None:
    doored = importlib.import_module("doored")
    assert doored.Lent is importlib.import_module("doored.room").Lent
    assert not hasattr(doored, "__wrapped__")  # as whoever looks through all modules asks
    assert lazy_imports.is_closed("doored")
    assert runs() == (0, 0)


@pytest.mark.parametrize("use", ["doored.VALUE", "doored.child", "doored.other", "doored.given"])
def test_a_use_opens_it_once(package: Path, use: str) -> None:
    doored = importlib.import_module("doored")
    lent, name = doored.Lent, use.partition(".")[2]
    if use in ("doored.child", "doored.other"):
        module = importlib.import_module(use)
        assert getattr(module, "VALUE", None) == 5 or module.SEEN == 5
        assert module.__spec__.name == use
        assert module is sys.modules[use]
    elif use == "doored.given":
        assert doored.given() == "real"
    else:
        assert getattr(doored, name) == 5
    assert runs() == (1, 1)
    assert not lazy_imports.is_closed("doored")
    assert importlib.import_module("doored") is doored
    assert doored.Lent is lent
    assert doored.__version__ == "3"


def test_who_took_a_stand_in_gets_the_thing_itself(package: Path) -> None:
    taker = importlib.import_module("taker")
    stand_in = taker.given
    assert runs() == (0, 0)
    assert stand_in() == "real"
    assert taker.given is sys.modules["doored"].given
    assert stand_in() == "real"


def test_a_room_that_an_upgrade_moved_means_the_ordinary_import(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lazy_imports.DOORS, "doored", Door(rooms=("room", "moved"), lent={"room": ("Lent",)}))
    doored = importlib.import_module("doored")
    assert not lazy_imports.is_closed("doored")
    assert doored.VALUE == 5
    assert runs() == (1, 1)


def test_a_name_that_an_upgrade_moved_means_the_ordinary_import(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lazy_imports.DOORS, "doored", Door(rooms=("room",), lent={"room": ("Gone",)}))
    assert importlib.import_module("doored").VALUE == 5


def test_missing_things_are_missing(package: Path) -> None:
    doored = importlib.import_module("doored")
    with pytest.raises(ModuleNotFoundError, match=r"doored\.nothing"):
        importlib.import_module("doored.nothing")
    with pytest.raises(AttributeError, match="nothing"):
        _ = doored.nothing


def test_an_import_that_fails_is_tried_again(package: Path) -> None:
    (package / "child.py").write_text("raise ImportError('not today')\n")
    doored = importlib.import_module("doored")
    for _ in range(2):
        with pytest.raises(ImportError, match="not today"):
            _ = doored.VALUE
    assert doored.Lent
    (package / "child.py").write_text("VALUE = 5  # and longer than it was\n")
    importlib.invalidate_caches()
    assert doored.VALUE == 5


def test_threads_wait_for_each_other(package: Path) -> None:
    (package / "child.py").write_text("import time\ntime.sleep(0.2)\nVALUE = 5\n")
    doored, seen = importlib.import_module("doored"), []
    threads = [threading.Thread(target=lambda: seen.append(doored.VALUE)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [5] * 4
    assert runs()[0] == 1


def test_doors_name_what_is_there(steps: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Each room, lent name and stand-in exists in the installed versions: an upgrade that moves one is seen here."""
    assert steps[1]["missing"] == []
