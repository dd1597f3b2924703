"""Answers put in order, each rule by itself; and mistakes made and found in sentences."""

import pytest

from glm_dist.tasks.correction import corrupt, edits, split
from glm_dist.tasks.postprocess import (
    PostprocessSettings,
    close_pairs,
    collapse_punctuation,
    join_han,
    postprocess,
    space_latin,
    trim_unfinished,
)
from glm_dist.tasks.question_answering import nearest_piece


@pytest.mark.parametrize(
    ("rule", "text", "result"),
    [
        (collapse_punctuation, "No!!! Why?? So.....", "No! Why? So..."),
        (collapse_punctuation, "好，，，的。。", "好，的。"),
        (collapse_punctuation, "one... 2.0 www", "one... 2.0 www"),
        (trim_unfinished, "It ends. It does", "It ends."),
        (trim_unfinished, 'He said "yes." And', 'He said "yes."'),
        (trim_unfinished, "好的。然后", "好的。"),
        (trim_unfinished, "no end", "no end"),
        (close_pairs, 'a (b [c "d', 'a (b [c "d"])'),
        (close_pairs, "《红楼梦", "《红楼梦》"),
        (close_pairs, "(done)", "(done)"),
        (join_han, "北 京 is big", "北京 is big"),
        (space_latin, "在GLM里有3层", "在 GLM 里有 3 层"),
    ],
)
def test_a_rule_does_what_it_says(rule, text, result):
    assert rule(text) == result
    assert rule(result) == result


def test_rules_are_switched_in_the_settings():
    off = PostprocessSettings(collapse_punctuation=False, close_pairs=False, join_han=False)
    assert postprocess(" a (b!!! ", off) == "a (b!!!"
    on = PostprocessSettings(trim_unfinished=True, space_latin=True)
    assert postprocess("在GLM 里!!! (and", on) == "在 GLM 里!"


@pytest.mark.parametrize("text", ["one man and his dog went to town", "北京的天气今天怎么样"])
def test_mistakes_are_the_same_every_time_and_their_edits_lead_back(text):
    wrong = {corrupt(text + end, 3) for end in ("", " a", " b c", " d e f", " g")}
    assert corrupt(text, 3) == corrupt(text, 3)
    assert len(wrong) == 5
    assert corrupt(text, 0) == text
    for end in ("", " a", " b c", " d e f"):
        source, right = corrupt(text + end, 3), text + end
        units, back = split(source), list[str]()
        done = 0
        for start, stop, instead in edits(source, right):
            back += [*units[done:start], *split(instead)]
            done = stop
        assert back + units[done:] == split(right)


@pytest.mark.parametrize(
    ("answer", "piece"),
    [("great", "great"), ("a great one", "a great"), ("xyz", "xyz"), ("", "")],
)
def test_the_longest_piece_in_common_is_found(answer, piece):
    assert nearest_piece("it was a great film", answer) == piece
