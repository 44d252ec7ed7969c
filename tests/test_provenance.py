"""Where results come from: each training once, and commits that can be read."""

from paperlib.reporting.provenance import shortened, without_repeats


def test_a_training_of_two_studies_stands_with_the_first():
    trainings = [
        {"stage": stage, "study": study} for study, stage in ("ax", "ay", "bx", "bz", "cz")
    ]
    assert [one["study"] + one["stage"] for one in without_repeats(trainings)] == ["ax", "ay", "bz"]


def test_a_commit_keeps_its_mark_of_changes():
    commit = "0123456789" * 4
    assert shortened(commit) == "01234567"
    assert shortened(f"{commit}+") == "01234567+"
    assert shortened("not recorded") == "not recorded"
