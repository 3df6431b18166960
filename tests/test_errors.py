"""plain_errors: ours comes out of whatever a library makes of it, others stay."""

import pytest

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
