"""The bar of evaluate: one line, which says the number of the stage and what it does."""

import re

from launch.stages import Stages


def test_one_bar_names_every_stage(capsys):
    with Stages(['real features', 'sampling clips', 'writing the report']) as stages:
        assert list(stages.steps('ab', 2)) == ['a', 'b']
        for _ in stages.steps(range(2), 2):
            for part in range(3):
                assert list(stages.frames(iter(range(part)), max(1, part), parts=3)) == list(range(part))
        stages.next()
    said = capsys.readouterr().err
    assert '\n' not in said
    labels = re.findall(r'\d of \d: [a-z ]*[a-z]', said)
    expected = ['1 of 3: real features', '2 of 3: sampling clips', '3 of 3: writing the report']
    assert list(dict.fromkeys(labels)) == expected


def test_frames_fill_their_step_and_never_more():
    with Stages(['sampling clips']) as stages:
        for step in stages.steps(range(2), 2):
            list(stages.frames(iter(range(4)), 4))
            assert 0.99 < stages._bar.n - step <= 1
            list(stages.frames(iter(range(4)), 4))  # more parts than announced
            assert stages._bar.n - step <= 1
    assert stages._bar.n == 2


def test_nothing_is_shown_of_no_stage(capsys):
    with Stages([]):
        pass
    assert capsys.readouterr().err == ''
