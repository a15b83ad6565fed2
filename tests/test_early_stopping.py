import pytest

from headstart.training import early_stopping


@pytest.mark.parametrize(
    ("losses", "patience", "best", "stops_early"),
    [
        ([], 2, None, False),
        ([1.0], 1, 1, False),
        ([1.0, 1.1], 1, 1, True),
        ([1.0, 1.0], 1, 1, True),  # not lower
        ([1.0, 1.1, 0.9], 2, 3, False),
        ([1.0, 0.9, 1.1, 0.95], 2, 2, True),
        ([1.0, 0.9, 1.1], 2, 2, False),
    ],
)
def test_patience_counts_epochs_without_a_lower_loss(losses, patience, best, stops_early):
    assert early_stopping.should_stop(losses, patience) == stops_early
    if losses:
        assert early_stopping.best_epoch(losses) == best == early_stopping.restored_epoch(losses, patience)


def test_without_patience_the_last_epoch_is_kept_and_nothing_stops_early():
    assert early_stopping.restored_epoch([1.0, 2.0, 3.0], None) == 3
    assert not early_stopping.should_stop([1.0, 2.0, 3.0], None)
