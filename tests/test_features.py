import copy
from typing import ClassVar

import pytest
import torch
from torch import nn

from limbeck.core.errors import MissingOutputError, ModelError, TapError, UnknownNameError
from limbeck.core.normalization import Normalization
from limbeck.features import (
    FeatureTap,
    LayerAddress,
    ObservedNetwork,
    find_classifier,
    layer_names,
    resolve_layer,
)


class Small(nn.Module):
    """A conv whose output an in-place ReLU overwrites, used twice, and an unused layer."""

    layer_aliases: ClassVar = {"stage1": "relu#1"}

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.mix = nn.Conv2d(3, 3, 1)
        self.unused = nn.Linear(2, 2)
        self.fc = nn.Linear(3, 5)

    def forward(self, image):
        first = self.relu(self.bn(self.conv(image)))
        second = self.relu(self.mix(first) - 0.1)
        return self.fc(second.mean(dim=(2, 3)))


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small()


@pytest.fixture
def image():
    return torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(1))


def num_hooks(network):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def by_hand(network, image):
    """The same forward pass without anything in place: pre-activation and both ReLUs."""
    network = copy.deepcopy(network)
    pre = network.bn(network.conv(image))
    first = pre.relu()
    second = (network.mix(first) - 0.1).relu()
    return pre, first, second, second.mean(dim=(2, 3))


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("grad", [True, False])
def test_taps_read_what_the_layers_gave_even_where_it_is_overwritten(network, image, passes, grad):
    pre, first, second, pooled = by_hand(network.eval(), image)
    with (
        torch.set_grad_enabled(grad),
        FeatureTap(network, ["bn", "relu#1", "relu#2", "fc:input", "relu:input#2"]) as tap,
    ):
        for _ in range(passes):
            features = tap(image).features
    torch.testing.assert_close(features["bn"], pre)
    torch.testing.assert_close(features["relu#1"], first)
    torch.testing.assert_close(features["relu#2"], second)
    torch.testing.assert_close(features["fc:input"], pooled)
    assert (features["relu:input#2"] < 0).any()  # before the in-place ReLU


def test_only_overwritten_layers_are_copied_after_the_first_pass(network, image):
    seen = {}
    network.bn.register_forward_hook(lambda *a: seen.update(bn=a[-1]))
    network.mix.register_forward_hook(lambda *a: seen.update(mix=a[-1]))
    with FeatureTap(network, ["bn", "mix"]) as tap:
        tap(image)
        features = tap(image).features
    assert features["bn"].data_ptr() != seen["bn"].data_ptr()
    assert features["mix"].data_ptr() == seen["mix"].data_ptr()


def test_gradients_flow_through_a_cloned_tap_as_through_the_plain_graph(network, image):
    pre, *_ = by_hand(network.eval(), image)
    weight = network.conv.weight
    with FeatureTap(network, ["bn"]) as tap:
        (ours,) = torch.autograd.grad(tap(image).features["bn"].square().sum(), weight)
    fresh = copy.deepcopy(network)
    pre = fresh.bn(fresh.conv(image))
    (theirs,) = torch.autograd.grad(pre.square().sum(), fresh.conv.weight)
    torch.testing.assert_close(ours, theirs)


def test_the_network_is_as_before_once_the_tap_is_closed(network, image):
    before = network.eval()(image)
    with FeatureTap(network, ["bn", "fc:input"]) as tap:
        torch.testing.assert_close(tap(image).output, before, rtol=0, atol=0)
    assert num_hooks(network) == 0
    tap.close()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("con", "did you mean 'conv'"),
        ("stage2", "did you mean 'stage1'"),
        ("conv:output", "'name:input' or 'name#2'"),
        ("conv#0", "'name:input' or 'name#2'"),
    ],
)
def test_a_misspelt_layer_is_answered_before_anything_runs(network, asked, message):
    with pytest.raises((UnknownNameError, TapError), match=message):
        FeatureTap(network, ["fc", asked])


def test_a_refused_tap_leaves_no_hooks(network):
    with pytest.raises(UnknownNameError):
        FeatureTap(network, ["fc", "nonsense"])
    assert num_hooks(network) == 0


def test_a_layer_that_does_not_run_is_an_error_not_a_missing_value(network, image):
    with FeatureTap(network, ["unused"]) as tap, pytest.raises(TapError, match="did not run"):
        tap(image)


