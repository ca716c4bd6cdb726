"""Relations over several processes: as one process sees them on the joined batch."""

import subprocess
import sys

import pytest
import torch

from limbeck.core.types import Batch, Outputs, Progress
from limbeck.methods import METHODS
from limbeck.methods.base import Probe
from limbeck.methods.relation.relation import RELATION_PRESETS

PROGRAM = '''
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from limbeck.core.types import Batch, Outputs, Progress
from limbeck.methods import METHODS
from limbeck.methods.base import Probe

NAMES = sys.argv[1:]
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
SIZE = 8
images, virtual = torch.randn(2, SIZE, 6, dtype=torch.float64)
theirs, their_logits, their_virtual = (torch.randn(SIZE, k, dtype=torch.float64) for k in (7, 4, 4))
label = torch.arange(SIZE) % 4


class Small(nn.Module):
    """A student of two linear layers, and the method that trains it."""

    def __init__(self, config, method):
        super().__init__()
        self.embed, self.classify = nn.Linear(6, 5).double(), nn.Linear(5, 4).double()
        self.method = method(config, self.probe(config)).double()

    def outputs(self, image):
        feature = self.embed(image).tanh()
        return self.classify(feature), {"penultimate": feature, "last": feature}

    def probe(self, config):
        teacher = Outputs(their_logits, features={"penultimate": theirs, "last": theirs})
        logits, features = self.outputs(images)
        student = Outputs(logits.detach(), features={k: f.detach() for k, f in features.items()})
        return Probe(student=student, teacher=teacher, num_classes=4, num_images=SIZE)

    def forward(self, at):
        logits, features = self.outputs(images[at])
        view = Outputs(self.outputs(virtual[at])[0])
        student = Outputs(logits, features=features, views={"strong": view})
        teacher = Outputs(
            their_logits[at],
            features={"penultimate": theirs[at], "last": theirs[at]},
            views={"strong": Outputs(their_virtual[at])},
        )
        batch = Batch(index=torch.arange(SIZE)[at], image=images[at], label=label[at])
        return self.method(batch, student, teacher, Progress()).total


def build(name, gather):
    name, _, preset = name.partition(":")
    entry = METHODS[name]
    config = entry.config(gather=gather, **({"preset": preset} if preset else {}))
    torch.manual_seed(1)
    return Small(config, entry.stages(config)[-1].method.from_probe)


for name in NAMES:
    alone = build(name, False)
    whole = alone(slice(0, SIZE))
    whole.backward()
    expected = {n: p.grad for n, p in alone.named_parameters()}
    together = DistributedDataParallel(build(name, True))
    half = SIZE // 2
    part = together(slice(rank * half, (rank + 1) * half))
    part.backward()
    mean = part.detach().clone()
    dist.all_reduce(mean)
    assert abs(mean / 2 - whole.detach()) < 1e-9 * abs(whole.detach()), name
    for parameter, p in together.module.named_parameters():
        torch.testing.assert_close(
            p.grad, expected[parameter], rtol=1e-9, atol=1e-9, msg=lambda m: name + parameter + m
        )
    local = build(name, False)(slice(rank * half, (rank + 1) * half)).detach()
    dist.all_reduce(local)
    assert abs(local / 2 - whole.detach()) > 1e-6, name + " compares images of one process alone"
    sys.stdout.write(f"{name} agrees\\n")  # at once, so that two processes do not mix
    sys.stdout.flush()
dist.destroy_process_group()
'''
GATHERING = [
    name
    for name, entry in METHODS.items()
    if entry.family == "relation" and "gather" in entry.config.model_fields
]
# Neither the channels of an image nor its prediction stand in a relation to other images.
PRESETS = [f"relation:{name}" for name in RELATION_PRESETS if name not in ("fsp", "dist_inter")]


def test_every_relation_of_images_can_gather():
    """The other two compare channels of one image."""
    family = [name for name, entry in METHODS.items() if entry.family == "relation"]
    assert set(family) - set(GATHERING) == {"fsp", "london"}


def test_two_processes_give_the_value_and_gradient_of_one_on_the_joined_batch(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, program, *GATHERING, *PRESETS],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    for name in (*GATHERING, *PRESETS):
        assert done.stdout.splitlines().count(f"{name} agrees") == 2, done.stdout + done.stderr


@pytest.mark.parametrize("name", GATHERING)
def test_one_process_gathers_nothing(name, generator):
    """The setting changes no number where there is nobody to gather from."""
    entry = METHODS[name]
    features = torch.randn(2, 6, 5, dtype=torch.float64, generator=generator)
    logits = torch.randn(4, 6, 3, dtype=torch.float64, generator=generator)
    sides = []
    for whose in range(2):
        view = Outputs(logits[2 + whose])
        found = {"penultimate": features[whose], "last": features[whose]}
        sides.append(Outputs(logits[whose], features=found, views={"strong": view}))
    batch = Batch(index=torch.arange(6), image=torch.zeros(6, 1, 2, 2), label=torch.arange(6) % 3)
    totals = []
    for gather in (False, True):
        config = entry.config(gather=gather)
        method = entry.stages(config)[-1].method
        with torch.random.fork_rng():
            torch.manual_seed(0)
            probe = Probe(student=sides[0], teacher=sides[1], num_classes=3, num_images=6)
            built = method.from_probe(config, probe).double()
        totals.append(built(batch, *sides, Progress()).total)
    assert torch.equal(*totals)
