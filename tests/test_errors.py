"""plain_errors: ours comes out of whatever a library makes of it, others stay."""

import pytest
from torch.utils.data import DataLoader, Dataset

from vlkd.errors import UserError, plain_errors


def wrapped(inner: Exception, by_cause: bool) -> None:
    try:
        raise inner
    except Exception as error:
        if by_cause:
            raise ValueError("does not validate\nagainst any subtype") from error
        raise TypeError("while that was handled")  # noqa: B904


@pytest.mark.parametrize("by_cause", [True, False])
def test_a_wrapped_user_error_comes_out(by_cause: bool) -> None:
    mine = UserError("config.yaml: model.lr: below zero")
    with pytest.raises(UserError) as found, plain_errors():
        wrapped(mine, by_cause)
    assert found.value is mine


def test_other_errors_stay() -> None:
    with pytest.raises(ValueError, match="does not validate"), plain_errors():
        wrapped(KeyError("x"), True)
    with plain_errors():
        pass


class Broken(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> None:
        raise UserError(f"{index}.png: not an image")


def test_an_error_of_a_worker_process_is_our_line_alone() -> None:
    with pytest.raises(UserError) as found:
        list(DataLoader(Broken(), num_workers=1))
    assert str(found.value) == "0.png: not an image"
    assert str(UserError("two\nlines")) == "two\nlines"
