from limbeck.models import MODELS
from limbeck.recipes.published import OTHER_STYLE, SAME_STYLE, everywhere, is_slow


def test_all_pairs_are_of_the_zoo_and_none_comes_twice():
    pairs = (*SAME_STYLE, *OTHER_STYLE)
    assert len(set(pairs)) == len(pairs) == 13
    assert {network for pair in pairs for network in pair.split(" -> ")} <= set(MODELS)


def test_mobilenets_and_shufflenets_are_the_slow_ones():
    slow = [pair for pair in (*SAME_STYLE, *OTHER_STYLE) if is_slow(pair)]
    assert slow == [pair for pair in OTHER_STYLE if pair != "ResNet50 -> vgg8"]


def test_one_setting_stands_for_all_pairs():
    table = everywhere("at", p=4)
    assert set(table) == {*SAME_STYLE, *OTHER_STYLE}
    assert {(one.method, one.settings["p"]) for one in table.values()} == {("at", 4)}