def test_a_third_call_that_never_comes_is_an_error(network, image):
    with FeatureTap(network, ["relu#3"]) as tap, pytest.raises(TapError, match="ran 2 times"):
        tap(image)


def test_a_shared_layer_must_be_asked_for_by_call(network, image):
    with FeatureTap(network, ["relu"]) as tap, pytest.raises(TapError, match=r"relu#1 \.\.\."):
        tap(image)


def test_an_output_that_is_no_tensor_is_refused():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    network = nn.Sequential(Pair(), nn.Identity())
    with FeatureTap(network, ["0"]) as tap, pytest.raises(TapError, match="gives a tuple"):
        tap(torch.zeros(1, 2))


def test_a_tensor_overwritten_only_later_is_an_error_never_a_wrong_number():
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Identity()
            self.in_place = False

        def forward(self, x):
            y = self.body(x * 1)
            return y.add_(1) if self.in_place else y + 1

    network = Moody()
    with FeatureTap(network, ["body"]) as tap:
        tap(torch.zeros(2, 2))
        network.in_place = True
        with pytest.raises(TapError, match="overwritten in place"):
            tap(torch.zeros(2, 2))
        torch.testing.assert_close(tap(torch.zeros(2, 2)).features["body"], torch.zeros(2, 2))


def test_a_copy_of_the_network_alone_does_not_write_into_the_tap(network, image):
    with FeatureTap(network, ["fc"]) as tap:
        mine = tap(image).features["fc"]
        other = copy.deepcopy(network)
        nn.init.zeros_(other.fc.weight)
        other(image)
        assert tap._store.values == {}
        torch.testing.assert_close(tap(image).features["fc"], mine)


@pytest.mark.parametrize("tap_first", [True, False])
def test_tap_and_network_copied_together_belong_together(network, image, tap_first):
    with FeatureTap(network, ["fc"]) as tap:
        pair = copy.deepcopy((tap, network) if tap_first else (network, tap))
        other_tap, other = pair if tap_first else pair[::-1]
        assert other_tap.network is other
        assert other is not network
        nn.init.zeros_(other.fc.weight)
        nn.init.zeros_(other.fc.bias)
        assert other_tap(image).features["fc"].abs().sum() == 0
        assert tap(image).features["fc"].abs().sum() > 0
        other_tap.close()
        assert num_hooks(other) == 0
        assert num_hooks(network) == 1


def test_a_stopped_pass_runs_and_moves_nothing_behind_the_last_tap(network, image):
    network.train()
    ran = []
    network.mix.register_forward_hook(lambda *a: ran.append("mix"))
    with FeatureTap(network, ["bn", "relu#1"], stop=True) as tap:
        reading = tap(image)
    assert reading.stopped
    assert reading.output is None
    assert set(reading.features) == {"bn", "relu#1"}
    assert ran == []


def test_taps_fire_in_a_compiled_network_also_beside_a_tapless_twin(network, image, monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "skip_nnmodule_hook_guards", False)
    network.eval()
    twin = copy.deepcopy(network)
    twin.compile(backend="eager")
    twin(image)
    pre, first, *_ = by_hand(network, image)
    with FeatureTap(network, ["bn", "relu#1"]) as tap:
        tap(image)  # eager once: which layers are overwritten is known from here on
        network.compile(backend="eager")
        for _ in range(2):
            features = tap(image).features
        torch.testing.assert_close(features["bn"], pre)
        torch.testing.assert_close(features["relu#1"], first)
    torch._dynamo.reset()


def test_penultimate_is_the_last_linear_layers_input(network, image):
    assert resolve_layer(network, "penultimate") == "fc:input"
    with pytest.raises(ModelError, match=r"no nn\.Linear"):
        resolve_layer(nn.Sequential(nn.Conv2d(1, 1, 1)), "penultimate")


def test_a_network_names_its_own_meanings(network):
    assert resolve_layer(network, "stage1") == "relu#1"
    assert "stage1" in layer_names(network)


def test_addresses_read_back_as_written():
    assert LayerAddress.parse("a.b.0:input#12") == LayerAddress("a.b.0", True, 12)
    assert LayerAddress.parse("fc") == LayerAddress("fc")


def test_the_classifier_is_live(network):
    assert find_classifier(network).weight is network.fc.weight


def test_an_observed_network_normalises_for_itself(network, image):
    observed = ObservedNetwork(
        network.eval(), normalization=Normalization(mean=(0.5,), std=(0.25,)), layers=["fc"]
    )
    outputs = observed(image, {"flipped": image.flip(3)})
    torch.testing.assert_close(outputs.logits, network((image - 0.5) / 0.25))
    torch.testing.assert_close(
        outputs.views["flipped"].logits, network((image.flip(3) - 0.5) / 0.25)
    )


def test_a_stopped_network_says_why_it_has_no_logits(network, image):
    observed = ObservedNetwork(network, layers=["bn"], stop=True)
    with pytest.raises(MissingOutputError, match="stopped after layer 'bn'"):
        _ = observed(image).logits


def test_logits_must_be_rows_of_classes(image):
    with pytest.raises(ModelError, match="logits of shape"):
        ObservedNetwork(nn.Conv2d(1, 2, 1))(image)


def test_what_is_not_asked_for_scores_may_give_anything(image):
    """A backbone that gives maps, or several things: its layers are read all the same."""
    network = nn.Sequential(nn.Conv2d(image.shape[1], 2, 1))
    observed = ObservedNetwork(network, layers=["0"], scores=False)
    outputs = observed(image)
    assert torch.equal(outputs.features["0"], network(observed.normalize(image)))
    assert not outputs.has_logits
    with pytest.raises(MissingOutputError, match="class scores were not asked for"):
        _ = outputs.logits


class Staged(nn.Module):
    """Three stages, in a module of the name that timm gives them; ReLUs end the first two."""

    layer_aliases: ClassVar = {f"stage{k + 1}": f"stages.{k}" for k in range(3)}

    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(
            nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 5, 1)),
        )
        self.fc = nn.Linear(5, 3)

    def forward(self, image):
        return self.fc(self.stages(image).mean(dim=(2, 3)))


def test_every_stage_is_asked_for_at_once_and_answers_by_its_own_name():
    asked = ["stage*", "stage2", "stages", "fc:input"]
    with FeatureTap(Staged(), asked) as tap:
        for _ in range(2):
            features = tap(torch.rand(2, 2, 4, 4)).features
    names = ["stage1", "stage2", "stage3"]
    assert set(features) == {*names, "stages", "fc:input"}
    assert [features[name].shape[1] for name in names] == [3, 4, 5]
    assert tap.addresses["stage2"] == "stages.1"


def test_every_stage_before_its_activation_and_one_without_as_it_is():
    network, image = Staged(), torch.randn(8, 2, 4, 4)
    with FeatureTap(network, ["pre_activation:stage*"]) as tap:
        features = tap(image).features
    assert tap.addresses == {
        "pre_activation:stage1": "stages.0.1:input",
        "pre_activation:stage2": "stages.1.1:input",
        "pre_activation:stage3": "stages.2",
    }
    first = network.stages[0][0](image)
    second = network.stages[1][0](first.relu())
    for stage, expected in enumerate((first, second, network.stages[2](second.relu())), 1):
        torch.testing.assert_close(features[f"pre_activation:stage{stage}"], expected)


def test_a_stage_that_ends_in_a_function_is_taken_as_it_is_and_said_so():
    class Functional(Staged):
        def forward(self, image):
            self.seen = self.tail(self.stages[:2](image))
            return self.fc(self.seen.mean(dim=(2, 3)))

    class Tail(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 5, 1)

        def forward(self, image):
            return self.conv(image).relu()

    network = Functional()
    network.tail = Tail()
    network.layer_aliases = {**Staged.layer_aliases, "stage3": "tail"}
    with FeatureTap(network, ["pre_activation:stage*"]) as tap:
        tap(torch.rand(8, 2, 4, 4))
    assert tap.addresses["pre_activation:stage3"] == "tail"
    assert "no activation module ends stage3" in tap.reasons["pre_activation:stage3"]


def test_a_pass_can_stop_behind_the_last_of_every_stage():
    tap = FeatureTap(Staged(), ["stage*"], stop=True)
    reading = tap(torch.rand(2, 2, 4, 4))
    assert reading.stopped
    assert len(reading.features) == 3
    copied = copy.deepcopy(tap)
    assert copied(torch.rand(2, 2, 4, 4)).stopped


def test_every_stage_of_a_network_that_has_none_is_an_error_by_name(image):
    tap = FeatureTap(nn.Sequential(nn.Flatten(), nn.Linear(32, 3)), ["stage*"])
    with pytest.raises(UnknownNameError, match=r"no layer called 'stage\*'"):
        tap(torch.rand(2, 2, 4, 4))
